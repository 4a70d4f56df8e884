"""``kv``: a key-value store in anonymous memory. Zipf reads and writes, and context switches between the processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lufjax.events import Op
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import access_rows
from lufjax.workloads.interleave import Script, rows_between_ticks, rows_needed
from lufjax.workloads.layout import ANON_MEMORY, Layout, Workload, run_scripts
from lufjax.workloads.options import REPEAT, SKEW, TICK_PERIOD, Option

OPTIONS = {
    "num_processes": Option(2, "processes, each with its own data; every CPU switches among all of them", 1, 64),
    "data_pages": Option(2048, "anonymous pages of one process", 1),
    "zipf_quarters": Option(4, "skew of the accesses in quarters of a zipf exponent; 4 is exponent 1, 0 uniform", 0, 16),
    "write_percent": Option(20, "stores among the accesses, percent", 0, 100),
    "switch_period": Option(100, "accesses of a CPU between context switches; 0: a CPU never switches", 0),
    "repeat": REPEAT,
    "tick_period": TICK_PERIOD,
    "skew": SKEW,
}


def build(options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace; options as in ``OPTIONS``."""
    num_processes, data_pages = options["num_processes"], options["data_pages"]
    layout = Layout(num_processes)
    for process in range(num_processes):
        layout.place(process, data_pages, layout.vma(ANON_MEMORY))
    page_of_rank = np.stack([draws.order(data_pages) for _ in range(num_processes)])
    num_rows = rows_needed(rows_between_ticks(num_events, options["tick_period"], num_cpus), num_cpus, options["skew"])
    scripts = [Script(cpu, _cpu_rows(options, draws, page_of_rank, cpu, num_rows)) for cpu in range(num_cpus)]
    events = run_scripts(
        scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"]
    )
    return layout.trace(events, np.arange(num_cpus) % num_processes)


def _cpu_rows(options: Mapping[str, Any], draws: Draws, page_of_rank: np.ndarray, cpu: int, num_rows: int) -> np.ndarray:
    """Return rows in which every (``switch_period`` + 1)-th is a switch; CPUs switch at different times."""
    period = options["switch_period"]
    row = np.arange(num_rows, dtype=np.int64) + (int(draws.below(period + 1, 1)[0]) if period else 0)
    num_processes, data_pages = page_of_rank.shape
    is_switch = row % (period + 1) == period if period else np.zeros(num_rows, dtype=bool)
    turn = row // (period + 1) if period else np.zeros(num_rows, dtype=np.int64)
    process = (cpu + turn) % num_processes
    vpn = page_of_rank[process, draws.zipf(data_pages, options["zipf_quarters"], num_rows)]
    rows = access_rows(draws.chance(options["write_percent"], num_rows), vpn, options["repeat"])
    rows[is_switch] = 0
    rows[is_switch, 0] = int(Op.SWITCH)
    rows[is_switch, 2] = (process[is_switch] + 1) % num_processes
    return rows


WORKLOAD = Workload("key-value store: zipf reads and writes of anonymous memory, context switches", OPTIONS, build)
