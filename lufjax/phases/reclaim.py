"""RECLAIM, UNMAP, DRAIN: one inactive-list entry, the flushes that an unmap owes at once, and the end of a batch (docs/MODEL.md section 6)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lufjax import state as st
from lufjax.events import Payer
from lufjax.kernels import cpumask, frames
from lufjax.phases import Phase
from lufjax.phases.alloc import free_then, owes
from lufjax.phases.draft import Draft

NEVER, PAGE, BATCH, TAKE_OFF, OWNER = range(5)
PAID, REFUSED = 2, 3
"""Values of ``init_on_free``."""


def reclaim(m: Draft, enabled: Array) -> None:
    """shrink_folio_list, one entry: second chance, unmap, or demote. Ends the call when pages, entries or the list run out."""
    fast_end = m.shape.num_frames
    begins = enabled & (m.r.phase == Phase.BACKGROUND)
    m.put_regs(begins, rc_pages=1, rc_entries=4, rc_cpu=m.p.kswapd_cpu, rc_background=1, rc_named=-1, rc_ret=Phase.FETCH)
    m.goto(Phase.RECLAIM, enabled)
    m.put_regs(enabled, disturbed=m.now)
    named = m.r.rc_named >= 0
    oldest_fast, oldest_slow = m.get("link", fast_end, st.NEXT), m.get("link", fast_end + 1, st.NEXT)
    makes_room = (m.r.slow_count == 0) & (oldest_slow != fast_end + 1)
    end, oldest = jnp.where(makes_room, fast_end + 1, fast_end), jnp.where(makes_room, oldest_slow, oldest_fast)
    has_more = m.split((m.r.rc_pages > 0) & (named | ((m.r.rc_entries > 0) & (oldest != end))))
    todo = enabled & has_more
    frame = jnp.where(named, m.r.rc_named, jnp.minimum(oldest, fast_end - 1))
    row, sites = m.get("frame", frame), m.get("rmap", frame)
    is_site = sites >= 0
    ptes = m.get("pte", sites)
    accessed = is_site & ((ptes & st.PTE_ACCESSED) != 0)
    is_held = row[st.REFS] > 0
    rotates = m.split(todo & ~named & (is_held | accessed.any()))
    leaves = todo & ~rotates
    demotes = m.split(leaves & ~named & (frame < m.p.fast_frames) & (m.r.slow_count > 0))
    unmaps = leaves & ~demotes
    m.count("pgscan", todo & ~named)
    m.count("pgrotated", rotates & ~is_held)
    m.put_regs(todo, rc_entries=m.r.rc_entries - 1)
    m.put_regs(leaves, rc_pages=m.r.rc_pages - 1)
    is_background = m.r.rc_background == 1
    m.count("pgsteal_kswapd", leaves & is_background)
    m.count("pgsteal_direct", leaves & ~is_background)
    m.count("pgdemote_kswapd", demotes & is_background)
    m.count("pgdemote_direct", demotes & ~is_background)
    m.put_regs(demotes, un_frame=frame)
    m.goto(Phase.TAKE_SLOW, demotes)
    oldest = jnp.where(todo & ~demotes, frames.lru_take(m, frame, todo & ~demotes, rotates=rotates), oldest)
    left = _unmap(m, frame, row, sites, ptes, unmaps)
    m.put("pte", sites, jnp.where(unmaps, left, ptes & ~st.PTE_ACCESSED), is_site & (unmaps | (rotates & ~is_held)))
    is_empty = (oldest == end) & (~makes_room | (oldest_fast == fast_end))
    over = (m.r.rc_pages == 0) | (~named & ((m.r.rc_entries == 0) | is_empty))
    _leave(m, enabled & (m.r.phase == Phase.RECLAIM) & (over | ~has_more), is_empty)


def _leave(m: Draft, enabled: Array, list_is_empty: Array) -> None:
    """Return to the caller; background reclaim goes to sleep when balanced."""
    background = enabled & (m.r.rc_background == 1)
    sleeps = background & ((m.r.free_count + m.r.batch_count >= m.p.wmark_high) | list_is_empty)
    m.put_regs(sleeps, kswapd_on=0)
    m.goto(m.r.rc_ret, enabled)
    m.put_regs(sleeps, dr_cpu=m.p.kswapd_cpu, dr_ret=Phase.FETCH)
    m.goto(Phase.DRAIN, sleeps)


def _unmap(m: Draft, frame: Array, row: Array, sites: Array, ptes: Array, enabled: Array) -> Array:
    """try_to_unmap: clear every PTE of the frame, queue or defer its flush. Returns the PTE values left behind."""
    cleared = clear_ptes(m, frame, row, sites, ptes, enabled, cpu=m.r.rc_cpu, may_defer=m.rules.reclaim_flush >= TAKE_OFF)
    backing, version = row[st.PAGE_OF], row[st.VERSION]
    home = m.get("backing", backing, st.HOME)
    any_dirty, is_dirty, deferred = cleared.any_dirty, cleared.is_dirty, cleared.deferred
    m.count("pglazyfreed", enabled & cleared.drops)

    # Flushes due at once: single-CPU mms, the page-by-page policy, and dirty pages before their write-out.
    m.put_regs(enabled, un_frame=frame, un_deferred=deferred, un_dirty=jnp.where(is_dirty, 1, 0) + jnp.where(any_dirty, 2, 0), loop=0)
    waits = enabled & (cleared.at_once.any() | is_dirty)
    m.put("un_sites", (), jnp.where(cleared.at_once, sites, -1), waits)
    m.goto(Phase.UNMAP, waits)
    _append(m, frame, backing, version, home, deferred, jnp.zeros_like(deferred), enabled & ~waits)
    return jnp.where(cleared.marks, st.PTE_MARKER, 0)


class Cleared(NamedTuple):
    """What clearing the PTEs of a frame came to.

    Attributes:
        at_once, queued, marks: ``bool[R]``, PTEs whose flush is due at once, is queued or deferred, and that leave a marker.
        deferred: whether the queued ones are deferred. any_dirty: whether a PTE was dirty. is_dirty: whether the content has to be written out.
        drops: whether the content may be dropped, because MADVISE_FREE let it go.
    """

    at_once: Array
    queued: Array
    marks: Array
    deferred: Array
    any_dirty: Array
    is_dirty: Array
    drops: Array


def clear_ptes(
    m: Draft, frame: Array, row: Array, sites: Array, ptes: Array, enabled: Array, *, cpu: Array, may_defer: Array
) -> Cleared:  # fmt: skip
    """try_to_unmap, try_to_migrate: queue or defer the flush of every PTE of a frame, of which nothing is left in the reverse map.

    The PTEs themselves are the caller's to write.
    """
    rules = m.rules
    is_site = sites >= 0
    pids = jnp.maximum(sites, 0)
    mms = lax.div(pids, jnp.int32(m.shape.num_vpns))
    any_writable = (is_site & ((ptes & st.PTE_WRITABLE) != 0)).any()
    any_dirty = (is_site & ((ptes & st.PTE_DIRTY) != 0)).any()
    backing, version = row[st.PAGE_OF], row[st.VERSION]
    _, stored, home = m.get("backing", backing)
    drops = (backing >= m.shape.num_file_pages) & ((home & 3) == 2) & ~any_dirty
    is_dirty = any_dirty | ((version != stored) & ~drops)

    masks = m.get("cpumask", mms)
    others = ~cpumask.is_empty(masks & ~cpumask.single(cpu, m.words))
    flushes = is_site & (rules.reclaim_flush != NEVER)
    queued = flushes & (rules.reclaim_flush != PAGE) & others
    admitted = jnp.where(rules.defer_pages == 0, ~any_writable, jnp.where(rules.defer_pages == 1, ~is_dirty, True))
    deferred = m.split(enabled & may_defer & admitted & queued.any() & (rules.init_on_free != REFUSED))
    union = lax.reduce(jnp.where(queued[:, None], masks, jnp.uint32(0)), jnp.uint32(0), lax.bitwise_or, (0,))
    batched, defers = enabled & ~deferred, enabled & deferred
    m.set_mask("batch_mask", m.batch_mask | union, batched)
    m.put_regs(batched & queued.any(), need_flush=1)
    m.set_mask("deferred_mask", m.deferred_mask | union, defers)
    bumps_pending = jnp.where(deferred, (rules.munmap_debt_rule == 3) | (rules.munmap_debt_rule == 5), rules.batched_pending == 1)
    _bump_generations(m, mms, enabled & queued, bumps_pending)

    # The debt of the frame, and the trace that each deferred PTE leaves.
    owner = row[st.OWNER]
    for slot in range(m.shape.rmap_slots):
        owner = jnp.where(queued[slot], frames.join_owner(m, owner, mms[slot]), owner)
    m.put("owed", frame, m.get("owed", frame) | union, defers)
    m.put("frame", (frame, slice(st.OWNER, st.CLOCK + 1)), jnp.stack([owner, m.now, m.r.unmap_clock]), defers)
    m.count("deferred_unmaps", defers)
    left_behind = defers & queued
    vmas = m.get("page", pids, st.VMA)
    m.put("vma_flag", vmas, 1, left_behind & (rules.munmap_debt_rule == 1))
    m.put("mm", (mms, st.VA_DEBT), 1, left_behind & (rules.va_rule == 1))
    in_scope = defers & (rules.debt_scope == 1)
    m.put("mm_owed", mms, m.get("mm_owed", mms) | masks, in_scope & queued)
    m.put("mm", (mms, st.DEBT_CLOCK), m.r.unmap_clock, in_scope & queued)
    of_file = in_scope & (backing < m.shape.num_file_pages)
    m.put("file_owed", backing, m.get("file_owed", backing) | union, of_file)
    m.put("file_clock", backing, m.r.unmap_clock, of_file)
    marks = deferred & queued & ((rules.munmap_debt_rule == 2) | (rules.va_rule == 1))
    m.put("page", (pids, st.CHANGED), m.now, enabled & is_site)
    m.put("rmap", frame, jnp.full_like(sites, -1), enabled)
    return Cleared(flushes & ~queued, queued, marks, deferred, any_dirty, is_dirty, drops)


def _bump_generations(m: Draft, mms: Array, queued: Array, bumps_pending: Array) -> None:
    """Each queued PTE moves its process's generation on (two PTEs of one process move it twice), and ``pending`` where asked."""
    counts = (queued[:, None] & (mms[:, None] == jnp.arange(m.shape.num_processes))).sum(0, dtype=jnp.int32)
    added = jnp.stack([counts, jnp.where(bumps_pending, counts, 0)], -1)
    m.add("mm", (slice(None), slice(st.TLB_GEN, st.PENDING + 1)), added, queued.any())


