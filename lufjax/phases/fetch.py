"""FETCH, STORE and STALE: the event row, the access through the TLB, and the judgement of a stale one (docs/MODEL.md sections 5 and 8)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Op, Violation, VmaFlag
from lufjax.kernels import tlb
from lufjax.phases import Phase
from lufjax.phases.draft import Draft

TAKE_AWAY = (Op.MUNMAP, Op.MADVISE_DONTNEED, Op.MREMAP, Op.EXIT)
"""Calls after which a page, unless it is shared, is not what it was."""
RECENT = 8
"""A disturbance as few events ago as this is not followed by a stretch: it is not worth a look."""
NEAR = 32
"""Events that the near part of a stretch leans back at most: it can be passed over soon after a disturbance."""
LENGTH_BITS = 15
"""A record of :mod:`lufjax.stripping` has the length of a stretch in these low bits, and that of its near part above."""
NO_BACKING = -9
"""Names no content at all: a store through it overwrites somebody's bytes."""


def fetch(m: Draft, enabled: Array) -> None:
    """Start an event: the access, or the phase that executes the operation."""
    is_access = m.split((m.op == Op.LOAD) | (m.op == Op.STORE))
    skips = pass_over(m, enabled & is_access)
    enabled = enabled & ~skips
    can_run = (m.cpu_row[st.LAZY] == 0) & (m.cpu_row[st.GATHER_KIND] == 0)
    is_quiet = access(m, enabled & is_access & can_run)
    is_quiet |= (m.op == Op.NOP) | (m.op == Op.TICK)
    m.put_regs(enabled & ~(is_quiet & (m.r.kswapd_on == 0)), disturbed=m.now)
    m.disabled(enabled & is_access & ~can_run)
    m.complete(enabled & (m.op == Op.NOP))
    is_mapping = (m.op >= Op.MMAP) & (m.op <= Op.MADVISE_DONTNEED)
    m.goto(Phase.MAPPING, enabled & is_mapping)
    m.goto(Phase.FINISH, enabled & (m.op == Op.GATHER_FINISH))
    is_schedule = (m.op == Op.SWITCH) | (m.op == Op.TICK)
    m.goto(Phase.SCHEDULE, enabled & is_schedule)
    m.goto(Phase.OTHER, enabled & (m.op > Op.GATHER_FINISH) & ~is_schedule)


def pass_over(m: Draft, enabled: Array) -> Array:
    """Pass over the stretch of redundant accesses that begins with this one, if nothing has happened that matters (docs/MODEL.md section 12).

    The packed row of an access names where the trace describes its stretch, 0 if none begins there. Returns whether the stretch is passed over.
    """
    begins = m.split(enabled & (m.arg > 0) & (m.r.disturbed + RECENT < m.now))
    here = jnp.where(begins, m.arg, 0)
    since, lengths, loads, stores = m.get("events", here)
    is_whole = m.r.disturbed < since
    length = jnp.where(is_whole, lengths & ((1 << LENGTH_BITS) - 1), lengths >> LENGTH_BITS)
    skips = m.split(begins & (m.r.kswapd_on == 0) & (is_whole | ((m.r.disturbed < m.now - NEAR) & (length > 0))))
    there = m.get("events", jnp.where(skips, here + length, 0))
    loads, stores = loads - there[2], stores - there[3]
    m.count("accesses", skips, loads + stores)
    m.count("loads", skips, loads)
    m.count("stores", skips, stores)
    m.bump("cursor", skips, length)
    return skips


