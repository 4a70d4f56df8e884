"""GATHER_FINISH: flush what a mapping call cleared, free what it held, advance the promise (docs/MODEL.md section 7)."""

from __future__ import annotations

from . import anonymous, flush, frames
from .counting import Counts
from .state import HELD, QUARANTINE, USED, Gather, State

MPROTECT, MADVISE_FREE, EXIT, MREMAP, FORK = 5, 22, 23, 24, 25
NONE, NOW, PAGE, OWNER, TICKS = range(5)
ALWAYS = 4


def gather_finish(s: State, n: Counts, c: int, frees_tables: bool) -> bool:
    """Finish the gather of CPU ``c``. False if it has none."""
    gather, m = s.cpus[c].gather, s.cpus[c].loaded
    if gather is None:
        return False
    process = s.processes[m]
    settle(s, n, c, m, gather, frees_tables or gather.op == FORK, process.gathers > 1, False)
    for v in range(gather.vs, gather.ve):
        advance(s, m, v, gather.op)
    process.gathers -= 1
    process.excl -= gather.op not in (6, MADVISE_FREE)
    s.cpus[c].gather = None
    if gather.op == EXIT and frees_tables:
        process.cpumask.discard(c)
        s.cpus[c].loaded, s.cpus[c].lazy = None, True
    n.bump("nr_gathers")
    return True


def settle(s: State, n: Counts, c: int, m: int, gather: Gather, frees_tables: bool, nested: bool, at_once: bool) -> None:
    """The flush and the frees of a call; MMAP over a mapping and file events (``at_once``) defer nothing."""
    if not _flush(s, n, c, m, gather, frees_tables, nested, at_once):
        for f in gather.held:
            if gather.op == MADVISE_FREE:
                _mark_lazyfree(s, n, f)
            frames.put(s, n, f, c)


def _mark_lazyfree(s: State, n: Counts, f: int) -> None:
    """Unless something was stored or the page went since its page event."""
    frame = s.frames[f]
    if frame.state == USED and not any(s.page(m, v).dirty for m, v in frame.mappings()):
        s.backings[frame.page].harvested, s.backings[frame.page].on_store = True, False
        n.bump("pglazyfree")


def _flush(s: State, n: Counts, c: int, m: int, gather: Gather, frees_tables: bool, nested: bool, at_once: bool) -> bool:
    """Flush as ``gather_flush`` says. True if the held frames went to the quarantine."""
    always = s.policy["munmap_debt_rule"] == ALWAYS
    if not (gather.cleared or frees_tables or nested or always):
        return False
    pages = None if nested or always or not gather.cleared or gather.op in (EXIT, FORK) else (gather.cs, gather.ce)
    rule = s.policy["gather_flush"]
    if rule in (OWNER, TICKS) and (at_once or gather.op in (MPROTECT, MADVISE_FREE, EXIT, MREMAP) or frees_tables):
        rule = NOW
    if rule == PAGE and (frees_tables or always):
        rule = NOW
    if rule == TICKS and not (gather.cleared and len(s.quarantine) + len(gather.held) <= s.policy["quarantine_slots"]):
        rule = NOW
    if rule == NOW:
        flush.flush_mm(s, n, c, m, pages, frees_tables or nested, "mapping")
    elif rule == OWNER and gather.cleared:
        _owe(s, n, m, gather)
    elif rule == TICKS:
        _wait(s, n, c, m, gather, pages)
        return True
    return False


def _owe(s: State, n: Counts, m: int, gather: Gather) -> None:
    """``owner``: the frames and the addresses owe the flush."""
    s.processes[m].tlb_gen += 1
    for f in gather.held:
        frames.add_debt(s, f, m)
        n.bump("deferred_unmaps")
    _mark(s, m, gather)


def _wait(s: State, n: Counts, c: int, m: int, gather: Gather, pages: flush.Range) -> None:
    """``ticks``: this CPU flushes, the others sweep at a tick or switch, the frames wait."""
    process = s.processes[m]
    process.tlb_gen += 1
    flush.flush_here(s, n, c, m, flush.limited(s, pages), process.tlb_gen)
    process.sweep |= process.cpumask - {c}
    for f in gather.held:
        is_anon = s.frames[f].state == HELD
        if is_anon:
            s.frames[f].state = QUARANTINE
        s.quarantine.append((f, 0 if is_anon else 1, s.cpus[0].ticks, m))
    _mark(s, m, gather)


def _mark(s: State, m: int, gather: Gather) -> None:
    for v in range(gather.cs, gather.ce):
        if not s.page(m, v).present:
            s.page(m, v).marker = True
    s.processes[m].va_debt = True


def advance(s: State, m: int, v: int, op: int) -> None:
    """From now on the process may rely on the mapping as it is."""
    if op == MADVISE_FREE:
        return
    page = s.page(m, v)
    old = page.promise.backing
    page.promise = s.mapping_of(page)
    if op in (MPROTECT, FORK):
        return
    if old is not None and s.is_anon(old) and (page.vma is None or page.backing != old):
        anonymous.release(s, old)
    page.epoch = s.now
