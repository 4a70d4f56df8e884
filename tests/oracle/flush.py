"""Flush requests (docs/MODEL.md section 4)."""

from __future__ import annotations

from .counting import Counts
from .state import State

FULL, _, BATCH_AND_MM = range(3)
Range = tuple[int, int] | None
"""Pages ``[start, end)`` to flush; None is ALL."""


def flush_mm(s: State, n: Counts, i: int, m: int, pages: Range, freed_tables: bool, payer: str) -> None:
    """Flush pages of process ``m`` on every CPU in its mask; the request comes from CPU ``i``."""
    _request_mm(s, n, i, m, pages, freed_tables, payer)
    s.unmap_clock += 1


def flush_pending(s: State, n: Counts, i: int, m: int) -> None:
    """Flush process ``m`` because reclaim has batched unmaps of it that a mapping call may not overtake."""
    credited = set(s.processes[m].cpumask) if s.policy["credit"] == BATCH_AND_MM else set()
    _request_mm(s, n, i, m, None, True, "mapping")
    for c in credited:
        s.cpus[c].covered = s.unmap_clock
    s.unmap_clock += 1
    s.processes[m].flushed = s.processes[m].pending


def _request_mm(s: State, n: Counts, i: int, m: int, pages: Range, freed_tables: bool, payer: str) -> None:
    process = s.processes[m]
    pages = limited(s, pages)
    process.tlb_gen += 1
    gen = process.tlb_gen
    if pages is None:
        process.va_debt = False
    targets = sorted(process.cpumask - {i})
    if targets:
        n.bump("nr_tlb_remote_flush")
        trim = _trim_due(s, m)
        for c in [c for c in targets if _is_told(s, c, m, freed_tables, trim)]:
            _deliver(s, n, c, m, pages, gen, payer)
    if s.cpus[i].loaded == m and i in process.cpumask:
        _flush_here(s, n, i, m, pages, gen)


def limited(s: State, pages: Range) -> Range:
    """A range of more than ``flush_ceiling`` pages becomes ALL."""
    return None if pages is None or pages[1] - pages[0] > s.policy["flush_ceiling"] else pages


def _trim_due(s: State, m: int) -> bool:
    """Whether CPUs that run something else are told too (``mask_on_switch=keep``); sets the next deadline."""
    process = s.processes[m]
    if not s.policy["mask_on_switch"] or s.now < process.next_trim:
        return False
    process.next_trim = s.now + s.policy["trim_period"]
    return True


def _is_told(s: State, c: int, m: int, freed_tables: bool, trim: bool) -> bool:
    cpu = s.cpus[c]
    if freed_tables:
        return True
    if cpu.lazy and s.policy["lazy_skip"]:
        return False
    return not s.policy["mask_on_switch"] or cpu.loaded == m or trim


def _receive(s: State, n: Counts, c: int, payer: str) -> None:
    n.bump("nr_tlb_remote_flush_received")
    n.bump("ipi_" + payer)
    n.received[c] += 1


def _deliver(s: State, n: Counts, c: int, m: int, pages: Range, gen: int, payer: str) -> None:
    """The flush function on remote CPU ``c``."""
    _receive(s, n, c, payer)
    if s.cpus[c].loaded != m:
        if s.policy["mask_on_switch"]:
            s.processes[m].cpumask.discard(c)
        return
    if s.cpus[c].lazy:
        _drop_mm(s, c)
        return
    if s.cpus[c].gen_done[m] == s.processes[m].tlb_gen:
        n.bump("needless")
        return
    _flush_pages(s, c, m, pages, gen)


def _drop_mm(s: State, c: int) -> None:
    """A lazy CPU gives its mm up; its entries stay and its generation catches them later."""
    s.processes[s.cpus[c].loaded].cpumask.discard(c)
    s.cpus[c].loaded = None


def _flush_pages(s: State, c: int, m: int, pages: Range, gen: int) -> bool:
    """Steps 4 and 5: flush the range if ``c`` misses only this generation, else everything. True if everything."""
    cpu, newest = s.cpus[c], s.processes[m].tlb_gen
    is_full = pages is None or gen != cpu.gen_done[m] + 1 or gen != newest
    if is_full:
        flush_cpu(s, c, m)
        if s.policy["credit"] == FULL:
            cpu.covered = s.unmap_clock
    else:
        for vpn in range(*pages):
            drop(s, c, m, vpn)
    cpu.gen_done[m] = newest
    return is_full


def flush_here(s: State, n: Counts, i: int, m: int, pages: Range, gen: int) -> None:
    """A request to the CPU that asks, and to no other."""
    _flush_here(s, n, i, m, pages, gen)
    s.unmap_clock += 1


def _flush_here(s: State, n: Counts, i: int, m: int, pages: Range, gen: int) -> None:
    """The local function on the CPU that asks."""
    if s.cpus[i].gen_done[m] == s.processes[m].tlb_gen:
        return
    if _flush_pages(s, i, m, pages, gen):
        n.bump("nr_tlb_local_flush_all")
    else:
        n.bump("nr_tlb_local_flush_one", pages[1] - pages[0])


def flush_cpu(s: State, c: int, m: int) -> None:
    """Delete every entry of process ``m`` on CPU ``c``."""
    s.cpus[c].l1.flush(m)
    s.cpus[c].l2.flush(m)


def drop(s: State, c: int, m: int, vpn: int) -> None:
    """Delete the entries of one page on CPU ``c``."""
    s.cpus[c].l1.drop(m, vpn)
    s.cpus[c].l2.drop(m, vpn)


def flush_batch(s: State, n: Counts, i: int, mask: set[int], payer: str) -> None:
    """Flush, on every CPU of ``mask``, whatever process it has loaded."""
    targets = sorted(mask - {i})
    if targets:
        n.bump("nr_tlb_remote_flush")
        for c in [c for c in targets if not (s.cpus[c].lazy and s.policy["lazy_skip"])]:
            _deliver_batch(s, n, c, payer)
    m = s.cpus[i].loaded
    if i in mask and m is not None and s.cpus[i].gen_done[m] != s.processes[m].tlb_gen:
        _flush_pages(s, i, m, None, s.processes[m].tlb_gen)
        n.bump("nr_tlb_local_flush_all")
    for c in mask:
        s.cpus[c].covered = s.unmap_clock
    s.unmap_clock += 1


def _deliver_batch(s: State, n: Counts, c: int, payer: str) -> None:
    _receive(s, n, c, payer)
    m = s.cpus[c].loaded
    if m is None:
        return
    if s.cpus[c].lazy:
        _drop_mm(s, c)
    elif s.cpus[c].gen_done[m] == s.processes[m].tlb_gen:
        n.bump("needless")
    else:
        _flush_pages(s, c, m, None, s.processes[m].tlb_gen)
