"""``llm``: llama.cpp on a model file larger than memory.

Every process scans its weights, read-only and shared, layer after layer, round and round; the threads of a process split
each layer; after every weight page a thread works on its own activations. [luf-v10] measured three such processes.
Coarser: no barrier between layers; CPUs are held together by ``skew``, and a thread with a smaller share of a layer spins
on its first activation page as a waiting llama.cpp thread does.
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
from lufjax.workloads.layout import ANON_MEMORY, READ_ONLY_FILE, Layout, Workload, run_scripts
from lufjax.workloads.options import REPEAT, SKEW, TICK_PERIOD, Option

OPTIONS = {
    "num_processes": Option(2, "processes; CPU c runs process c mod num_processes", 1, 64),
    "file_pages": Option(8192, "pages of the model file of a process; a multiple of layer_pages", 1),
    "shared_model": Option(True, "all processes map the same file; false: each its own"),
    "layer_pages": Option(64, "pages of one layer, split among the threads of a process", 1),
    "hot_pages": Option(2, "anonymous activation pages of a thread", 1, 4096),
    "hot_per_weight": Option(2, "accesses to activations after each weight page: load, store, load, ..", 0, 64),
    "repeat": REPEAT,
    "tick_period": TICK_PERIOD,
    "skew": SKEW,
}


def build(options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace; options as in ``OPTIONS``."""
    file_pages, layer_pages = options["file_pages"], options["layer_pages"]
    if file_pages % layer_pages:
        raise ValueError(f"workload.file_pages={file_pages}: must be a multiple of layer_pages={layer_pages}")
    num_processes = min(options["num_processes"], num_cpus)
    layout = Layout(num_processes)
    num_rows = rows_needed(rows_between_ticks(num_events, options["tick_period"], num_cpus), num_cpus, options["skew"])
    scripts = []
    for process in range(num_processes):
        own_file = 0 if options["shared_model"] else process * file_pages
        weights = layout.place(process, file_pages, layout.vma(READ_ONLY_FILE), own_file)
        cpus = range(process, num_cpus, num_processes)
        start_layer = int(draws.below(file_pages // layer_pages, 1)[0])
        for thread, cpu in enumerate(cpus):
            hot = layout.place(process, options["hot_pages"], layout.vma(ANON_MEMORY))
            scripts.append(Script(cpu, _thread_rows(options, draws, weights, hot, thread, len(cpus), start_layer, num_rows)))
    events = run_scripts(
        scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"]
    )
    num_files = 1 if options["shared_model"] else num_processes
    return layout.trace(
        events,
        np.arange(num_cpus) % num_processes,
        num_file_pages=num_files * file_pages,
        rmap_slots=num_processes if options["shared_model"] else 1,
    )


def _thread_rows(
    options: Mapping[str, Any], draws: Draws, weights: int, hot: int, thread: int, num_threads: int, start_layer: int, num_rows: int
) -> np.ndarray:
    """Return at least ``num_rows`` rows: visits of one weight page and ``hot_per_weight`` activation accesses."""
    layer_pages, hot_per_weight = options["layer_pages"], options["hot_per_weight"]
    first = layer_pages * thread // num_threads
    share = layer_pages * (thread + 1) // num_threads - first
    visits_per_layer = -(-layer_pages // num_threads)
    num_visits = -(-num_rows // (1 + hot_per_weight))
    visit = np.arange(num_visits, dtype=np.int64)
    layer = (start_layer + visit // visits_per_layer) % (options["file_pages"] // layer_pages)
    page = visit % visits_per_layer
    vpn = np.empty((num_visits, 1 + hot_per_weight), dtype=np.int64)
    vpn[:, 0] = np.where(page < share, weights + layer * layer_pages + first + page, hot)
    vpn[:, 1:] = hot + draws.below(options["hot_pages"], num_visits * hot_per_weight).reshape(num_visits, hot_per_weight)
    op = np.where(np.arange(1 + hot_per_weight) % 2 == 0, int(Op.STORE), int(Op.LOAD))
    op[0] = int(Op.LOAD)
    repeat = np.ones(1 + hot_per_weight, dtype=np.int64)
    repeat[0] = options["repeat"]
    return rows_of(np.broadcast_to(op, vpn.shape).ravel(), vpn.ravel(), 0, np.broadcast_to(repeat, vpn.shape).ravel())


WORKLOAD = Workload("llama.cpp: cyclic read-only scan of a model file, hot activations", OPTIONS, build)
