"""Reclaim: scanning, unmapping, the batch (docs/MODEL.md section 6)."""

from __future__ import annotations

from . import allocation, flush, frames, migration
from .counting import Counts
from .state import BATCH, CORRUPT, USED, Frame, State

NEVER, PAGE, _, TAKE_OFF, OWNER = range(5)
READ_ONLY, CLEAN, ANY = range(3)
PAID, REFUSED = 2, 3
VMA_FLAG, PTE_MARKER, PENDING, GATHER_HOOK = 1, 2, 3, 5


def background(s: State, n: Counts) -> None:
    """What kswapd does at the start of every event."""
    if not (s.params["load_mode"] and s.kswapd_on):
        return
    i = s.params["kswapd_cpu"]
    reclaim(s, n, i, 1, 4, "kswapd")
    if len(s.free) + len(s.batch) >= s.params["wmark_high"] or not _to_look_at(s):
        drain(s, n, i)
        s.kswapd_on = False


def reclaim(s: State, n: Counts, i: int, pages: int, entries: int, who: str) -> None:
    """Examine at most ``entries`` of the inactive list, oldest first, and unmap at most ``pages``."""
    while pages > 0 and entries > 0 and _to_look_at(s):
        entries -= 1
        f = _to_look_at(s)[0]
        ptes = [s.page(m, v) for m, v in s.frames[f].mappings()]
        n.bump("pgscan")
        if s.frames[f].refs > 0:
            s.lru_of(f).append(s.lru_of(f).pop(0))
        elif any(pte.accessed for pte in ptes):
            for pte in ptes:
                pte.accessed = False
            s.lru_of(f).append(s.lru_of(f).pop(0))
            n.bump("pgrotated")
        else:
            if s.slow and not frames.is_slow(s, f):
                migration.demote(s, n, f, i)
                n.bump("pgdemote_" + who)
            else:
                unmap(s, n, f, i)
            pages -= 1
            n.bump("pgsteal_" + who)


def _to_look_at(s: State) -> list[int]:
    """The list that reclaim takes from."""
    return s.lru_slow if s.lru_slow and not s.slow else s.lru


def unmap(s: State, n: Counts, f: int, i: int) -> None:
    """Clear every PTE of frame ``f`` and put it in the batch."""
    frame, backing = s.frames[f], s.backings[s.frames[f].page]
    s.lru_of(f).remove(f)
    any_dirty = any(s.page(m, v).dirty for m, v in frame.mappings())
    must_write = _must_write(s, frame)
    n.bump("pglazyfreed", s.is_lazyfree(frame.page) and not any_dirty)
    deferred, _ = clear_ptes(s, n, f, i, s.policy["reclaim_flush"] in (TAKE_OFF, OWNER))
    if must_write:
        if s.policy["flush_dirty"] and any_dirty and deferred:
            s.U |= s.D
            s.need_flush = True
        if s.policy["flush_dirty"] and any_dirty and s.need_flush:
            flush_now(s, n, i, "reclaim")
        backing.stored, backing.on_store, backing.harvested = _version(frame), True, True
        n.bump("pgpgout")
    frame.state = BATCH
    if s.policy["reclaim_remove"]:
        backing.home = None
    s.batch.append((f, deferred))
    if len(s.batch) >= s.params["reclaim_batch"]:
        drain(s, n, i)


def clear_ptes(s: State, n: Counts, f: int, i: int, may_defer: bool) -> tuple[bool, bool]:
    """Clear every PTE of frame ``f``; flush, queue or, if the rules allow it, defer their flushes.

    Returns:
        Whether they were deferred, whether some were queued.
    """
    is_queued = any(_is_queued(s, m, i) for m, _ in s.frames[f].mappings())
    deferred = may_defer and is_queued and _is_admitted(s, s.frames[f])
    n.bump("deferred_unmaps", deferred)
    _clear_all(s, n, f, i, deferred)
    return deferred, is_queued and not deferred


