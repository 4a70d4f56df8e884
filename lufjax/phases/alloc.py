"""ALLOC: a frame for CPU ``c``, or none; REFILL and PCP_DRAIN: the per-CPU lists (docs/MODEL.md sections 5 and 9)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Op, Payer
from lufjax.kernels import cpumask, frames
from lufjax.phases import Phase
from lufjax.phases.draft import Draft


def alloc(m: Draft, enabled: Array) -> None:
    """get_page_from_freelist: wake kswapd, reclaim directly, refill, pop, and discharge the frame's debt at its take-off."""
    code, done = m.r.phase, m.split(enabled & (m.r.phase == Phase.ALLOC_DONE))
    in_load_mode = m.p.load_mode == 1
    begin = enabled & (code == Phase.ALLOC)
    m.put_regs(begin & in_load_mode & (m.r.free_count < m.p.wmark_low), kswapd_on=1)
    m.put_regs(begin, rf_tag=0)
    stalls = m.split(begin & in_load_mode & (m.r.free_count < m.p.wmark_min))
    m.count("allocstall", stalls)
    m.put_regs(stalls, rc_pages=2, rc_entries=4, rc_cpu=m.c, rc_background=0, rc_named=-1, rc_ret=Phase.ALLOC_TAKE)
    m.goto(Phase.RECLAIM, stalls)

    todo = enabled & ~stalls & ~done
    head, count = m.get("pcp", m.c)
    pcp_empty = count == 0
    both_empty = pcp_empty & (m.r.free_count == 0)
    drains = todo & in_load_mode & both_empty & ((code == Phase.ALLOC) | (code == Phase.ALLOC_TAKE))
    m.put_regs(drains, dr_cpu=m.c, dr_ret=Phase.ALLOC_RETRY)
    m.goto(Phase.DRAIN, drains)
    releases = todo & in_load_mode & both_empty & (code == Phase.ALLOC_RETRY) & (m.r.q_count > 0)
    m.put_regs(releases, rl_all=1, rl_ret=Phase.ALLOC_POP)
    m.goto(Phase.RELEASE, releases)
    todo = todo & ~drains & ~releases
    refills = todo & pcp_empty & (m.r.free_count > 0)
    m.put_regs(refills, rf_left=jnp.minimum(m.p.pcp_batch, m.r.free_count))
    m.goto(Phase.REFILL, refills)
    fails = todo & pcp_empty & (m.r.free_count == 0)
    spills = fails & (m.r.slow_count > 0)
    m.goto(Phase.SPILL, spills)
    fails = fails & ~spills
    m.count("alloc_fail", fails)
    m.put_regs(fails, alloc_frame=-1)
    m.goto(m.r.alloc_ret, fails)

    pops = m.split(todo & ~pcp_empty)
    top = m.get("pcp_ring", m.c, head & (st.ring_size(m.shape.pcp_slots) - 1))
    frame = jnp.where(pops, top, m.r.alloc_frame)
    m.put("pcp", m.c, jnp.stack([head + 1, count - 1]), pops)
    m.put_regs(pops, alloc_frame=frame, fl_sent=0)
    is_half = m.op == Op.TAKE_OFF
    m.goto(Phase.TAKEN, pops & is_half)
    row, owed = debt_of(m, m.get("frame", frame)), m.get("owed", frame)
    m.bump("nr_pending", pops & ~cpumask.is_empty(owed), -1)
    flushes = discharge(m, row, owed, pops & ~is_half, cpu=m.c, is_foreign=m.r.alloc_foreign == 1, then=Phase.ALLOC_DONE)
    taken = (pops & ~is_half & ~flushes) | done
    hand_out(m, frame, taken)
    m.goto(m.r.alloc_ret, taken)


def hand_out(m: Draft, frame: Array, enabled: Array) -> None:
    """A frame whose debt is paid has a new owner."""
    m.tally("ipis_per_alloc", m.r.fl_sent, enabled)
    nothing = jnp.zeros_like(m.now)
    clean = jnp.stack([m.now, nothing, nothing, nothing - 1, nothing, nothing])
    m.put("frame", (frame, slice(st.HANDED, st.CLOCK + 1)), clean, enabled)
    m.put("owed", frame, jnp.zeros((m.words,), jnp.uint32), enabled)


