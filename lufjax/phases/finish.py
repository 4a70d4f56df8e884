"""FINISH: the end of a mapping call: its flush, the frames it held, its promise; RELEASE: the end of the quarantine (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Op, Payer, VmaFlag
from lufjax.kernels import cpumask, frames
from lufjax.phases import Phase
from lufjax.phases.alloc import owes, put_then
from lufjax.phases.draft import Draft
from lufjax.phases.flush import LOCAL
from lufjax.phases.mapping import GATHER_NOW, GATHER_OWNER, GATHER_PAGE, GATHER_TICKS, RULE_ALWAYS, locks_for_reading

AT_ONCE, BY_OWNER, BY_TICKS = range(3)
"""What becomes of the held frames (``fin_mode``): freed; freed with a debt; quarantined."""


def finish(m: Draft, enabled: Array) -> None:
    """tlb_finish_mmu: flush, then free what was held, then the call returns and its promise holds."""
    code = m.r.phase
    kind = m.cpu_row[st.GATHER_KIND]
    begin = enabled & (code == Phase.FINISH)
    is_open = kind > 0
    m.disabled(begin & ~is_open)
    gather = m.get("gather", m.c)
    cpumask_of_mm = m.get("cpumask", m.m)
    flushes = _flush(m, begin & is_open, kind, gather, cpumask_of_mm)

    # Held frames, one at a time.
    frees = (begin & is_open & ~flushes) | (enabled & (code == Phase.FINISH_HELD))
    has_held = frees & (m.r.loop < gather[st.NUM_HELD])
    marks = has_held & (kind == Op.MADVISE_FREE)
    m.goto(Phase.LAZYFREE_MARK, marks)
    puts = has_held & ~marks
    _free_held(m, m.get("held", m.c, m.r.loop), cpumask_of_mm, puts)
    over = frees & ~has_held
    m.put("mm", (m.m, st.VA_DEBT), 1, over & (m.r.fin_mode != AT_ONCE))
    m.put_regs(puts, loop=m.r.loop + 1)
    m.put_regs(over, loop=0)

    # Pages, one at a time; then the gather is closed.
    promises = over | (enabled & (code == Phase.FINISH_PROMISE))
    vpn = gather[st.VS] + m.r.loop
    _promise(m, vpn, kind, gather, promises & (kind != Op.MADVISE_FREE))
    m.put_regs(promises, loop=m.r.loop + 1)
    m.goto(Phase.FINISH_PROMISE, promises)
    closes = promises & (vpn + 1 >= gather[st.VE])
    m.add("mm", (m.m, st.GATHERS), -1, closes)
    m.add("mm", (m.m, st.EXCL), -1, closes & ~locks_for_reading(kind))
    m.put("cpu", (m.c, st.GATHER_KIND), 0, closes)
    m.put("gather", m.c, jnp.zeros((6,), jnp.int32), closes)
    m.count("nr_gathers", closes)
    ends = (kind == Op.EXIT) & (m.arg == 1)
    m.complete(closes & ~ends)
    m.goto(Phase.LEAVE, closes & ends)


def _flush(m: Draft, enabled: Array, kind: Array, gather: Array, mask: Array) -> Array:
    """Decide the flush and what becomes of the held frames. Returns whether a flush was requested."""
    rules, row = m.rules, m.get("mm", m.m)
    cleared, tables = gather[st.CLEARED] == 1, (m.arg == 1) | (kind == Op.FORK)
    always = rules.munmap_debt_rule == RULE_ALWAYS
    nested = row[st.GATHERS] > 1
    need = enabled & (cleared | tables | always | nested)
    may_wait = (kind == Op.MUNMAP) | (kind == Op.MADVISE_DONTNEED)
    lazy_kind = may_wait & cleared & ~tables
    fits = m.r.q_count + gather[st.NUM_HELD] <= rules.quarantine_slots
    flush = rules.gather_flush
    by_owner = need & (flush == GATHER_OWNER) & lazy_kind
    by_ticks = need & (flush == GATHER_TICKS) & lazy_kind & fits
    at_once = need & (
        (flush == GATHER_NOW)
        | ((flush == GATHER_PAGE) & (tables | always))
        | ((flush == GATHER_OWNER) & (tables | ~may_wait))
        | ((flush == GATHER_TICKS) & ~by_ticks)
    )
    whole = nested | always | ~cleared | (kind == Op.EXIT) | (kind == Op.FORK)
    m.put_regs(enabled, loop=0, fin_mode=jnp.where(by_owner, BY_OWNER, jnp.where(by_ticks, BY_TICKS, AT_ONCE)))
    m.flush_mm(
        at_once | by_ticks, Phase.FINISH_HELD, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=jnp.where(whole, 0, gather[st.CS]),
        end=jnp.where(whole, -1, gather[st.CE]), tables=tables | nested,
    )  # fmt: skip
    m.put_regs(by_ticks, fl_batch=LOCAL)
    others = mask & ~cpumask.single(m.c, m.words)
    m.put("sweep", m.m, m.get("sweep", m.m) | others, by_ticks)
    m.add("mm", (m.m, st.TLB_GEN), 1, by_owner)
    return at_once | by_ticks


def _free_held(m: Draft, frame: Array, mask: Array, enabled: Array) -> None:
    """One held frame: freed, freed with a debt to this process's CPUs, or quarantined."""
    row = m.get("frame", frame)
    is_held = row[st.STATE] == st.HELD
    owner = enabled & (m.r.fin_mode == BY_OWNER)
    joined = frames.join_owner(m, row[st.OWNER], m.m)
    owed = jnp.where(owner, m.get("owed", frame) | mask, m.get("owed", frame))
    m.put("owed", frame, owed, owner)
    m.put("frame", (frame, slice(st.OWNER, st.CLOCK + 1)), jnp.stack([joined, m.now, m.r.unmap_clock]), owner)
    m.count("deferred_unmaps", owner)

    ticks = enabled & (m.r.fin_mode == BY_TICKS)
    slot = (m.r.q_head + m.r.q_count) & (st.ring_size(m.shape.quarantine_slots) - 1)
    entry = jnp.stack([frame, (~is_held).astype(jnp.int32), m.get("cpu", 0, st.TICKS), m.m])
    m.put("quarantine", slot, entry, ticks)
    m.bump("q_count", ticks)
    m.put("frame", (frame, st.STATE), st.QUARANTINED, ticks & is_held)

    m.goto(Phase.FINISH_HELD, ticks)
    put_then(m, frame, row, m.c, enabled & ~ticks, Phase.FINISH_HELD, has_debt=~cpumask.is_empty(owed))


