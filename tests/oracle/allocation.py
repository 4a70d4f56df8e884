"""Frames leave and enter the allocator, and debts are paid at take-off (docs/MODEL.md sections 5 and 9)."""

from __future__ import annotations

from . import flush, frames, reclaim
from .counting import ATOMIC_FLUSH, Counts
from .state import QUARANTINE, TAKEN, Backing, Debt, Process, State

OWNER = 4


def alloc(s: State, n: Counts, c: int, is_foreign: bool = False) -> int | None:
    """Hand out a frame to what runs on CPU ``c``, or None if there is none."""
    taken = _take(s, n, c)
    return None if taken is None else _hand_out(s, n, c, taken, is_foreign)


def take_off(s: State, n: Counts, c: int) -> bool:
    """TAKE_OFF: a frame and its debt go to a task on CPU ``c``. False if it is not enabled."""
    if s.cpus[c].taken is not None:
        return False
    taken = _take(s, n, c)
    if taken is not None:
        s.cpus[c].taken = taken
        s.frames[taken[0]].state = TAKEN
    return True


def discharge(s: State, n: Counts, c: int) -> int | None:
    """DISCHARGE: the task on CPU ``c`` pays and hands its frame out to nobody. None if it is not enabled."""
    taken, s.cpus[c].taken = s.cpus[c].taken, None
    return None if taken is None else _hand_out(s, n, c, taken, True)


def _take(s: State, n: Counts, c: int) -> tuple[int, Debt] | None:
    """Take a frame off the lists, with what is owed for it; None if there is none."""
    cpu, load_mode = s.cpus[c], s.params["load_mode"]
    if load_mode:
        if len(s.free) < s.params["wmark_low"]:
            s.kswapd_on = True
        if len(s.free) < s.params["wmark_min"]:
            n.bump("allocstall")
            reclaim.reclaim(s, n, c, 2, 4, "direct")
        if not cpu.pcp and not s.free:
            reclaim.drain(s, n, c)
            if not cpu.pcp and not s.free and s.quarantine:
                release(s, n, c, True)
    task_tag = _refill(s, c)
    frames_there = cpu.pcp or s.slow
    if not frames_there:
        n.bump("alloc_fail")
        return None
    return _unlist(s, n, frames_there, frames_there[0], task_tag)


def alloc_in(s: State, n: Counts, c: int, is_slow: bool) -> int | None:
    """Hand out a frame of one tier to nobody, without reclaim, or None if there is none."""
    pcp, task_tag = s.cpus[c].pcp, 0
    if not is_slow:
        if s.params["load_mode"] and len(s.free) < s.params["wmark_low"]:
            s.kswapd_on = True
        task_tag = _refill(s, c)
    frames_there = s.slow if is_slow else pcp
    return _hand_out(s, n, c, _unlist(s, n, frames_there, frames_there[0], task_tag), True) if frames_there else None


def _unlist(s: State, n: Counts, frames_there: list[int], f: int, task_tag: int) -> tuple[int, Debt]:
    """Frame ``f`` leaves its list; nothing is owed for it any more but the debt that is returned with it."""
    frame = s.frames[f]
    frames_there.remove(f)
    debt = _debt(s, f, task_tag)
    n.bump("nr_pending", -1 if frame.owed else 0)
    frame.owed, frame.owner = set(), None
    frame.tag = frame.since = frame.tag_clock = frame.refs = 0
    return f, debt


def _debt(s: State, f: int, task_tag: int) -> Debt:
    """What the allocating task knows to owe for frame ``f``."""
    frame = s.frames[f]
    return Debt(frame.owed, frames.latest(s, task_tag, frame.tag), frame.owner, frame.since, frame.tag_clock)


def alloc_atomic(s: State, n: Counts, c: int) -> int | None:
    """Hand out a frame to nobody, from a context that may not wait for other CPUs."""
    pcp = s.cpus[c].pcp
    if s.params["load_mode"] and len(s.free) < s.params["wmark_low"]:
        s.kswapd_on = True
    task_tag = _refill(s, c)
    looked_at = pcp[:3]
    while s.policy["atomic_alloc"] and looked_at and _unpaid(s, _debt(s, looked_at[0], task_tag)):
        looked_at.pop(0)
        n.bump("atomic_refused")
    if not looked_at:
        n.bump("alloc_fail")
        return None
    received = n.scalars["nr_tlb_remote_flush_received"]
    f = _hand_out(s, n, c, _unlist(s, n, pcp, looked_at[0], task_tag), True)
    if n.scalars["nr_tlb_remote_flush_received"] > received:
        n.violate(ATOMIC_FLUSH, False, 1, (s.now, c, -1, -1))
    return f