def access(m: Draft, enabled: Array) -> Array:
    """LOAD or STORE up to the fault: L1, L2, walk. Returns whether it ran, and through no stale entry."""
    flushed_at = m.get("cpu_mm", m.c)[:, st.FLUSHED_AT]
    tag = tlb.tag_of(m.m, m.v)
    index1, index2 = tlb.set_index(m.shape.l1, m.v), tlb.set_index(m.shape.l2, m.v)
    row1 = m.get("tlb1", index1, m.c)
    match1 = tlb.matches(row1, tag, flushed_at)
    hit1 = m.split(match1.any())
    row2 = m.get("tlb2", index2, m.c)
    match2 = tlb.matches(row2, tag, flushed_at)
    hit2 = match2.any()
    is_store = m.split(m.op == Op.STORE)
    m.count("accesses", enabled, m.repeat)
    m.count("loads", enabled & ~is_store, m.repeat)
    m.count("stores", enabled & is_store, m.repeat)
    hit = hit1 | hit2
    entry = jnp.concatenate([tag[None], jnp.where(hit1, tlb.pick(row1, match1), tlb.pick(row2, match2))[st.DATA :]])
    data = entry[st.DATA]
    pte = m.get("pte", m.pid)
    is_present, is_writable = (pte & st.PTE_PRESENT) != 0, (pte & st.PTE_WRITABLE) != 0
    pte_frame = pte >> st.PTE_SHIFT

    used = m.split(hit & (~is_store | ((data & 3) == (st.WRITABLE | st.DIRTY))))
    can_walk = is_present & (~is_store | is_writable)
    upgrade = hit & ~used & can_walk
    walk = ~hit & can_walk
    refill = m.split(upgrade | walk)
    faults = ~used & ~refill
    is_stale = used & (
        ~is_present | (pte_frame != data >> 2) | (is_store & ((pte & (st.PTE_WRITABLE | st.PTE_DIRTY)) != (st.PTE_WRITABLE | st.PTE_DIRTY)))
    )

    m.count("stlb_hit", enabled & ~hit1 & hit2)
    m.count("dtlb_load_misses", enabled & ~hit & ~is_store)
    m.count("dtlb_store_misses", enabled & ~hit & is_store)
    m.count("walk_completed", enabled & walk)
    m.count("spurious_fault", enabled & upgrade & ((data & st.WRITABLE) == 0))

    new_pte = pte | st.PTE_ACCESSED | jnp.where(is_store, st.PTE_DIRTY, 0)
    m.put("pte", m.pid, new_pte, enabled & refill & (new_pte != pte))
    new_data = pte_frame * 4 + jnp.where((new_pte & st.PTE_WRITABLE) != 0, st.WRITABLE, 0) + jnp.where((new_pte & st.PTE_DIRTY) != 0, st.DIRTY, 0)
    fresh = jnp.stack([tag, new_data, m.now, m.now])
    nothing = jnp.stack([jnp.full_like(tag, -1), jnp.zeros_like(tag), jnp.zeros_like(tag), jnp.zeros_like(tag)])
    dropped = hit & faults
    entry = jnp.where(refill, fresh, jnp.where(dropped, nothing, entry))
    way1 = jnp.where(hit1, tlb.way_of(match1), tlb.victim(m.shape.l1, row1, match1, flushed_at))
    way2 = tlb.victim(m.shape.l2, row2, match2, flushed_at)
    uses1, uses2 = used | refill, (~hit1 & used) | refill
    tlb.write(m, "tlb1", m.shape.l1, index1, row1, way1, entry, enabled=enabled & (uses1 | (dropped & hit1)), used=uses1, is_there=hit1 & used)
    tlb.write(m, "tlb2", m.shape.l2, index2, row2, way2, entry, enabled=enabled & (uses2 | (dropped & hit2)), used=uses2, is_there=hit2 & used)

    m.put_regs(enabled & (used | refill), store_frame=jnp.where(refill, pte_frame, data >> 2))
    m.put_regs(enabled & is_stale, loop=entry[st.FILLED])
    m.goto(Phase.STALE, enabled & is_stale)
    m.goto(Phase.STORE, enabled & is_store & (refill | (used & ~is_stale)))
    m.goto(Phase.FAULT, enabled & faults)
    m.complete(enabled & ~faults & ~is_stale & ~is_store)
    return enabled & ~is_stale


def store(m: Draft, enabled: Array) -> None:
    """Perform a store through ``store_frame``: the truth of the page's backing moves on, and the frame's content with it."""
    backing = m.get("page", m.pid, st.BACKING)
    row = m.get("backing", backing)
    truth = row[st.TRUTH] + 1
    m.put("backing", backing, jnp.stack([truth, row[st.STORED], row[st.HOME] & ~2]), enabled)
    write_content(m, m.r.store_frame, backing, truth, enabled)
    m.complete(enabled)


def write_content(m: Draft, frame: Array, backing: Array, version: Array, enabled: Array) -> None:
    """A store reached ``frame``: it holds the new version if it held that backing, otherwise somebody's bytes are overwritten."""
    agrees = m.get("frame", frame, st.CONTENT) == backing
    content = jnp.stack([jnp.where(agrees, backing, st.CORRUPT), jnp.where(agrees, version, 0)])
    m.put("frame", (frame, slice(st.CONTENT, st.VERSION + 1)), content, enabled)


