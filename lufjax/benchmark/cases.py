"""The batches that ``lufjax bench`` measures."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from lufjax import engine
from lufjax.benchmark.options import POLICIES, BenchOptions
from lufjax.config import load_run_config
from lufjax.params import MachineParams, MachineShape
from lufjax.sweeps.grid import plan
from lufjax.sweeps.traces import TraceKey, TraceSource, fit, measure
from lufjax.trace import Trace


@dataclass(frozen=True)
class Case:
    """A batch to measure: overrides of ``lufjax run``, frames in use, how many lanes and events."""

    name: str
    overrides: tuple[str, ...]
    policies: tuple[str, ...]
    num_frames: int
    num_lanes: int
    num_events: int
    max_seeds: int


@dataclass(frozen=True)
class Batch:
    """Lanes as the engine takes them. ``policy``: of each lane, its position in the case's list."""

    shape: MachineShape
    params: MachineParams
    traces: tuple[Trace, ...]
    trace_index: np.ndarray
    policy: np.ndarray
    num_events: int

    def take(self, lanes: np.ndarray) -> Batch:
        """Some of the lanes, in that order; a lane may be taken twice."""
        params = jax.tree.map(lambda leaf: leaf[lanes], self.params)
        return replace(self, params=params, trace_index=self.trace_index[lanes], policy=self.policy[lanes])

    @property
    def lane_events(self) -> int:
        return len(self.trace_index) * self.num_events

    def run(self, backend: str, num_events: int | None = None) -> tuple[float, engine.Samples]:
        """Seconds from the call to the counters on the host, and what was counted."""
        begin = time.perf_counter()
        samples = engine.simulate(
            self.shape, self.params, self.traces, self.trace_index, sample_points=[num_events or self.num_events], backend=backend
        )
        return time.perf_counter() - begin, samples


def cases(chosen: BenchOptions, backend: str) -> list[Case]:
    """What is measured. A lane starts before all frames are in use; the events suffice to go on well after that."""
    kind = "xla on cpu" if backend == "xla" and jax.default_backend() == "cpu" else backend
    lanes, events = {"native": (64, 240_000), "cuda": (65_536, 12_000), "xla": (2048, 12_000), "xla on cpu": (256, 3000)}[kind]
    lanes, events = (8, 20_000) if chosen.quick else (chosen.lanes or lanes, chosen.events or events)
    big_sizes = {} if chosen.quick else {"native": (engine.num_cores(), 1_500_000), "cuda": (1024, 20_000)}
    seeds = 64 if backend == "cuda" else 8  # a thread block has no two lanes that are the same
    frames = 256 if chosen.quick else 1024
    eight = ("machine=default", "num_cpus=8", "workload.file_pages=3968")
    big = ("machine=big", "num_cpus=64", "workload=llm", "workload.file_pages=262016", "workload.num_processes=4")
    return [
        Case("llm_8cpu", (*eight, "workload=llm"), POLICIES, frames, lanes, events, seeds),
        Case("random_read_8cpu", (*eight, "workload=random_read"), POLICIES, frames, lanes, events, seeds),
        Case("llm_64cpu_big", big, ("linux", "luf_v10"), 65536, *big_sizes.get(backend, (1, 3000)), 1),
    ]


def build(case: Case) -> Batch:
    """Lay the lanes out as ``lufjax run`` does, the largest trace at the pressure that leaves exactly ``num_frames``."""
    seeds = max(1, min(case.max_seeds, case.num_lanes // len(case.policies)))
    axes = (f"axes.policy=[{','.join(case.policies)}]", f"axes.seed={seeds}", f"num_events={case.num_events}")
    config = load_run_config([*case.overrides, *axes])
    source = TraceSource(config.workloads, config.num_events, 2**40)
    keys = [TraceKey(w, c, s) for w in config.workloads for c in config.num_cpus for s in config.seeds]
    footprint = max(measure(source.get(key)).footprint for key in keys)
    (group,) = plan(replace(config, pressures=(Fraction(footprint, case.num_frames),)), source)  # type: ignore[arg-type]
    shape = replace(group.shape, quarantine_slots=int(group.params.policy.quarantine_slots.max()))
    traces = tuple(fit(source.get(key), shape) for key in group.trace_keys)
    batch = Batch(shape, group.params, traces, group.trace_index, group.index[:, 1], case.num_events)
    return batch.take(np.arange(case.num_lanes) % group.num_lanes)


def describe(case: Case, batch: Batch, size: int) -> dict[str, Any]:
    """What was measured."""
    shape = asdict(batch.shape)
    config = {"overrides": list(case.overrides), "policies": list(case.policies), "num_traces": len(batch.traces)}
    return {"bytes_per_lane": size, "lanes": case.num_lanes, "events": case.num_events, "config": config, "shape": shape}