def _refill(s: State, c: int) -> int:
    """Fill an empty per-CPU list. Returns the tag that the allocating task takes over from the frames."""
    task_tag = 0
    if not s.cpus[c].pcp:
        for _ in range(min(s.params["pcp_batch"], len(s.free))):
            f = s.free.pop(0)
            s.cpus[c].pcp.append(f)
            if s.policy["refill_tag"]:
                task_tag = frames.latest(s, task_tag, s.frames[f].tag)
                s.frames[f].tag = 0
                if s.policy["buddy_merge"] and f ^ 1 in s.free:
                    s.frames[f ^ 1].tag = 0
    return task_tag


def _hand_out(s: State, n: Counts, c: int, taken: tuple[int, Debt], is_foreign: bool) -> int:
    """Pay what is owed for a frame; its new owner has it from now on."""
    f, debt = taken
    received = n.scalars["nr_tlb_remote_flush_received"]
    if debt.owed if _is_paid_alone(s) else debt.tag:
        _pay(s, n, debt, c, is_foreign)
    n.observe("ipis_per_alloc", n.scalars["nr_tlb_remote_flush_received"] - received)
    s.frames[f].handed = s.now
    return f


def _pay(s: State, n: Counts, debt: Debt, c: int, is_foreign: bool) -> None:
    new_owner = None if is_foreign else s.cpus[c].loaded
    if s.policy["reclaim_flush"] == OWNER and debt.owner == new_owner:
        n.bump("recycled")
        return
    cpus = _unpaid(s, debt)
    if not _is_paid_alone(s):
        _commit(s)
    if not cpus:
        n.bump("absorbed")
        return
    if _is_paid_alone(s):
        flush.flush_batch(s, n, c, cpus, "alloc")
        n.bump("discharges")
    else:
        _flush_generation(s, n, c, "alloc")
    if debt.owed:
        n.observe("age_at_discharge", s.now - debt.since)
    if is_foreign:
        n.bump("discharged_by_foreign")


def _successor(s: State, generation: int) -> int:
    return 1 if generation == 2 ** s.policy["gen_bits"] - 1 else generation + 1


def _is_live(s: State, tag: int) -> bool:
    return frames.is_older(s, s.ugen_done, tag) and _successor(s, s.ugen_done) == tag


def _is_paid_alone(s: State) -> bool:
    """Whether a take-off pays for its own frame only, not for the open generation."""
    return s.policy["reclaim_flush"] == OWNER or bool(s.policy["debt_merge"])


def _unpaid(s: State, debt: Debt) -> set[int]:
    """CPUs that the take-off of a frame with this debt by a stranger has to flush."""
    if _is_paid_alone(s):
        return {t for t in debt.owed if not s.policy["targets"] or s.cpus[t].covered < debt.tag_clock}
    return s.G | s.D if _is_live(s, debt.tag) else set()


def _commit(s: State) -> None:
    s.G |= s.D
    s.D = set()


def _flush_generation(s: State, n: Counts, c: int, payer: str) -> None:
    flush.flush_batch(s, n, c, s.G, payer)
    s.G = set()
    s.ugen_done = s.ugen
    s.ugen = _successor(s, s.ugen)
    n.bump("discharges")


def forced_flush(s: State, n: Counts, c: int, m: int | None, b: int | None, payer: str) -> None:
    """A forced flush: every debt, or those of process ``m`` and of file page ``b``."""
    if not s.policy["debt_scope"]:
        discharge_all(s, n, c, payer)
        return
    debtors: list[Process | Backing] = []
    if m is not None:
        debtors.append(s.processes[m])
    if b is not None:
        debtors.append(s.backings[b])
    cpus = {k for debtor in debtors for k in debtor.owed if s.cpus[k].covered < debtor.clock}
    if cpus:
        flush.flush_batch(s, n, c, cpus, payer)
        n.bump("discharges")


def discharge_all(s: State, n: Counts, c: int, payer: str) -> None:
    """Pay every debt of the open generation."""
    _commit(s)
    if s.G:
        _flush_generation(s, n, c, payer)


def release(s: State, n: Counts, i: int, everything: bool) -> None:
    """Free quarantined frames, those that waited long enough or all of them."""
    while s.quarantine and (everything or s.cpus[0].ticks - s.quarantine[0][2] >= s.policy["latr_ticks"]):
        f, kind, _, m = s.quarantine.pop(0)
        if s.processes[m].sweep:
            flush.flush_mm(s, n, i, m, None, False, "alloc")
            s.processes[m].sweep = set()
            n.bump("give_ups")
        assert kind or s.frames[f].state == QUARANTINE
        frames.put(s, n, f, i)
