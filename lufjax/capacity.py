"""How much memory a run needs, said before it starts, and refusing one that cannot fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lufjax.grid import Group
from lufjax.params import MachineShape
from lufjax.settings import RunConfig
from lufjax.store import lane_bytes

BASE_BYTES = 700 * 2**20
"""Python, JAX and compiled programs: an allowance, about 500 MiB were seen."""
STATE_COPIES = 2
"""The state of the lanes in memory at a time, and one copy while it is made and handed over."""
MIB = 2**20


@dataclass(frozen=True)
class Need:
    """Peak memory of a run in bytes, by part, and what a lane takes."""

    state: int
    traces: int
    results: int
    largest_lane: int
    smallest_lane: int

    @property
    def total(self) -> int:
        return BASE_BYTES + self.state + self.traces + self.results


def need(config: RunConfig, groups: Sequence[Group], bytes_per_lane: Callable[[MachineShape], int]) -> Need:
    """Estimate the peak: the largest chunk, its traces beside the cached ones, and all results in memory at the end."""
    lanes = [bytes_per_lane(group.shape) for group in groups]
    samples = len(config.sample_points)
    at_once = lanes_at_once(config)
    chunk = max(min(at_once, config.engine.chunk_lanes, group.num_lanes) * size for group, size in zip(groups, lanes, strict=True))
    traces = max(min(len(group.trace_keys), config.engine.chunk_lanes) * group.trace_bytes for group in groups)
    results = sum(group.num_lanes * lane_bytes(samples, group.shape.num_cpus) for group in groups)
    return Need(STATE_COPIES * chunk, 2 * traces + config.engine.trace_cache_mib * MIB, 2 * results, max(lanes), min(lanes))


EVENT_BYTES = 100
"""One event row of a trace while the trace is built, and packed for the engine."""


def refuse_long_traces(config: RunConfig, limit: int) -> None:
    """Refuse, before any trace is built, events that cannot fit for a single trace.

    Raises:
        ValueError: one line naming the option to lower.
    """
    allowed = limit * config.engine.memory_percent // 100
    if EVENT_BYTES * config.num_events > allowed:
        wanted = EVENT_BYTES * config.num_events // MIB
        raise ValueError(f"num_events={config.num_events}: one trace takes {wanted} MiB, and {allowed // MIB} MiB are allowed; lower it")


def lanes_at_once(config: RunConfig) -> int:
    """Lanes whose state is in memory at a time."""
    from lufjax import engine

    if engine.resolve_backend(config.engine.backend) == "xla":
        return config.engine.chunk_lanes
    return (config.engine.block_lanes or engine.NATIVE_BLOCK_LANES) * (config.engine.num_devices or engine.num_cores())


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
