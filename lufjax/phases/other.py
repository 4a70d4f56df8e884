"""OTHER: scheduling, write(2), explicit reclaim, allocations by others (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import MicroOp, Op, Payer
from lufjax.kernels import cpumask, frames
from lufjax.phases import Phase
from lufjax.phases.alloc import free_then, owes
from lufjax.phases.draft import Draft
from lufjax.phases.fault import hold, keep


def schedule(m: Draft, enabled: Array) -> None:
    """SWITCH (switch_mm_irqs_off, enter_lazy_tlb) and TICK."""
    is_switch, is_tick = m.op == Op.SWITCH, m.op == Op.TICK
    blocked = is_switch & (m.cpu_row[st.GATHER_KIND] != 0)
    m.disabled(enabled & blocked)
    todo = enabled & ~blocked
    to_idle, ticks = todo & is_switch & (m.arg < 0), todo & is_tick
    runs = todo & is_switch & (m.arg >= 0)
    gens, row = m.get("mm")[:, st.TLB_GEN], m.get("cpu_mm", m.c)

    # The lazy flushes that this CPU owes, for every process.
    here = cpumask.single(m.c, m.words)
    sweep = m.get("sweep")
    owes_sweep = (runs | ticks) & ((sweep & here) != 0).any(-1)
    m.put("sweep", (), sweep & ~here, owes_sweep.any())
    m.count("sweeps", owes_sweep.any(), owes_sweep.sum(dtype=jnp.int32))

    mm, old = jnp.maximum(m.arg, 0), m.loaded
    changes = runs & (old != mm)
    masks = m.get("cpumask")
    processes = jnp.arange(m.shape.num_processes)
    leaves = changes & (m.rules.mask_on_switch == 0) & (processes == old)
    masks = jnp.where(leaves[:, None], masks & ~here, masks)
    masks = jnp.where((runs & (processes == mm))[:, None], masks | here, masks)
    m.put("cpumask", (), masks, runs)
    is_behind = (row[:, st.GEN_DONE] != gens) & ~owes_sweep
    flushes = runs & (m.rules.switch_flush == 1) & is_behind & (processes == mm)
    caught_up = jnp.stack([gens, jnp.full_like(gens, m.now)], -1)
    new = jnp.where((owes_sweep | flushes)[:, None], caught_up, row)
    m.put("cpu_mm", m.c, new, owes_sweep.any() | flushes.any())
    loaded = jnp.where(runs, mm, m.loaded)
    lazy = jnp.where(runs, 0, jnp.where(to_idle, 1, m.cpu_row[st.LAZY]))
    tick = m.cpu_row[st.TICKS] + ticks.astype(jnp.int32)
    m.put("cpu", m.c, jnp.stack([loaded, lazy, m.cpu_row[st.GATHER_KIND], tick, m.cpu_row[st.COVERED]]), todo)
    m.count("switches", changes)
    m.count("switch_flushes", flushes.any())
    releases = ticks & (m.c == 0) & (m.r.q_count > 0)
    m.put_regs(releases, rl_all=0, rl_ret=Phase.COMPLETE)
    m.put_regs(owes_sweep.any(), disturbed=m.now)
    m.complete(todo & ~releases)
    m.goto(Phase.RELEASE, releases)


def complete(m: Draft, enabled: Array) -> None:
    """The event is over."""
    m.complete(enabled)


def other(m: Draft, enabled: Array) -> None:
    """The operations that are neither accesses, mapping calls nor scheduling."""
    code = m.r.phase
    begin = enabled & (code == Phase.OTHER)
    allocated = enabled & (code == Phase.OTHER_ALLOCATED)
    is_write = m.op == Op.FILE_WRITE
    is_foreign = (m.op == Op.ALLOC_FOREIGN) | (m.op == Op.ALLOC_ATOMIC) | (m.op == Op.DISCHARGE)
    page = m.arg
    truth, stored, packed = m.get("backing", page)
    resident = packed >> 2
    _reclaim(m, begin & (m.op == Op.RECLAIM))
    m.goto(Phase.INVALIDATE, begin & ((m.op == Op.REMOTE_WRITE) | (m.op == Op.TRUNCATE)))
    m.goto(Phase.MAPPING, begin & (m.op == Op.MADVISE_FREE))
    m.goto(Phase.MREMAP, begin & (m.op == Op.MREMAP))
    m.goto(Phase.FORK, begin & (m.op == Op.FORK))
    m.goto(Phase.EXIT, begin & (m.op == Op.EXIT))
    m.goto(Phase.MIGRATE, begin & (m.op == Op.MIGRATE))
    m.goto(Phase.MICRO, begin & (m.op >= MicroOp.PLACE))
    m.goto(Phase.HALF, begin & ((m.op == Op.FAULT_INSTALL) | (m.op == Op.FAULT_FINISH)))
    m.goto(Phase.TAKE, begin & ((m.op == Op.TAKE_OFF) | (m.op == Op.DISCHARGE)))
    m.goto(Phase.ATOMIC, begin & (m.op == Op.ALLOC_ATOMIC))

    drains = begin & (m.op == Op.RECLAIM_FLUSH)
    m.put_regs(drains, dr_cpu=m.c, dr_ret=Phase.COMPLETE)
    m.goto(Phase.DRAIN, drains)

    needs = begin & ((m.op == Op.ALLOC_FOREIGN) | (is_write & (resident < 0)))
    m.put_regs(needs, alloc_foreign=is_foreign, alloc_ret=Phase.OTHER_ALLOCATED)
    m.goto(Phase.ALLOC, needs)
    m.complete(allocated & (m.r.alloc_frame < 0))
    arrives = allocated & (m.r.alloc_frame >= 0)

    gives = begin & (m.op == Op.FREE_FOREIGN)
    m.disabled(gives & (m.r.foreign_count == 0))
    gives = gives & (m.r.foreign_count > 0)
    m.bump("foreign_count", gives, -1)
    given = m.get("foreign", m.r.foreign_count)
    given_owes = owes(m, given)

    # write(2) of one whole page into the page cache, which may have to be filled first.
    frame = jnp.where(arrives | (code == Phase.OTHER_WRITE), m.r.alloc_frame, resident)
    found = begin & is_write & (resident >= 0)
    row = m.get("frame", frame)
    found = found & ~keep(m, frame, row, found, Phase.OTHER)
    rescued = found & (row[st.STATE] == st.IN_BATCH)
    m.count("pgrescued", rescued)
    m.put("frame", (frame, st.STATE), st.USED_STATE, rescued)
    filled = arrives & is_write
    hold(m, frame, page, stored, filled)
    m.put("backing", (page, st.HOME), frame * 4 + (packed & 1), filled)
    frames.lru_append(m, frame, rescued | filled)
    m.put_regs(found, alloc_frame=frame)
    ready = found | filled
    pays = m.forced_flush(ready & (m.rules.file_write_flush == 1), Phase.OTHER_WRITE, Payer.FAULT, mm=-1, page=page)
    writes = (ready & ~pays) | (enabled & (code == Phase.OTHER_WRITE))
    m.put("backing", (page, st.TRUTH), truth + 1, writes)
    m.put("backing", (page, st.HOME), frame * 4 + 1, writes)
    m.put("frame", (frame, slice(st.CONTENT, st.VERSION + 1)), jnp.stack([page, truth + 1]), writes)
    m.complete(writes)

    taken = arrives & is_foreign
    m.put("frame", (frame, slice(st.STATE, st.VERSION + 1)), jnp.array([st.FOREIGN, st.FOREIGN_CONTENT, 0], jnp.int32), taken)
    m.put("foreign", m.r.foreign_count, frame, taken)
    m.bump("foreign_count", taken)
    m.complete(taken)
    free_then(m, given, m.c, gives, Phase.COMPLETE, has_debt=given_owes)


def _reclaim(m: Draft, enabled: Array) -> None:
    """Explicit reclaim: of the page named by (process ``arg``, vpn), or of the list's victim."""
    named = m.arg >= 0
    pid = jnp.maximum(m.arg, 0) * m.shape.num_vpns + m.v
    page = m.get("page", pid)
    frame = jnp.where(page[st.VMA] >= 0, frames.home_of(m, page[st.BACKING]), -1)
    row = m.get("frame", jnp.maximum(frame, 0))
    can = ~named | ((frame >= 0) & (row[st.STATE] == st.USED_STATE) & (row[st.REFS] == 0))
    m.disabled(enabled & ~can)
    todo = enabled & can
    m.put_regs(todo, rc_pages=1, rc_entries=4, rc_cpu=m.c, rc_background=0, rc_named=jnp.where(named, frame, -1), rc_ret=Phase.COMPLETE)
    m.goto(Phase.RECLAIM, todo)
