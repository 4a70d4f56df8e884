"""How much memory a run needs, said before it starts, and refusing one that cannot fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lufjax.params import MachineShape
from lufjax.results.store import lane_bytes
from lufjax.settings import RunConfig
from lufjax.sweeps.grid import Group, strips

MIB = 2**20
BASE_BYTES = 380 * MIB
"""Python, the libraries, and LLVM at work."""
XLA_BYTES = 900 * MIB
"""XLA at work on its program, which it compiles when the first states are made."""
COMPILE_BYTES_PER_WAY = 80 * 2**10
"""Machine code that looks at one set of each TLB of every CPU, while it is made."""
FIGURE_BYTES = 60 * MIB
STATE_COPIES = 4
"""The state of the lanes in memory at a time: as each trace begins it, those put together, as each lane begins it, and as the runner has it."""
EVENT_BYTES = 100
"""One event row of a trace while the trace is built."""
ROW_BYTES, PACKED_BYTES, PACKING_BYTES = 20, 16, 28
"""One event row of a trace; as the engine reads it; what it takes beside those while it is packed."""
RECORD_BYTES, STRIPPING_BYTES = 16, 24
"""The same of a trace that is stripped, beyond those: for the engine, and while it is packed."""
RESULT_COPIES = 4
"""Results in the store's arrays, in those of the data set, and on their way into the file."""


@dataclass(frozen=True)
class Need:
    """Peak memory of a run in bytes, by part, and what a lane takes. ``base``: whatever is run. ``total``: a tenth more, for memory in pieces."""

    base: int
    state: int
    traces: int
    results: int
    largest_lane: int
    smallest_lane: int

    @property
    def total(self) -> int:
        return (self.base + self.state + self.traces + self.results) * 11 // 10


def need(config: RunConfig, groups: Sequence[Group], bytes_per_lane: Callable[[MachineShape], int]) -> Need:
    """Estimate the peak, from above: the worst moment of the worst chunk, and all results in memory at the end.

    The events of a chunk's traces are put together, then packed; what was put together is gone when the states are made.
    """
    from lufjax import engine

    backend = engine.resolve_backend(config.engine.backend)
    lanes = [bytes_per_lane(group.shape) for group in groups]
    kept = min(config.engine.trace_cache_mib * MIB, sum(len(group.trace_keys) * group.trace_bytes for group in groups))
    parts = []
    for group, size in zip(groups, lanes, strict=True):
        chunk = min(config.engine.chunk_lanes, group.num_lanes)
        used = min(len(group.trace_keys), chunk)
        rows = used * config.num_events
        fitted = max(0, used * group.trace_bytes - ROW_BYTES * rows)
        begun = min(chunk, len(np.unique(engine.start_facts(group.params, group.trace_index), axis=0))) if backend == "cuda" else chunk
        once = lanes_at_once(config, backend, begun) * size
        state = max(STATE_COPIES * once, once + XLA_BYTES * (backend == "xla"))
        stripped = rows * strips(config, group.trace_keys)
        building = max(PACKING_BYTES * rows + STRIPPING_BYTES * stripped, EVENT_BYTES * config.num_events)
        parts.append((state, max(kept, used * group.trace_bytes) + fitted + PACKED_BYTES * rows + RECORD_BYTES * stripped + max(0, building - state)))
    state, traces = max(parts, key=sum)
    ways = max(group.shape.num_cpus * (group.shape.l1.ways + group.shape.l2.ways) for group in groups)
    base = BASE_BYTES + COMPILE_BYTES_PER_WAY * ways + FIGURE_BYTES * config.figures
    results = RESULT_COPIES * sum(group.num_lanes * lane_bytes(len(config.sample_points), group.shape.num_cpus) for group in groups)
    return Need(base, state, traces, results, max(lanes), min(lanes))


def refuse_long_traces(config: RunConfig, limit: int) -> None:
    """Refuse, before any trace is built, events that cannot fit for a single trace.

    Raises:
        ValueError: one line naming the option to lower.
    """
    allowed = limit * config.engine.memory_percent // 100
    if EVENT_BYTES * config.num_events > allowed:
        wanted = EVENT_BYTES * config.num_events // MIB
        raise ValueError(f"num_events={config.num_events}: one trace takes {wanted} MiB, and {allowed // MIB} MiB are allowed; lower it")


def lanes_at_once(config: RunConfig, backend: str, chunk: int) -> int:
    """Lanes of a chunk whose state is in this machine's memory at a time; of those on a GPU, ``chunk`` counts equal beginnings once."""
    if backend != "native":
        return chunk
    from lufjax.backends.runners import native_blocks

    block, workers = native_blocks(chunk, config.engine.block_lanes, config.engine.num_devices)
    return block * workers


def refuse_if_too_large(config: RunConfig, needed: Need, limit: int) -> None:
    """Refuse a run that cannot fit.

    Raises:
        ValueError: one line naming the option to lower.
    """
    allowed = limit * config.engine.memory_percent // 100
    if needed.total <= allowed:
        return
    parts = {
        needed.state: f"engine.chunk_lanes={config.engine.chunk_lanes}" if config.engine.chunk_lanes > 1 else "machine or workload sizes",
        needed.traces: f"num_events={config.num_events}, or engine.trace_cache_mib={config.engine.trace_cache_mib}",
        needed.results: f"num_samples={config.num_samples}, or the number of points",
    }
    raise ValueError(
        f"{parts[max(parts)]}: too large; the run needs {needed.total // MIB} MiB (state {needed.state // MIB}, "
        f"traces {needed.traces // MIB}, results {needed.results // MIB}); "
        f"allowed are {allowed // MIB} MiB (engine.memory_percent={config.engine.memory_percent})"
    )


def memory_limit() -> int:
    """Memory of this machine in bytes, or of the control group that confines the process where that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return installed
    return min(installed, int(text)) if text.isdigit() else installed
