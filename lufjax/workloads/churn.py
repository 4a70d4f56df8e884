"""``churn``: a web server on small files. Every request maps a file or a buffer, touches its pages and unmaps it.

Requests of a CPU cycle through a few address ranges, so addresses are reused; the other CPUs of the same process serve
their own requests or, the last ``busy`` of them, spin on a page of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lufjax.events import ANON, Op
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import access_rows, gather_calls, in_order, mmap_calls, ragged_arange
from lufjax.workloads.interleave import Script, rows_between_ticks, rows_needed
from lufjax.workloads.layout import ANON_MEMORY, READ_ONLY_FILE, Layout, Workload, run_scripts
from lufjax.workloads.options import REPEAT, SKEW, TICK_PERIOD, Option

OPTIONS = {
    "num_files": Option(128, "files", 1, 65536),
    "pages_min": Option(2, "pages of the smallest request", 1, 128),
    "pages_max": Option(8, "pages of the largest request; also of every file", 1, 128),
    "zipf_quarters": Option(4, "popularity of files in quarters of a zipf exponent; 0 is uniform", 0, 16),
    "shared_files": Option(True, "every CPU serves every file; false: each CPU has num_files files of its own"),
    "anon_percent": Option(50, "requests that map an anonymous buffer (stores) instead of a file (loads), percent", 0, 100),
    "work": Option(8, "accesses to the hot pages of the CPU between requests", 0, 1024),
    "hot_pages": Option(4, "anonymous pages that a CPU uses between requests", 1, 1024),
    "ranges": Option(4, "address ranges that the requests of a CPU cycle through", 1, 64),
    "busy": Option(0, "CPUs (the last ones) that serve nothing and only use their hot pages; at most num_cpus - 1"),
    "free_tables": Option(False, "each munmap frees a page table"),
    "repeat": REPEAT,
    "tick_period": TICK_PERIOD,
    "skew": SKEW,
}


def build(options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace; options as in ``OPTIONS``."""
    pages_max, num_servers = options["pages_max"], num_cpus - options["busy"]
    if num_servers < 1:
        raise ValueError(f"workload.busy={options['busy']}: must be less than num_cpus={num_cpus}")
    if options["pages_min"] > pages_max:
        raise ValueError(f"workload.pages_min={options['pages_min']}: must be at most pages_max={pages_max}")
    layout = Layout(1)
    hot = [layout.place(0, options["hot_pages"], layout.vma(ANON_MEMORY)) for _ in range(num_cpus)]
    num_rows = rows_needed(
        rows_between_ticks(num_events, options["tick_period"], num_cpus), num_cpus, options["skew"], pages_max + 1
    )
    file_of_rank = draws.order(options["num_files"])
    scripts = []
    for cpu in range(num_servers):
        arena = np.array([layout.reserve(0, pages_max) for _ in range(options["ranges"])])
        vmas = np.array([[layout.vma(READ_ONLY_FILE), layout.vma(ANON_MEMORY)] for _ in range(options["ranges"])])
        first_file = 0 if options["shared_files"] else cpu * options["num_files"]
        rows, turn = _requests(options, draws, arena, vmas, first_file + file_of_rank, hot[cpu], num_rows)
        scripts.append(Script(cpu, rows, turn))
    for cpu in range(num_servers, num_cpus):
        scripts.append(Script(cpu, _hot_rows(options, draws, hot[cpu], num_rows)))
    events = run_scripts(
        scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"]
    )
    num_files = options["num_files"] * (1 if options["shared_files"] else num_servers)
    return layout.trace(
        events,
        np.zeros(num_cpus),
        num_file_pages=num_files * pages_max,
        more_anon=num_servers * pages_max,
        rmap_slots=num_servers if options["shared_files"] else 1,
    )


def _requests(
    options: Mapping[str, Any], draws: Draws, arena: np.ndarray, vmas: np.ndarray, file_of_rank: np.ndarray, hot: int, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of one CPU and the turn of each: a call is one turn, an access is one."""
    work, low, high = options["work"], options["pages_min"], options["pages_max"]
    count = -(-num_rows // (3 * low + 1 + work))
    request = np.arange(count)
    pages = low + draws.below(high - low + 1, count)
    is_anon = draws.chance(options["anon_percent"], count)
    first = arena[request % arena.size]
    file = file_of_rank[draws.zipf(options["num_files"], options["zipf_quarters"], count)]
    backing = np.where(is_anon, ANON, file * high)
    touched = np.repeat(request, pages)
    worked = np.repeat(request, work)
    rows, turn = in_order(
        mmap_calls(first, pages, vmas[request % arena.size, is_anon.astype(int)], backing),
        (access_rows(is_anon[touched], first[touched] + ragged_arange(pages), options["repeat"]), touched),
        gather_calls(Op.MUNMAP, first, pages, free_tables=int(options["free_tables"])),
        (_hot_rows(options, draws, hot, worked.size), worked),
    )
    is_access = (rows[:, 0] == int(Op.LOAD)) | (rows[:, 0] == int(Op.STORE))
    starts = np.ones(turn.size, dtype=bool)
    starts[1:] = is_access[1:] | is_access[:-1] | (turn[1:] != turn[:-1])
    return rows, np.cumsum(starts)


def _hot_rows(options: Mapping[str, Any], draws: Draws, hot: int, count: int) -> np.ndarray:
    """Loads and stores, in turns, of random hot pages."""
    return access_rows(np.arange(count) % 2 == 1, hot + draws.below(options["hot_pages"], count), options["repeat"])


WORKLOAD = Workload("web server: map, touch and unmap small files and buffers", OPTIONS, build)