def unmap(m: Draft, enabled: Array) -> None:
    """The rest of an unmap: flush page by page what is due, flush the batch before a dirty page is written out, write it out."""
    back = enabled & (m.r.phase == Phase.UNMAP_FLUSHED)
    todo = enabled & (m.r.phase == Phase.UNMAP)
    flushes = flush_site(m, todo, Phase.UNMAP, cpu=m.r.rc_cpu)
    hurries = todo & ~flushes & (m.r.un_dirty >= 2) & (m.rules.flush_dirty == 1)
    m.set_mask("batch_mask", m.batch_mask | m.deferred_mask, hurries & (m.r.un_deferred == 1))
    before_write = hurries & ((m.r.need_flush == 1) | (m.r.un_deferred == 1))
    m.flush_batch(before_write, Phase.UNMAP_FLUSHED, cpu=m.r.rc_cpu, mask=m.batch_mask, payer=Payer.RECLAIM)
    batch_flushed(m, back)
    ends = back | (todo & ~flushes & ~before_write)
    m.goto(Phase.RECLAIM, ends)
    frame = m.r.un_frame
    row = m.get("frame", frame)
    backing = row[st.PAGE_OF]
    home = m.get("backing", backing, st.HOME)
    _append(m, frame, backing, row[st.VERSION], home, m.r.un_deferred == 1, m.r.un_dirty > 0, ends)


