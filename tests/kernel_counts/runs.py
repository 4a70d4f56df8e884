"""Kernel-count workloads on a small machine under the ``linux`` preset: what was counted, and the state before and after each event."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from lufjax.engine import Machines, counters_of, simulate
from lufjax.events import OP, REPEAT, Op
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.presets import load_policy
from lufjax.snapshot import snapshot
from lufjax.sweeps.traces import fit
from lufjax.trace import Trace
from lufjax.workloads import build

SHAPE = MachineShape(
    num_cpus=8, num_processes=1, num_vpns=256, num_frames=128, num_vmas=16, num_file_pages=192, num_anon=192, l1=TlbGeometry(4, 4),
    l2=TlbGeometry(8, 4), rmap_slots=1, batch_slots=8, pcp_slots=4, quarantine_slots=1,
)  # fmt: skip
"""Eight CPUs; a trace of fewer leaves the others without a process."""
BATCH = 8
"""Pages that one flush of reclaim covers at most; an input of the model."""
MAPPING = {"munmap": {}, "munmap_ft": {"free_tables": True}, "mprotect": {}, "madvise": {}, "concurrent": {"concurrent": True}}
"""Mode -> options beside the placement."""


@dataclass(frozen=True)
class Counts:
    """What one run counted from event ``begin`` on."""

    counters: dict[str, int]
    received: list[int]

    def __getitem__(self, name: str) -> int:
        return self.counters[name]


def linux_params(*, load_mode: bool, kswapd_cpu: int = 0) -> MachineParams:
    """For mapping calls memory that is never short; for a scan of a file 64 frames that the machine reclaims by itself."""
    frames, low, mark, high = (64, 4, 8, 16) if load_mode else (128, 0, 1, 1)
    return MachineParams(
        frames_in_use=frames, wmark_min=low, wmark_low=mark, wmark_high=high, pcp_batch=1, pcp_high=2, reclaim_batch=BATCH,
        kswapd_cpu=kswapd_cpu, load_mode=int(load_mode), fast_frames=frames, policy=load_policy("linux"),
    )  # fmt: skip


def prepare(mode: str, num_cpus: int, num_events: int, kswapd_cpu: int = 0, **options: Any) -> tuple[MachineShape, MachineParams, Trace]:
    """Shape, parameters and fitted trace of one run."""
    is_reclaim = mode.startswith("ro_")
    name = {"munmap_ft": "munmap", "concurrent": "madvise"}.get(mode, mode)
    more = {"file_pages": 192} if is_reclaim else MAPPING[mode]
    shape = replace(SHAPE, num_cpus=1) if num_cpus == 1 else SHAPE
    trace = build(name, options | more, num_cpus=num_cpus, seed=0, num_events=num_events)
    return shape, linux_params(load_mode=is_reclaim, kswapd_cpu=kswapd_cpu), fit(trace, shape)


def count(mode: str, num_cpus: int, *, num_events: int = 4000, begin: int = 0, **options: Any) -> Counts:
    """Run a workload and count from event ``begin`` on."""
    shape, params, trace = prepare(mode, num_cpus, num_events, **options)
    lane = jax.tree.map(lambda value: np.array([value], np.int32), params)
    points = [begin, num_events] if begin else [num_events]
    samples = simulate(shape, lane, [trace, _every_op(trace)], np.zeros(1, np.int32), sample_points=points, backend="native", num_devices=1)
    assert not samples.violations.any()

    def since(values: np.ndarray) -> np.ndarray:
        return values[0, -1] - (values[0, 0] if begin else 0)

    return Counts({name: int(since(values)) for name, values in samples.counters.items()}, since(samples.received).tolist())


def _every_op(trace: Trace) -> Trace:
    """A trace that no lane runs: with it every mode compiles to the same program, once for all tests."""
    events = np.zeros_like(trace.events)
    events[:, OP], events[:, REPEAT] = np.resize([*Op], len(events)), 1
    return replace(trace, events=events)


@dataclass(frozen=True)
class Step:
    """One event of a stepped run: its row, the state before and after it, and by how much the counters grew."""

    row: list[int]
    before: dict[str, Any] = field(repr=False)
    after: dict[str, Any] = field(repr=False)
    grew: dict[str, int]


def steps(mode: str, num_cpus: int, *, num_events: int, op: Op | None = None, **options: Any) -> Iterator[Step]:
    """Run a workload event by event; yields the events of one op, or all."""
    shape, params, trace = prepare(mode, num_cpus, num_events, **options)
    machine = Machines(shape, [params], [trace], backend="native")
    for row in trace.events:
        if op not in (None, row[1]):
            machine.step(row[None])
            continue
        before, counted = _look(machine)
        machine.step(row[None])
        after, counts = _look(machine)
        yield Step(row.tolist(), before, after, {name: counts[name] - counted[name] for name in counts if isinstance(counts[name], int)})


def _look(machine: Machines) -> tuple[dict[str, Any], dict[str, Any]]:
    (state,) = machine.host()
    return snapshot(machine.shape, state), counters_of(state)


def num_bits(mask: int) -> int:
    """CPUs of a set."""
    return mask.bit_count()