def _version(frame: Frame) -> int:
    """The version that a write-out of the frame would store."""
    return 0 if frame.content == CORRUPT else frame.content[1]


def _must_write(s: State, frame: Frame) -> bool:
    """Whether the content of a frame would be lost with it."""
    any_dirty = any(s.page(m, v).dirty for m, v in frame.mappings())
    return any_dirty or (not s.is_lazyfree(frame.page) and _version(frame) != s.backings[frame.page].stored)


def _is_admitted(s: State, frame: Frame) -> bool:
    """Whether the policy lets the flush of this frame wait."""
    if s.policy["init_on_free"] == REFUSED:
        return False
    admits = s.policy["defer_pages"]
    if admits == READ_ONLY:
        return not any(s.page(m, v).writable for m, v in frame.mappings())
    return admits != CLEAN or not _must_write(s, frame)


def movable(s: State, m: int, v: int) -> int | None:
    """The home of page (m, v), if it may be unmapped now."""
    page = s.page(m, v)
    f = None if page.vma is None else s.backings[page.backing].home
    return None if f is None or s.frames[f].state != USED or s.frames[f].refs > 0 else f


def _is_queued(s: State, m: int, i: int) -> bool:
    """Whether the flush of a PTE of process ``m`` waits for others (else it is done at once, or never)."""
    return s.policy["reclaim_flush"] not in (NEVER, PAGE) and bool(s.processes[m].cpumask - {i})


def _clear_all(s: State, n: Counts, f: int, i: int, deferred: bool) -> None:
    at_once = []
    for m, v in s.frames[f].mappings():
        frames.clear_pte(s, m, v)
        if _is_queued(s, m, i):
            _queue(s, f, m, v, deferred)
        elif s.policy["reclaim_flush"] != NEVER:
            at_once.append((m, v))
    for m, v in at_once:
        flush.flush_mm(s, n, i, m, (v, v + 1), False, "reclaim")


def _queue(s: State, f: int, m: int, v: int, deferred: bool) -> None:
    process, policy, pte = s.processes[m], s.policy, s.page(m, v)
    process.tlb_gen += 1
    if not deferred:
        s.U |= process.cpumask
        s.need_flush = True
        if policy["batched_pending"]:
            process.pending += 1
        return
    s.D |= process.cpumask
    frames.add_debt(s, f, m)
    if policy["debt_scope"]:
        b = s.frames[f].page
        for debtor in (process,) if s.is_anon(b) else (process, s.backings[b]):
            debtor.owed |= process.cpumask
            debtor.clock = s.unmap_clock
    if policy["munmap_debt_rule"] in (PENDING, GATHER_HOOK):
        process.pending += 1
    if policy["munmap_debt_rule"] == VMA_FLAG:
        s.vma_flag[pte.vma] = True
    if policy["munmap_debt_rule"] == PTE_MARKER:
        pte.marker = True
    if policy["va_rule"]:
        pte.marker = process.va_debt = True


def flush_now(s: State, n: Counts, i: int, payer: str) -> None:
    """Flush what the batch collected."""
    flush.flush_batch(s, n, i, s.U, payer)
    if s.policy["absorb"]:
        s.G -= s.U
        s.D -= s.U
    s.U = set()
    s.need_flush = False


def drain_half(s: State, n: Counts, i: int) -> None:
    """Flush what the batch owes, and free nothing; deferred flushes join the open generation."""
    s.G |= s.D
    s.D = set()
    if s.need_flush:
        flush_now(s, n, i, "reclaim")
    if s.policy["init_on_free"] == PAID:
        allocation.discharge_all(s, n, i, "reclaim")


def drain(s: State, n: Counts, i: int) -> None:
    """Flush and free the batch."""
    drain_half(s, n, i)
    for f, _ in s.batch:
        frame = s.frames[f]
        if frame.state != BATCH:
            continue
        if s.backings[frame.page].home == f:
            s.backings[frame.page].home = None
        if s.policy["init_on_free"] == PAID:
            frames.forget_debt(frame)
        frames.free(s, n, f, i)
    s.batch = []