def flush_site(m: Draft, enabled: Array, then: Phase, *, cpu: Array) -> Array:
    """Flush one of the PTEs in ``un_sites``, and continue in ``then``. Returns whether there was one."""
    sites = m.get("un_sites")
    due = sites >= 0
    slot = jnp.argmax(due)
    site = jnp.where(jnp.arange(due.shape[0]) == slot, jnp.maximum(sites, 0), 0).sum(dtype=jnp.int32)
    flushes = enabled & due.any()
    m.put("un_sites", slot, -1, flushes)
    mm = lax.div(site, jnp.int32(m.shape.num_vpns))
    vpn = site - mm * m.shape.num_vpns
    m.flush_mm(flushes, then, cpu=cpu, mm=mm, payer=Payer.RECLAIM, start=vpn, end=vpn + 1)
    return flushes


def _append(
    m: Draft, frame: Array, backing: Array, version: Array, home: Array, deferred: Array, is_dirty: Array, enabled: Array
) -> None:  # fmt: skip
    """Write out if dirty, then the frame joins the batch; a full batch is drained."""
    writes = enabled & is_dirty
    removed = enabled & (m.rules.reclaim_remove == 1)
    new_home = jnp.where(removed, (home & 3) - 4, home) | jnp.where(writes, 3, 0)
    m.put("backing", (backing, st.STORED), version, writes)
    m.put("backing", (backing, st.HOME), new_home, writes | removed)
    m.count("pgpgout", writes)
    m.put("frame", (frame, st.STATE), st.IN_BATCH, enabled)
    m.put("batch", m.r.batch_count, frame * 2 + deferred.astype(jnp.int32), enabled)
    m.bump("batch_count", enabled)
    is_full = enabled & (m.r.batch_count >= m.p.reclaim_batch)
    m.put_regs(is_full, dr_cpu=m.r.rc_cpu, dr_ret=Phase.RECLAIM)
    m.goto(Phase.DRAIN, is_full)


