"""INVALIDATE, WITHDRAW: REMOTE_WRITE and TRUNCATE take a file page out of every page table and out of the cache (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from lufjax import state as st
from lufjax.events import Op, Payer
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.alloc import free_then, owes, put_then
from lufjax.phases.draft import Draft
from lufjax.phases.mapping import GATHER_NONE, GATHER_PAGE, RULE_ALWAYS, debt_rule, visit_marker

SCAN = 16
"""Pages that one phase looks at."""


def invalidate(m: Draft, enabled: Array) -> None:
    """invalidate_inode_pages2, truncate_pagecache: wait for reclaim, find the pages that map it one by one, then drop it from the cache."""
    code, truncates = m.r.phase, m.op == Op.TRUNCATE
    truth, _, packed = m.get("backing", m.arg)
    home = packed >> 2
    starts, looks = enabled & (code == Phase.INVALIDATE), enabled & (code == Phase.INVALIDATE_LOOK)
    pays = m.forced_flush(starts & (m.rules.invalidate_flush == 1), Phase.INVALIDATE_PAID, Payer.MAPPING, mm=-1, page=m.arg)
    begin = (starts & ~pays) | (enabled & (code == Phase.INVALIDATE_PAID))
    waits = begin & (home >= 0) & frames.in_batch(m, home)
    m.put_regs(waits, dr_cpu=m.c, dr_ret=Phase.INVALIDATE_LOOK)
    m.goto(Phase.INVALIDATE_LOOK, begin)
    m.goto(Phase.DRAIN, waits)

    refs, end = m.get("frame", home, st.REFS), m.shape.num_processes * m.shape.num_vpns
    is_mapped = (home >= 0) & ((m.get("rmap", home) >= 0).any() | (refs > 0))
    m.put_regs(looks, loop=jnp.where(truncates | is_mapped, 0, end))
    m.goto(Phase.INVALIDATE_SCAN, looks)

    scans = enabled & (code == Phase.INVALIDATE_SCAN)
    pids = m.r.loop + jnp.arange(SCAN)
    pages = m.get("page", pids)
    backing = pages[:, st.BACKING]
    is_copy = (backing >= m.shape.num_file_pages) & (m.get("origin", backing - m.shape.num_file_pages) == m.arg)
    maps = (pids < end) & (pages[:, st.VMA] >= 0) & ((backing == m.arg) | (truncates & is_copy))
    found = scans & maps.any()
    m.put_regs(scans, loop=m.r.loop + jnp.where(found, jnp.argmax(maps).astype(jnp.int32), SCAN))
    m.goto(Phase.WITHDRAW, found)

    over = scans & ~found & (m.r.loop >= end)
    evicts = over & (home >= 0)
    m.put("backing", m.arg, jnp.stack([truth + 1, truth + 1, jnp.where(truncates, -4, -3)]), over)
    frames.lru_take(m, jnp.maximum(home, 0), evicts, rotates=jnp.bool_(False))
    m.put("frame", (home, st.STATE), st.HELD, evicts)
    m.goto(Phase.COMPLETE, over)
    free_then(m, home, m.c, evicts & (refs == 0), Phase.COMPLETE, has_debt=owes(m, home))


def withdraw(m: Draft, enabled: Array) -> None:
    """zap_page_range_single of the page ``loop``: pay what the page owes, clear its PTE, flush, let go of the frame."""
    code, pid = m.r.phase, m.r.loop
    mm = lax.div(pid, jnp.int32(m.shape.num_vpns))
    vpn = pid - mm * m.shape.num_vpns
    row, held_row = m.get("mm", mm), m.get("frame", m.r.zap_held)

    begins, resumes = enabled & (code == Phase.WITHDRAW), enabled & (code == Phase.WITHDRAW_FLAG)
    debt_rule(m, begins, resumes, mm=mm, row=row, pid=pid, again=Phase.WITHDRAW_FLAG, then=Phase.WITHDRAW_ZAP)

    zaps = enabled & (code == Phase.WITHDRAW_ZAP)
    was_present = _zap(m, pid, zaps)
    by_page = m.rules.gather_flush == GATHER_PAGE
    m.goto(Phase.WITHDRAW_SETTLE, zaps)
    m.flush_mm(zaps & was_present & by_page, Phase.WITHDRAW_SETTLE, cpu=m.c, mm=mm, payer=Payer.MAPPING, start=vpn, end=vpn + 1)

    settles = enabled & (code == Phase.WITHDRAW_SETTLE)
    always, nested, cleared = m.rules.munmap_debt_rule == RULE_ALWAYS, row[st.GATHERS] > 0, m.r.zap_cleared == 1
    flushes = settles & (cleared | always | nested) & (m.rules.gather_flush != GATHER_NONE) & (~by_page | always)
    whole = nested | always | ~cleared
    m.goto(Phase.WITHDRAW_PUT, settles)
    m.flush_mm(
        flushes, Phase.WITHDRAW_PUT, cpu=m.c, mm=mm, payer=Payer.MAPPING, start=jnp.where(whole, 0, vpn), end=jnp.where(whole, -1, vpn + 1),
        tables=nested,
    )  # fmt: skip

    puts = enabled & (code == Phase.WITHDRAW_PUT)
    m.put_regs(puts, loop=pid + 1)
    m.goto(Phase.INVALIDATE_SCAN, puts)
    held = m.r.zap_held
    put_then(m, held, held_row, m.c, puts & (held >= 0), Phase.INVALIDATE_SCAN, has_debt=owes(m, held))


def _zap(m: Draft, pid: Array, enabled: Array) -> Array:
    """Clear the PTE and hold its frame; a private copy gives way to the file page. Returns whether the PTE was present."""
    pte, page = m.get("pte", pid), m.get("page", pid)
    old, promise, frame = page[st.BACKING], page[st.PROMISE], pte >> st.PTE_SHIFT
    was_present, is_copy = (pte & st.PTE_PRESENT) != 0, old >= m.shape.num_file_pages
    marked, left = visit_marker(m, pte)
    m.put("pte", pid, jnp.where(was_present, 0, left), enabled)
    frames.rmap_remove(m, frame, pid, enabled & was_present)

    packed = m.get("backing", old, st.HOME)
    home = packed >> 2
    others = frames.has_sharers(m, old)
    takes = enabled & is_copy & ~others & (home >= 0) & (m.get("frame", home, st.STATE) == st.USED_STATE)
    frames.lru_take(m, jnp.maximum(home, 0), takes, rotates=jnp.bool_(False))
    m.put("frame", (home, st.STATE), st.HELD, takes)
    held = jnp.where(takes, home, jnp.where(was_present & (~is_copy | others), frame, -1))
    m.add("frame", (held, st.REFS), 1, enabled & (held >= 0))
    m.put_regs(enabled, zap_held=held, zap_cleared=was_present | marked)

    m.put("backing", (old, st.HOME), (packed & 3) - 4, enabled & is_copy & ~others)
    m.add("sharers", old - m.shape.num_file_pages, -1, enabled & others)
    frames.release_anon(m, old, enabled & is_copy)
    is_promised = is_copy & ((promise & 1) != 0) & (promise >> 2 == old)
    m.put("page", (pid, slice(st.BACKING, st.CHANGED + 1)), jnp.stack([
        m.arg, jnp.where(is_promised, m.arg * 4 + (promise & 3), promise), jnp.where(is_promised, m.now, page[st.EPOCH]),
        jnp.where(was_present, m.now, page[st.CHANGED]),
    ]), enabled)  # fmt: skip
    return was_present
