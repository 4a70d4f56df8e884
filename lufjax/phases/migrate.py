"""MIGRATE: a page moves to a frame of the other tier; SPILL, FREE_SLOW: the free frames of the slow tier (docs/MODEL.md sections 5 and 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Payer
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.alloc import free_then, owes
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
    """migrate_folio_unmap of one page: may it move, where to, and what its unmap owes. In the same step the PTEs name the new frame."""
    begin, unmaps = enabled & (m.r.phase == Phase.MIGRATE), enabled & (m.r.phase == Phase.MIGRATE_UNMAP)
    page = m.get("page", m.arg * m.shape.num_vpns + m.v)
    home = jnp.where(page[st.VMA] >= 0, frames.home_of(m, page[st.BACKING]), -1)
    frame, to = jnp.where(begin, jnp.maximum(home, 0), m.r.un_frame), m.r.alloc_frame
    row, sites = m.get("frame", frame), m.get("rmap", frame)
    in_batch = ((m.get("batch") >> 1 == home) & (jnp.arange(m.shape.batch_slots) < m.r.batch_count)).any()
    can = (home >= 0) & (row[st.STATE] == st.USED_STATE) & (row[st.REFS] == 0) & ~in_batch
    m.disabled(begin & ~can)
    todo = begin & can
    to_slow = (m.p.fast_frames < m.p.frames_in_use) & (frame < m.p.fast_frames)
    m.put_regs(todo & ~to_slow & (m.p.load_mode == 1) & (m.r.free_count < m.p.wmark_low), kswapd_on=1)
    has_room = jnp.where(to_slow, m.r.slow_count > 0, (m.get("pcp", m.c, 1) > 0) | (m.r.free_count > 0))
    m.count("pgmigrate_fail", todo & ~has_room)
    m.complete(todo & ~has_room)
    takes = todo & has_room
    m.put_regs(takes, un_frame=frame, alloc_foreign=1, alloc_ret=Phase.MIGRATE_UNMAP, rf_tag=0)
    m.goto(jnp.where(to_slow, Phase.SPILL, Phase.ALLOC_POP), takes)

    is_site, ptes = sites >= 0, m.get("pte", sites)
    packed = m.get("backing", row[st.PAGE_OF], st.HOME)
    cleared = clear_ptes(m, frame, row, sites, ptes, unmaps, cpu=m.c, may_defer=m.rules.migrate_flush == DEFER)
    m.commit_deferred(unmaps & cleared.deferred)
    m.put("pte", sites, (ptes & ((1 << st.PTE_SHIFT) - 1)) | (to << st.PTE_SHIFT), unmaps & is_site)
    m.put("rmap", to, sites, unmaps)
    hold(m, to, row[st.PAGE_OF], row[st.VERSION], unmaps)
    m.put("frame", (to, st.CONTENT), row[st.CONTENT], unmaps)
    m.put("backing", (row[st.PAGE_OF], st.HOME), to * 4 + (packed & 3), unmaps)
    frames.lru_take(m, frame, unmaps, rotates=jnp.bool_(False))
    m.put("un_sites", (), jnp.where(cleared.at_once, sites, -1), unmaps)
    m.put_regs(unmaps, loop=cleared.queued.any() & ~cleared.deferred & (m.rules.migrate_flush != OFF))
    m.goto(Phase.MIGRATE_FLUSH, unmaps)


def migrated(m: Draft, enabled: Array) -> None:
    """The flushes that the unmap owes (the batch's if ``loop`` says so), then the old frame is freed."""
    code, frame = m.r.phase, m.r.un_frame
    todo, flushed = enabled & (code == Phase.MIGRATE_FLUSH), enabled & (code == Phase.MIGRATE_FLUSHED)
    by_site = flush_site(m, todo, Phase.MIGRATE_FLUSH, cpu=m.c)
    by_batch = todo & ~by_site & (m.r.loop == 1)
    m.flush_batch(by_batch, Phase.MIGRATE_FLUSHED, cpu=m.c, mask=m.batch_mask, payer=Payer.RECLAIM)
    batch_flushed(m, flushed)
    m.goto(Phase.MIGRATE_FREE, flushed | (todo & ~by_site & ~by_batch))

    ends, has_debt = enabled & (code == Phase.MIGRATE_FREE), owes(m, frame)
    pays = ends & has_debt & (m.rules.init_on_free == PAID)
    m.discharge_all(pays, Phase.MIGRATE_FREE, Payer.RECLAIM)
    m.put("owed", frame, jnp.zeros((m.words,), jnp.uint32), pays)
    m.put("frame", (frame, slice(st.OWNER, st.CLOCK + 1)), jnp.array([-1, 0, 0], jnp.int32), pays)
    frees = ends & ~pays
    frames.lru_append(m, m.r.alloc_frame, frees)
    m.count("pgmigrate_success", frees)
    m.count("pgpromote_success", frees & (frame >= m.p.fast_frames))
    free_then(m, frame, m.c, frees, Phase.COMPLETE, has_debt=has_debt)
