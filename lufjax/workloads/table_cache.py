"""``table_cache``: a database that maps its table files read-only, searched by all threads; a file is unmapped to make room for another.

Files are replaced in the order in which they were mapped, by one thread after another: munmap, then mmap of the next file at the address that
became free. Readers hold a file while they use it, so no access is made to a file that is being replaced, and none ends in a SIGSEGV.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lufjax.events import Op
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import GATHER_SLOTS, access_rows, gather_calls, mmap_calls, rows_of
from lufjax.workloads.interleave import Script, rows_between_ticks, rows_needed
from lufjax.workloads.layout import ANON_MEMORY, READ_ONLY_FILE, Layout, Workload, run_scripts
from lufjax.workloads.options import REPEAT, SKEW, TICK_PERIOD, Option

OPTIONS = {
    "num_tables": Option(1024, "files; at least num_mapped", 1, 65536),
    "num_mapped": Option(256, "files mapped at a time", 2, 1024),
    "table_pages": Option(4, "pages of a file", 1, GATHER_SLOTS),
    "remap_period": Option(500, "rows, of all CPUs together, between two replacements of a file", 1),
    "pageout_lead": Option(0, "replacements between the time a file is paged out (MADV_PAGEOUT) and its own; 0: no file is", 0, 1023),
    "reads_per_lookup": Option(4, "loads in one file of one look-up", 1, 64),
    "zipf_quarters": Option(4, "popularity of the pages of a file in quarters of a zipf exponent; 0 is uniform", 0, 16),
    "heap_pages": Option(4, "anonymous pages of a CPU", 1, 65536),
    "heap_per_lookup": Option(2, "accesses to them of one look-up: load, store, load, ..", 0, 64),
    "repeat": REPEAT,
    "tick_period": TICK_PERIOD,
    "skew": SKEW,
}


def build(options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace; options as in ``OPTIONS``."""
    num_tables, num_mapped, table_pages = options["num_tables"], options["num_mapped"], options["table_pages"]
    if num_tables < num_mapped:
        raise ValueError(f"workload.num_tables={num_tables}: must be at least num_mapped={num_mapped}")
    call_rows = _call_rows(options)
    gap = options["remap_period"] // num_cpus
    least = max(-(-2 * call_rows // num_cpus), -(-2 * _busy_rows(options) // num_mapped))
    if gap < least:
        raise ValueError(f"workload.remap_period={options['remap_period']}: must be at least {least * num_cpus} with num_cpus={num_cpus}")
    layout = Layout(1)
    vmas = np.array([layout.vma(READ_ONLY_FILE) for _ in range(num_mapped)])
    first_vpn = np.array([layout.place(0, table_pages, vmas[slot], slot * table_pages) for slot in range(num_mapped)])
    heap = [layout.place(0, options["heap_pages"], layout.vma(ANON_MEMORY)) for _ in range(num_cpus)]
    num_rows = rows_needed(rows_between_ticks(num_events, options["tick_period"], num_cpus), num_cpus, options["skew"], call_rows)
    page_of_rank = draws.order(table_pages)
    scripts = []
    for cpu in range(num_cpus):
        rows = _lookups(options, draws, first_vpn, page_of_rank, heap[cpu], gap, num_rows)
        turn = np.arange(num_rows)
        number = np.arange(cpu, num_rows // gap, num_cpus)
        for start, call in zip((number + 1) * gap, _replacements(options, first_vpn, vmas, number), strict=True):
            rows[start : start + call_rows] = call[: num_rows - start]
            turn[start : start + call_rows] = start
        scripts.append(Script(cpu, rows, turn))
    events = run_scripts(scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"])
    return layout.trace(events, np.zeros(num_cpus), num_file_pages=num_tables * table_pages)


def _call_rows(options: Mapping[str, Any]) -> int:
    """Rows of one replacement: munmap, mmap, and the page-out of another file."""
    return 2 * options["table_pages"] + 1 + (options["table_pages"] + 1) * (options["pageout_lead"] > 0)


def _busy_rows(options: Mapping[str, Any]) -> int:
    """Rows around the start of a replacement in which its file may be unmapped: CPUs are up to ``skew`` rows apart, and calls take accesses in."""
    return 2 * _call_rows(options) + 4 * options["skew"]


def _replacements(options: Mapping[str, Any], first_vpn: np.ndarray, vmas: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return the rows of each replacement, ``int32[num_calls, rows, 4]``: munmap, mmap, and the page-out of the file whose turn comes."""
    table_pages, slot = options["table_pages"], number % options["num_mapped"]
    pages = np.full(number.size, table_pages)
    file = (number + options["num_mapped"]) % options["num_tables"]
    unmap = gather_calls(Op.MUNMAP, first_vpn[slot], pages)[0].reshape(number.size, table_pages + 1, 4)
    remap = mmap_calls(first_vpn[slot], pages, vmas[slot], file * table_pages)[0].reshape(number.size, table_pages, 4)
    if not options["pageout_lead"]:
        return np.concatenate([unmap, remap], axis=1)
    cold = first_vpn[(number + options["pageout_lead"]) % options["num_mapped"]]
    pageout = rows_of(int(Op.RECLAIM), (cold[:, None] + np.arange(table_pages)).ravel()).reshape(number.size, table_pages, 4)
    flush = np.broadcast_to(rows_of(int(Op.RECLAIM_FLUSH)), (number.size, 1, 4))
    return np.concatenate([unmap, remap, pageout, flush], axis=1)


def _lookups(
    options: Mapping[str, Any], draws: Draws, first_vpn: np.ndarray, page_of_rank: np.ndarray, heap: int, gap: int, num_rows: int
) -> np.ndarray:
    """Return look-ups: loads in one of the mapped files, then accesses to the heap of the CPU."""
    reads, more, num_mapped = options["reads_per_lookup"], options["heap_per_lookup"], options["num_mapped"]
    count = -(-num_rows // (reads + more))
    at = np.arange(count * (reads + more)).reshape(count, reads + more)
    slot = np.broadcast_to(draws.below(num_mapped, count)[:, None], (count, reads))
    since = (at[:, :reads] - (slot + 1) * gap + options["skew"]) % (num_mapped * gap)
    slot = np.where(since < _busy_rows(options), (slot + num_mapped // 2) % num_mapped, slot)
    page = page_of_rank[draws.zipf(page_of_rank.size, options["zipf_quarters"], count * reads)].reshape(count, reads)
    rows = np.empty((count, reads + more, 4), dtype=np.int32)
    rows[:, :reads] = rows_of(int(Op.LOAD), (first_vpn[slot] + page).ravel(), 0, options["repeat"]).reshape(count, reads, 4)
    heap_vpn = heap + draws.below(options["heap_pages"], count * more)
    rows[:, reads:] = access_rows(np.arange(count * more) % 2 == 1, heap_vpn, options["repeat"]).reshape(count, more, 4)
    return rows.reshape(-1, 4)[:num_rows]


WORKLOAD = Workload("database: mapped table files, searched by all threads, replaced one by one", OPTIONS, build)
