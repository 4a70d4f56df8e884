"""``random_read``: XSBench. Read-only random look-ups in a table, with a part that is read much more often.

XSBench bisects an energy grid (its upper steps are the hot part) and then reads cross sections scattered over the table.
Coarser: the table is a file mapped read-only; XSBench computes its own into anonymous memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lufjax.events import Op
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import rows_of
from lufjax.workloads.interleave import Script, rows_between_ticks, rows_needed
from lufjax.workloads.layout import READ_ONLY_FILE, Layout, Workload, run_scripts
from lufjax.workloads.options import REPEAT, SKEW, TICK_PERIOD, Option

OPTIONS = {
    "num_processes": Option(1, "processes that map the same table; CPU c runs process c mod num_processes", 1, 64),
    "file_pages": Option(4096, "pages of the table", 1),
    "hot_pages": Option(32, "pages of the hot part, at the start of the table; less than file_pages", 1),
    "hot_per_lookup": Option(4, "loads in the hot part of one look-up", 0, 64),
    "reads_per_lookup": Option(4, "loads in the rest of the table of one look-up", 1, 64),
    "zipf_quarters": Option(0, "skew of the reads in the rest, in quarters of a zipf exponent; 0 is uniform", 0, 16),
    "repeat": REPEAT,
    "tick_period": TICK_PERIOD,
    "skew": SKEW,
}


def build(options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace; options as in ``OPTIONS``."""
    file_pages, hot_pages = options["file_pages"], options["hot_pages"]
    if hot_pages >= file_pages:
        raise ValueError(f"workload.hot_pages={hot_pages}: must be less than file_pages={file_pages}")
    num_processes = min(options["num_processes"], num_cpus)
    layout = Layout(num_processes)
    for process in range(num_processes):
        layout.place(process, file_pages, layout.vma(READ_ONLY_FILE), 0)
    num_rows = rows_needed(rows_between_ticks(num_events, options["tick_period"], num_cpus), num_cpus, options["skew"])
    page_of_rank = hot_pages + draws.order(file_pages - hot_pages)
    scripts = [Script(cpu, _cpu_rows(options, draws, page_of_rank, num_rows)) for cpu in range(num_cpus)]
    events = run_scripts(
        scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"]
    )
    return layout.trace(events, np.arange(num_cpus) % num_processes, num_file_pages=file_pages, rmap_slots=num_processes)


def _cpu_rows(options: Mapping[str, Any], draws: Draws, page_of_rank: np.ndarray, num_rows: int) -> np.ndarray:
    hot, cold = options["hot_per_lookup"], options["reads_per_lookup"]
    lookups = -(-num_rows // (hot + cold))
    vpn = np.empty((lookups, hot + cold), dtype=np.int64)
    vpn[:, :hot] = draws.below(options["hot_pages"], lookups * hot).reshape(lookups, hot)
    ranks = draws.zipf(page_of_rank.size, options["zipf_quarters"], lookups * cold)
    vpn[:, hot:] = page_of_rank[ranks].reshape(lookups, cold)
    return rows_of(int(Op.LOAD), vpn.ravel(), 0, options["repeat"])


WORKLOAD = Workload("XSBench: random look-ups in a read-only table, with a hot part", OPTIONS, build)
