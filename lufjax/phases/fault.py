"""FAULT, COW, INSTALL and its hooks: from a missing or read-only PTE to an installed one (docs/MODEL.md section 5)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Op, Payer, VmaFlag
from lufjax.faults import Fault
from lufjax.kernels import cpumask, frames, tlb
from lufjax.phases import Phase
from lufjax.phases.draft import Draft

OFF, WP, BEFORE, AFTER = range(4)
"""Values of ``write_fault_flush``."""
CARRIED, LOST, FLUSHED = range(3)
"""Values of ``kept_debt``."""


def fault(m: Draft, enabled: Array) -> None:
    """handle_mm_fault: is the access allowed, and what does it need?"""
    page, pte = m.get("page", m.pid), m.get("pte", m.pid)
    is_store, is_present = for_store(m), (pte & st.PTE_PRESENT) != 0
    flags = m.get("vma", jnp.maximum(page[st.VMA], 0))
    backing = page[st.BACKING]

    begin = enabled & (m.r.phase == Phase.FAULT)
    m.count("pgfault", begin)
    allowed = (page[st.VMA] >= 0) & ((flags & VmaFlag.READ) != 0) & (~is_store | ((flags & VmaFlag.WRITE) != 0))
    m.count("segv", begin & ~allowed)
    is_anon = backing >= m.shape.num_file_pages
    home = m.get("backing", backing, st.HOME)
    is_gone = ~is_anon & ((home & 1) == 0)
    m.count("sigbus", begin & allowed & is_gone)
    m.put_regs(begin & (~allowed | is_gone), disturbed=m.now)
    m.complete(begin & (~allowed | is_gone))
    begin = begin & allowed & ~is_gone
    pays = m.split(begin & is_store & is_present & (m.rules.write_fault_flush == WP))
    hooked = m.forced_flush(pays, Phase.FAULT_CLASSIFY, Payer.FAULT, mm=m.m, page=m.shared_file(page))

    ready = enabled & (begin | (m.r.phase == Phase.FAULT_CLASSIFY)) & ~hooked
    is_shared = (flags & VmaFlag.SHARED) != 0
    copies = ~is_shared & (~is_anon | frames.is_copy_on_write(m, flags, backing))
    upgrade, cow = is_present & ~copies, is_store & copies
    resident = home >> 2
    m.put_regs(ready, alloc_frame=jnp.where(upgrade, pte >> st.PTE_SHIFT, resident), alloc_foreign=0)
    may_write = (flags & (VmaFlag.WRITE | VmaFlag.MAYWRITE)) != 0
    hook = jnp.where(may_write, m.rules.write_fault_flush, OFF)
    m.put_regs(ready, alloc_ret=jnp.where(cow, Phase.COW, Phase.INSTALL_READ), fault_hook=hook)
    then = jnp.where(cow | (resident < 0), Phase.ALLOC, Phase.INSTALL_RESIDENT)
    m.goto(jnp.where(upgrade, Phase.INSTALL_UPGRADE, then), ready)


def for_store(m: Draft) -> Array:
    """Whether the fault is one of a store."""
    return (m.op == Op.STORE) | ((m.op == Op.FAULT_INSTALL) & (m.arg == 1))


def cow(m: Draft, enabled: Array) -> None:
    """wp_page_copy: unmap the original, flush it, and the copy takes its place."""
    pte, page = m.get("pte", m.pid), m.get("page", m.pid)
    backing, frame = page[st.BACKING], m.r.alloc_frame
    m.put_regs(enabled, disturbed=m.now)
    m.complete(enabled & (frame < 0))
    todo = enabled & (frame >= 0)
    begin = todo & (m.r.phase == Phase.COW)
    packed, is_anon = m.get("backing", backing, st.HOME), backing >= m.shape.num_file_pages
    home = packed >> 2
    m.count("pgmajfault", begin & (home < 0) & ((packed & 1) != 0))
    slots = jnp.arange(m.shape.batch_slots)
    is_queued = (home >= 0) & ((m.get("batch") == home * 2) & (slots < m.r.batch_count)).any()
    unmap = begin & ((pte & st.PTE_PRESENT) != 0)
    frames.rmap_remove(m, pte >> st.PTE_SHIFT, m.pid, unmap)
    m.put("pte", m.pid, 0, unmap)
    m.put("page", (m.pid, st.CHANGED), m.now, unmap)
    flushes = begin & (unmap | is_queued) & (m.rules.cow_flush == 1)
    m.flush_mm(flushes, Phase.COW_FLUSHED, cpu=m.c, mm=m.m, payer=Payer.FAULT, start=m.v, end=m.v + 1)

    copied = todo & ~flushes
    m.fault(Fault.ANON_POOL_EMPTY, copied & (m.r.anon_top <= 0))
    fresh, version = frames.take_anon(m, backing, copied, home=frame * 4)
    promise = page[st.PROMISE]
    follows = (promise >> 2 == backing) & ((promise & 1) != 0)
    new_promise = jnp.where(follows, fresh * 4 + (promise & 3), promise)
    m.put("page", (m.pid, slice(st.BACKING, st.PROMISE + 1)), jnp.stack([fresh, new_promise]), copied)
    for references in ("shared", "sharers"):
        m.add(references, backing - m.shape.num_file_pages, -1, copied & is_anon)
    hold(m, frame, fresh, version, copied)
    frames.lru_append(m, frame, copied)
    m.goto(Phase.INSTALL_COPY, copied)


def install(m: Draft, enabled: Array) -> None:
    """set_pte_at: the page is in a frame; the PTE, the reverse map and the TLB learn of it, and a store is performed."""
    code, frame = m.r.phase, m.r.alloc_frame
    is_store, is_half = m.split(for_store(m)), m.op == Op.FAULT_INSTALL
    fails = enabled & (code == Phase.INSTALL_READ) & (frame < 0)
    m.put_regs(fails, disturbed=m.now)
    m.complete(fails)
    row = m.get("frame", frame)
    keeps = keep(m, frame, row, enabled & (code == Phase.INSTALL_RESIDENT), Phase.INSTALL_RESIDENT)
    todo = enabled & (frame >= 0) & ~keeps
    page = m.get("page", m.pid)
    backing, promise = page[st.BACKING], page[st.PROMISE]
    reads = m.split(todo & (code == Phase.INSTALL_READ))
    pte, packed = m.get("pte", m.pid), m.get("backing", backing)
    filled = todo & (code == Phase.INSTALL_FILL)
    paid = filled | (todo & (code == Phase.INSTALL))
    pays = todo & ~paid & (code != Phase.INSTALL_MARKED) & ((pte & st.PTE_MARKER) != 0) & is_store & (m.rules.marker_fault == 1)
    m.flush_mm(pays, Phase.INSTALL_MARKED, cpu=m.c, mm=m.m, payer=Payer.FAULT)
    before = todo & ~paid & ~pays & (m.r.fault_hook == BEFORE)
    m.goto(Phase.INSTALL_BEFORE, before)
    sets = m.split(todo & ~pays & ~before & ~filled)
    full = frames.rmap_add(m, frame, m.pid, sets & ((pte & st.PTE_PRESENT) == 0))
    m.fault(Fault.RMAP_FULL, full)
    _arrive(m, frame, row, backing, packed, reads, todo & (code == Phase.INSTALL_RESIDENT), dirties=sets & is_store)
    write_bits = jnp.where(is_store, st.PTE_WRITABLE | st.PTE_DIRTY, 0)
    m.put("pte", m.pid, (frame << st.PTE_SHIFT) | st.PTE_PRESENT | st.PTE_ACCESSED | write_bits, sets)
    is_promised = ((promise & 1) != 0) & (promise >> 2 == backing)
    m.put("page", (m.pid, st.PROMISE), promise | 2, sets & is_store & is_promised)
    m.goto(Phase.HALF_INSTALLED, sets & is_half)
    after = sets & ~is_half & (m.r.fault_hook == AFTER)
    m.goto(Phase.INSTALL_AFTER, after)
    done = (sets & ~is_half & ~after) | filled
    fill_both(m, frame, is_store, done)
    m.put_regs(done, store_frame=frame)
    m.goto(Phase.STORE, done & is_store)
    m.complete(done & ~is_store)


def hook(m: Draft, enabled: Array) -> None:
    """What a fault on a page that may be written pays, before or after its PTE can be seen."""
    then = jnp.where(m.r.phase == Phase.INSTALL_BEFORE, Phase.INSTALL, Phase.INSTALL_FILL)
    m.goto(then, enabled)
    m.forced_flush(enabled, then, Payer.FAULT, mm=m.m, page=m.shared_file(m.get("page", m.pid)))


def _arrive(
    m: Draft, frame: Array, row: Array, backing: Array, packed: Array, reads: Array, resident: Array, *, dirties: Array
) -> None:  # fmt: skip
    """The frame joins the inactive list: read in just now, or taken back from the unmap batch. Where a PTE ``dirties`` it, it will be written out."""
    truth, stored, home = packed
    is_gone = (backing >= m.shape.num_file_pages) & ((home & 3) == 2)
    truth, stored = truth + is_gone.astype(jnp.int32), jnp.where(is_gone, truth + 1, stored)
    rescued = resident & (row[st.STATE] == st.IN_BATCH)
    m.count("pgmajfault", reads & ((home & 1) != 0))
    m.count("pgrescued", rescued)
    kept = row[st.CONTENT : st.PAGE_OF + 1]
    new = jnp.where(reads, jnp.stack([backing, stored, backing]), kept)
    used = jnp.full((1,), st.USED_STATE, jnp.int32)
    m.put("frame", (frame, slice(st.STATE, st.PAGE_OF + 1)), jnp.concatenate([used, new]), reads | rescued)
    read_in = jnp.stack([truth, stored, frame * 4 + (home & 1)])
    m.put("backing", backing, jnp.where(reads, read_in, jnp.stack([packed[st.TRUTH], packed[st.STORED], home & ~2])), reads | dirties)
    frames.lru_append(m, frame, reads | rescued)


def keep(m: Draft, frame: Array, row: Array, enabled: Array, then: Phase) -> Array:
    """``kept_debt`` of a frame that is taken back from the unmap batch. Returns whether a flush was requested, after which ``then`` tries again."""
    owed = m.get("owed", frame)
    kept = m.split(enabled & (row[st.STATE] == st.IN_BATCH) & ~cpumask.is_empty(owed))
    flushes = kept & (m.rules.kept_debt == FLUSHED)
    m.flush_batch(flushes, then, cpu=m.c, mask=owed, payer=Payer.FAULT)
    clears = kept & (m.rules.kept_debt != CARRIED)
    frames.forget_debt(m, frame, clears)
    return flushes


def hold(m: Draft, frame: Array, backing: Array, version: Array, enabled: Array) -> None:
    """A frame just taken off the allocator is used for ``backing`` and holds ``version`` of it."""
    row = jnp.stack([jnp.full_like(backing, st.USED_STATE), backing, version, backing])
    m.put("frame", (frame, slice(st.STATE, st.PAGE_OF + 1)), row, enabled)


def fill_both(m: Draft, frame: Array, is_store: Array, enabled: Array) -> None:
    """Fill both TLB levels of the faulting CPU from the PTE just installed."""
    flushed_at = m.get("cpu_mm", m.c)[:, st.FLUSHED_AT]
    tag = tlb.tag_of(m.m, m.v)
    entry = jnp.stack([tag, frame * 4 + jnp.where(is_store, st.WRITABLE | st.DIRTY, 0), m.now, m.now])
    for level, geometry in (("tlb1", m.shape.l1), ("tlb2", m.shape.l2)):
        index = tlb.set_index(geometry, m.v)
        row = m.get(level, index, m.c)
        way = tlb.victim(geometry, row, tlb.matches(row, tag, flushed_at), flushed_at)
        tlb.write(m, level, geometry, index, row, way, entry, enabled=enabled, used=jnp.bool_(True))
