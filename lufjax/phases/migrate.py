"""MIGRATE: a page moves to a frame of the other tier, by itself or demoted by reclaim; SPILL, FREE_SLOW: free slow frames (docs/MODEL.md 5 to 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Payer
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.alloc import discharge, free_then, hand_out, owes
from lufjax.phases.draft import Draft
from lufjax.phases.fault import hold
from lufjax.phases.reclaim import PAID, batch_flushed, clear_ptes, flush_site

OFF, _, DEFER = range(3)
"""Values of ``migrate_flush``."""


def slow(m: Draft, enabled: Array) -> None:
    """SPILL: the head of ``slow`` becomes the head of the per-CPU list, from where it is taken. FREE_SLOW: a slow frame leaves that list."""
    spills, frees = enabled & (m.r.phase == Phase.SPILL), enabled & (m.r.phase == Phase.FREE_SLOW)
    cpu = jnp.where(spills, m.c, m.r.pd_cpu)
    head, count = m.get("pcp", cpu)
    wrap, slow_wrap = st.ring_size(m.shape.pcp_slots) - 1, st.ring_size(m.shape.num_frames) - 1
    first, last = m.get("pcp_ring", cpu, head & wrap), m.get("pcp_ring", cpu, (head + count - 1) & wrap)
    is_first = first >= m.p.fast_frames
    freed = jnp.where(is_first, first, last)
    spilled = m.get("slow_ring", m.r.slow_head & slow_wrap)
    at_tail = owes(m, freed) & (m.rules.pending_to == 1)
    m.put("slow_ring", jnp.where(at_tail, m.r.slow_head + m.r.slow_count, m.r.slow_head - 1) & slow_wrap, freed, frees)
    m.put("pcp_ring", (cpu, (head - 1) & wrap), spilled, spills)
    moved = jnp.where(spills, -1, jnp.where(is_first, 1, 0))
    m.put("pcp", cpu, jnp.stack([head + moved, count + jnp.where(spills, 1, -1)]), enabled)
    m.bump("slow_head", spills)
    m.bump("slow_head", frees & ~at_tail, -1)
    m.bump("slow_count", enabled, jnp.where(spills, -1, 1))
    m.goto(jnp.where(spills, Phase.ALLOC_POP, m.r.pd_ret), enabled)


def migrate(m: Draft, enabled: Array) -> None:
    """migrate_pages of one page: may it move, and where to?"""
    page = m.get("page", m.arg * m.shape.num_vpns + m.v)
    home = jnp.where(page[st.VMA] >= 0, frames.home_of(m, page[st.BACKING]), -1)
    row = m.get("frame", home)
    can = (home >= 0) & (row[st.STATE] == st.USED_STATE) & (row[st.REFS] == 0) & ~frames.in_batch(m, home)
    m.disabled(enabled & ~can)
    todo = enabled & can
    to_slow = (m.p.fast_frames < m.p.frames_in_use) & (home < m.p.fast_frames)
    m.put_regs(todo & ~to_slow & (m.p.load_mode == 1) & (m.r.free_count < m.p.wmark_low), kswapd_on=1)
    has_room = jnp.where(to_slow, m.r.slow_count > 0, (m.get("pcp", m.c, 1) > 0) | (m.r.free_count > 0))
    m.count("pgmigrate_fail", todo & ~has_room)
    m.complete(todo & ~has_room)
    moves = todo & has_room
    m.put_regs(moves, un_frame=home, rc_cpu=m.c, rc_pages=0, rc_background=0, rc_named=-1, rc_ret=Phase.COMPLETE)
    m.put_regs(moves, alloc_foreign=1, alloc_ret=Phase.MIGRATE_UNMAP, rf_tag=0)
    m.goto(jnp.where(to_slow, Phase.TAKE_SLOW, Phase.ALLOC_POP), moves)


def slow_target(m: Draft, enabled: Array) -> None:
    """The head of ``slow`` is taken off by CPU ``rc_cpu`` for nobody, and handed out once its debt is paid."""
    takes = enabled & (m.r.phase == Phase.TAKE_SLOW)
    head = m.get("slow_ring", m.r.slow_head & (st.ring_size(m.shape.num_frames) - 1))
    frame = jnp.where(takes, head, m.r.alloc_frame)
    owed = m.get("owed", frame)
    m.bump("slow_head", takes)
    m.bump("slow_count", takes, -1)
    m.bump("nr_pending", takes & owes(m, frame), -1)
    m.put_regs(takes, alloc_frame=frame, fl_sent=0)
    flushes = discharge(m, m.get("frame", frame), owed, takes, cpu=m.r.rc_cpu, is_foreign=True, then=Phase.SLOW_TAKEN)
    taken = enabled & ~flushes
    hand_out(m, frame, taken)
    m.goto(Phase.MIGRATE_UNMAP, taken)


def moved(m: Draft, enabled: Array) -> None:
    """migrate_folio_unmap and, in the same step, move_to_new_folio: PTEs, reverse map and page cache name the new frame."""
    frame, to = m.r.un_frame, m.r.alloc_frame
    row, sites = m.get("frame", frame), m.get("rmap", frame)
    is_site, ptes = sites >= 0, m.get("pte", sites)
    packed = m.get("backing", row[st.PAGE_OF], st.HOME)
    cleared = clear_ptes(m, frame, row, sites, ptes, enabled, cpu=m.r.rc_cpu, may_defer=m.rules.migrate_flush == DEFER)
    m.commit_deferred(enabled & cleared.deferred)
    m.put("pte", sites, (ptes & ((1 << st.PTE_SHIFT) - 1)) | (to << st.PTE_SHIFT), enabled & is_site)
    m.put("rmap", to, sites, enabled)
    hold(m, to, row[st.PAGE_OF], row[st.VERSION], enabled)
    m.put("frame", (to, st.CONTENT), row[st.CONTENT], enabled)
    m.put("backing", (row[st.PAGE_OF], st.HOME), to * 4 + (packed & 3), enabled)
    frames.lru_take(m, frame, enabled, rotates=jnp.bool_(False))
    m.put("un_sites", (), jnp.where(cleared.at_once, sites, -1), enabled)
    m.put_regs(enabled, loop=cleared.queued.any() & ~cleared.deferred & (m.rules.migrate_flush != OFF))
    m.goto(Phase.MIGRATE_FLUSH, enabled)


def migrated(m: Draft, enabled: Array) -> None:
    """The flushes that the unmap owes (the batch's if ``loop`` says so), then the old frame is freed; reclaim goes on, if it was reclaim."""
    code, frame, cpu = m.r.phase, m.r.un_frame, m.r.rc_cpu
    todo, flushed = enabled & (code == Phase.MIGRATE_FLUSH), enabled & (code == Phase.MIGRATE_FLUSHED)
    by_site = flush_site(m, todo, Phase.MIGRATE_FLUSH, cpu=cpu)
    by_batch = todo & ~by_site & (m.r.loop == 1)
    m.flush_batch(by_batch, Phase.MIGRATE_FLUSHED, cpu=cpu, mask=m.batch_mask, payer=Payer.RECLAIM)
    batch_flushed(m, flushed)
    m.goto(Phase.MIGRATE_FREE, flushed | (todo & ~by_site & ~by_batch))

    ends, has_debt = enabled & (code == Phase.MIGRATE_FREE), owes(m, frame)
    pays = ends & has_debt & (m.rules.init_on_free == PAID)
    m.discharge_all(pays, Phase.MIGRATE_FREE, Payer.RECLAIM, cpu=cpu)
    frames.forget_debt(m, frame, pays)
    frees = ends & ~pays
    frames.lru_append(m, m.r.alloc_frame, frees)
    m.count("pgmigrate_success", frees)
    m.count("pgpromote_success", frees & (frame >= m.p.fast_frames))
    free_then(m, frame, cpu, frees, Phase.RECLAIM, has_debt=has_debt)