def stale(m: Draft, enabled: Array) -> None:
    """Judge the stale access through ``store_frame``, filled at ``loop``; a stale store is then performed."""
    is_store = m.op == Op.STORE
    frame, filled = m.r.store_frame, m.r.loop
    page, row = m.get("page", m.pid), m.get("frame", frame)
    is_mapped, backing = (page[st.PROMISE] & 1) != 0, page[st.PROMISE] >> 2
    truth, _, home = m.get("backing", backing)
    index = backing - m.shape.num_file_pages
    parent = jnp.where(index >= 0, m.get("parent", index), -1)
    content, version, advanced = row[st.CONTENT], row[st.VERSION], page[st.EPOCH] > filled
    classes = classes_of(Facts(
        is_store=is_store, is_mapped=is_mapped, is_writable=(page[st.PROMISE] & 2) != 0, is_reused=row[st.HANDED] > filled, advanced=advanced,
        is_backed=(page[st.VMA] >= 0) & (page[st.BACKING] == backing), is_dropped=_is_being_dropped(m, page), holds=content == backing,
        is_current=version == truth, is_older=version < truth, holds_parent=(parent >= 0) & (content == parent), is_home=home >> 2 == frame,
        harvested=(home & 2) != 0,
    ))  # fmt: skip
    assert classes.shape[0] == len(Violation)
    hits = enabled & classes
    column = jnp.where(is_store, 1, 0)
    here = jnp.stack([m.now, m.c, m.m, m.v])
    first = m.get("first")
    is_first = hits & (first[:, 0] == 0)
    m.put("first", (), jnp.where(is_first[:, None], here, first), is_first.any())
    m.add("violations", (), jnp.where(hits[:, None] & (jnp.arange(2) == column), m.repeat, 0), hits.any())
    m.count("tolerated", enabled & ~classes.any(), m.repeat)
    m.count("tolerated_epoch", enabled & ~classes.any() & advanced, m.repeat)
    m.tally("age_at_use", m.now - page[st.CHANGED], enabled, m.repeat)

    stores = enabled & is_store
    write_content(m, frame, jnp.where(is_mapped, backing, NO_BACKING), truth + 1, stores)
    m.add("backing", (backing, st.TRUTH), 1, stores & is_mapped)
    m.complete(enabled)


def _is_being_dropped(m: Draft, page: Array) -> Array:
    """Whether a call that takes the page of the event away, and has visited it, is in progress on any CPU."""
    cpus, ranges, flags = m.get("cpu"), m.get("gather"), m.get("vma", jnp.maximum(page[st.VMA], 0))
    is_shared = (page[st.VMA] >= 0) & ((flags & VmaFlag.SHARED) != 0)
    is_open = jnp.isin(cpus[:, st.GATHER_KIND], jnp.array(TAKE_AWAY, jnp.int32)) & (cpus[:, st.LOADED] == m.m)
    return ~is_shared & (is_open & (ranges[:, st.VS] <= m.v) & (m.v < ranges[:, st.VE])).any()


class Facts(NamedTuple):
    """What the classes of a stale access depend on: of the access, the promise of its page (which names a backing b), and the frame f.

    Attributes:
        is_store: a store. is_mapped, is_writable: the promise. is_reused: f was handed out after the entry was filled. advanced: so did the promise.
        is_backed: the page has a VMA and its backing is b. is_dropped: a call in progress takes it away. holds: f holds b.
        is_current, is_older: in the version that is the truth, or one before.
        holds_parent: f holds what b was copied from. is_home: f is the home of b. harvested: b was written out since it was stored to.
    """

    is_store: Array
    is_mapped: Array
    is_writable: Array
    is_reused: Array
    advanced: Array
    is_backed: Array
    is_dropped: Array
    holds: Array
    is_current: Array
    is_older: Array
    holds_parent: Array
    is_home: Array
    harvested: Array


def classes_of(f: Facts) -> Array:
    """``bool[classes]``: which classes of docs/MODEL.md section 8 a stale access violates."""
    exact = f.is_mapped & f.holds & f.is_current
    is_backed = f.is_backed & ~f.is_dropped
    named = f.is_mapped & ~f.advanced & is_backed
    return jnp.stack([
        f.is_reused & ~exact,
        f.advanced & ~f.is_dropped & ~exact,
        f.is_store & f.is_mapped & ~f.is_writable,
        f.is_store & (named | (exact & is_backed)) & (~f.is_home | f.harvested),
        ~f.is_store & named & ((f.holds & f.is_older) | f.holds_parent),
        jnp.zeros_like(exact),
    ])  # fmt: skip