def _promise(m: Draft, vpn: Array, kind: Array, gather: Array, enabled: Array) -> None:
    """The call returns for one page: the promise is the mapping as it is now."""
    pid = m.m * m.shape.num_vpns + vpn
    page = m.get("page", pid)
    is_mapped = page[st.VMA] >= 0
    old, was_mapped = page[st.PROMISE] >> 2, (page[st.PROMISE] & 1) != 0
    unmaps = enabled & (kind != Op.MPROTECT) & (kind != Op.FORK)
    releases = unmaps & was_mapped & (old >= m.shape.num_file_pages) & (~is_mapped | (old != page[st.BACKING]))
    frames.release_anon(m, old, releases)
    flags = m.get("vma", jnp.maximum(page[st.VMA], 0))
    writable = ((flags & VmaFlag.WRITE) != 0) & ~frames.is_copy_on_write(m, flags, page[st.BACKING])
    promise = jnp.where(is_mapped, page[st.BACKING] * 4 + writable.astype(jnp.int32) * 2 + 1, 0)
    epoch = jnp.where(unmaps, m.now, page[st.EPOCH])
    m.put("page", (pid, slice(st.PROMISE, st.EPOCH + 1)), jnp.stack([promise, epoch]), enabled)
    pte = m.get("pte", pid)
    in_range = (vpn >= gather[st.CS]) & (vpn < gather[st.CE])
    m.put("pte", pid, st.PTE_MARKER, enabled & (m.r.fin_mode != AT_ONCE) & in_range & ((pte & st.PTE_PRESENT) == 0))


def release(m: Draft, enabled: Array) -> None:
    """End of the quarantine, one frame at a time: CPUs that have not swept yet are interrupted."""
    code = m.r.phase
    head = m.get("quarantine", m.r.q_head & (st.ring_size(m.shape.quarantine_slots) - 1))
    frame, mm = head[st.Q_FRAME], head[st.Q_PROCESS]
    is_due = (m.r.q_count > 0) & ((m.r.rl_all == 1) | (m.get("cpu", 0, st.TICKS) - head[st.Q_STAMP] >= m.rules.latr_ticks))
    begin = enabled & (code == Phase.RELEASE)
    m.goto(m.r.rl_ret, begin & ~is_due)
    todo = begin & is_due
    m.put_regs(todo, disturbed=m.now)
    gives_up = todo & ~cpumask.is_empty(m.get("sweep", mm))
    m.put("sweep", mm, jnp.zeros((m.words,), jnp.uint32), gives_up)
    m.count("give_ups", gives_up)
    m.flush_mm(gives_up, Phase.RELEASE_FREE, cpu=m.c, mm=mm, payer=Payer.ALLOC)
    frees = (todo & ~gives_up) | (enabled & (code == Phase.RELEASE_FREE))
    m.bump("q_head", frees)
    m.bump("q_count", frees, -1)
    put_then(m, frame, m.get("frame", frame), m.c, frees, Phase.RELEASE, has_debt=owes(m, frame))