def discharge(
    m: Draft, row: Array, owed: Array, enabled: Array, *, cpu: Array, is_foreign: Array | bool, then: Phase
) -> Array:  # fmt: skip
    """Take-off by ``cpu``: request the flush that the debt calls for, of which FRAME_TAG to CLOCK of ``row`` are used, and continue in ``then``.

    Returns whether there is one.
    """
    has_debt = m.split(enabled & ~cpumask.is_empty(owed))
    new_owner = jnp.where(is_foreign, -1, m.loaded)
    by_owner = m.rules.reclaim_flush == 4
    recycled = has_debt & by_owner & (row[st.OWNER] == new_owner) & (new_owner >= 0)
    m.count("recycled", recycled)
    per_frame = is_paid_alone(m)
    unpaid = jnp.where(per_frame, has_debt & ~recycled, enabled & (row[st.FRAME_TAG] != 0))
    targets = targets_of(m, row, owed)
    m.commit_deferred(unpaid & ~per_frame)
    flushes = unpaid & ~cpumask.is_empty(targets)
    m.count("absorbed", unpaid & ~flushes)
    m.count("discharged_by_foreign", flushes & is_foreign)
    m.count("discharges", flushes & per_frame)
    m.tally("age_at_discharge", m.now - row[st.SINCE], flushes & has_debt)
    m.flush_batch(flushes, then, cpu=cpu, mask=targets, payer=Payer.ALLOC)
    m.close_generation(flushes & ~per_frame)
    return flushes


def is_paid_alone(m: Draft) -> Array:
    """Whether a take-off pays for its own frame only, not for the open generation."""
    return (m.rules.reclaim_flush == 4) | (m.rules.debt_merge == 1)


def targets_of(m: Draft, row: Array, owed: Array) -> Array:
    """CPUs that the take-off of a frame by a stranger has to flush: its own, or those of the open generation if it belongs to it."""
    covered = cpumask.from_bits(m.get("cpu")[:, st.COVERED] >= row[st.CLOCK], m.words)
    own = jnp.where(m.rules.targets == 1, owed & ~covered, owed)
    return jnp.where(is_paid_alone(m), own, jnp.where(row[st.FRAME_TAG] == m.r.ugen, m.debt_mask | m.deferred_mask, jnp.uint32(0)))


def debt_of(m: Draft, row: Array) -> Array:
    """The row of a frame as its take-off sees it: its tag is the newest of its own and of those that the task took over at its refill."""
    tag = frames.latest(m, m.r.rf_tag, row[st.FRAME_TAG])
    return jnp.where(jnp.arange(row.shape[0]) == st.FRAME_TAG, tag, row)


def pcp(m: Draft, enabled: Array) -> None:
    """rmqueue_bulk and free_pcppages_bulk, a bounded number of frames at a time."""
    refills = m.split(enabled & (m.r.phase == Phase.REFILL))
    drains = enabled & (m.r.phase == Phase.PCP_DRAIN)
    cpu = jnp.where(refills, m.c, m.r.pd_cpu)
    left = frames.move_frames(m, cpu, jnp.where(refills, m.r.rf_left, m.r.pd_left), refills, drains)
    m.put_regs(refills, rf_left=left)
    m.put_regs(drains, pd_left=left)
    refilled = jnp.where(m.op == Op.ALLOC_ATOMIC, Phase.ATOMIC_CHOOSE, Phase.ALLOC_POP)
    m.goto(jnp.where(refills, refilled, m.r.pd_ret), enabled & (left == 0))


def free_then(m: Draft, frame: Array, cpu: Array, enabled: Array, then: Array | Phase, *, has_debt: Array) -> None:
    """Free a frame and continue in ``then``, by way of PCP_DRAIN if the list overflowed, of FREE_SLOW if the frame does not belong there."""
    count, overflows = frames.free_frame(m, frame, cpu, enabled, has_debt=has_debt)
    is_slow = enabled & (frame >= m.p.fast_frames)
    moves = overflows | is_slow
    m.goto(then, enabled & ~moves)
    m.put_regs(moves, pd_cpu=cpu, pd_left=jnp.minimum(m.p.pcp_batch, count), pd_ret=then)
    m.goto(jnp.where(is_slow, Phase.FREE_SLOW, Phase.PCP_DRAIN), moves)


def put_then(m: Draft, frame: Array, row: Array, cpu: Array, enabled: Array, then: Phase, *, has_debt: Array) -> None:
    """A holder lets go of a frame (``row`` of it); the last one frees it if its page is gone. Continues in ``then``."""
    is_gone = (row[st.STATE] == st.HELD) | (row[st.STATE] == st.QUARANTINED)
    m.add("frame", (frame, st.REFS), -1, enabled)
    m.goto(then, enabled)
    free_then(m, frame, cpu, enabled & is_gone & (row[st.REFS] == 1), then, has_debt=has_debt)


def owes(m: Draft, frame: Array) -> Array:
    """Whether a frame carries a debt."""
    return ~cpumask.is_empty(m.get("owed", frame))