def batch_flushed(m: Draft, enabled: Array) -> None:
    """After a flush of the batch: it owes nothing, and debts of the same CPUs may be paid with it."""
    absorbs = enabled & (m.rules.absorb == 1)
    m.set_mask("debt_mask", m.debt_mask & ~m.batch_mask, absorbs)
    m.set_mask("deferred_mask", m.deferred_mask & ~m.batch_mask, absorbs)
    m.set_mask("batch_mask", jnp.zeros_like(m.batch_mask), enabled)
    m.put_regs(enabled, need_flush=0)


def drain(m: Draft, enabled: Array) -> None:
    """try_to_unmap_flush at the end of a list, then free its frames, one at a time. A RECLAIM_FLUSH with arg 1 frees none yet."""
    code = m.r.phase
    stays = (m.r.dr_ret == Phase.COMPLETE) & (m.arg == 1)
    begin = m.split(enabled & (code == Phase.DRAIN))
    m.commit_deferred(begin)
    m.put_regs(begin, dr_next=0, disturbed=m.now)
    flushes = begin & (m.r.need_flush == 1)
    m.flush_batch(flushes, Phase.DRAIN_FLUSHED, cpu=m.r.dr_cpu, mask=m.batch_mask, payer=Payer.RECLAIM)
    flushed = enabled & (code == Phase.DRAIN_FLUSHED)
    batch_flushed(m, flushed)
    pays_all = m.rules.init_on_free == PAID
    debt = m.debt_mask
    pays = ((begin & ~flushes) | flushed) & pays_all & ~cpumask.is_empty(debt)
    m.flush_batch(pays, Phase.DRAIN_FREE, cpu=m.r.dr_cpu, mask=debt, payer=Payer.RECLAIM)
    m.close_generation(pays)

    waits = flushes | pays
    todo = enabled & ~waits & ~stays & (m.r.dr_next < m.r.batch_count)
    frame = m.get("batch", m.r.dr_next) >> 1
    m.bump("dr_next", todo)
    row = m.get("frame", frame)
    frees = m.split(todo & (row[st.STATE] == st.IN_BATCH))
    page = row[st.PAGE_OF]
    home = m.get("backing", page, st.HOME)
    m.put("backing", (page, st.HOME), (home & 3) - 4, frees & (home >> 2 == frame))
    over = enabled & ~waits & (stays | (m.r.dr_next >= m.r.batch_count))
    m.put_regs(over & ~stays, batch_count=0)
    then = jnp.where(over, m.r.dr_ret, Phase.DRAIN_FREE)
    m.goto(then, enabled & ~waits)
    has_debt = owes(m, frame) & ~pays_all
    frames.forget_debt(m, frame, frees & pays_all)
    free_then(m, frame, m.r.dr_cpu, frees, then, has_debt=has_debt)
