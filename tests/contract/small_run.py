"""Small runs of shipped workloads under shipped policies: a shape that fits, parameters with memory pressure, traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lufjax import workloads
from lufjax.engine import Samples, simulate
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.presets import load_policy, load_preset
from lufjax.sweeps.traces import fit, measure
from lufjax.trace import Trace

L1, L2 = TlbGeometry(4, 2), TlbGeometry(8, 3)


@dataclass(frozen=True)
class SmallRun:
    """Lanes of one shape: every policy on every trace."""

    shape: MachineShape
    params: MachineParams
    traces: tuple[Trace, ...]
    trace_index: np.ndarray

    @property
    def num_lanes(self) -> int:
        return len(self.trace_index)

    def lanes(self, order: Sequence[int] | np.ndarray) -> SmallRun:
        """Some lanes, in this order."""
        order = np.asarray(order)
        return replace(self, params=jax.tree.map(lambda leaf: leaf[order], self.params), trace_index=self.trace_index[order])

    def samples(self, points: Sequence[int] | None = None, **options: Any) -> Samples:
        """Run all lanes."""
        sample_points = points or [self.traces[0].num_events]
        return simulate(self.shape, self.params, self.traces, self.trace_index, sample_points=sample_points, **({"backend": "native"} | options))


def build_trace(workload: str, num_cpus: int, seed: int, num_events: int, **options: Any) -> Trace:
    """A trace of a shipped workload, from its preset."""
    preset = {**load_preset("workload", workload), **options}
    return workloads.build(preset.pop("name"), preset, num_cpus=num_cpus, seed=seed, num_events=num_events)


def small_run(traces: Sequence[Trace], policies: Sequence[str], *, pressure: float = 1.5, **sizes: Any) -> SmallRun:
    """Lanes for every policy (outer) and trace (inner), with memory for ``1 / pressure`` of the pages that a trace touches."""
    needs = [measure(trace) for trace in traces]
    frames = [max(48, int(need.footprint / pressure)) for need in needs]
    shape = MachineShape(**{
        "num_cpus": max(trace.num_cpus for trace in traces), "l1": L1, "l2": L2, "num_frames": max(frames), "batch_slots": 8, "pcp_slots": 8,
        "quarantine_slots": 64,
        **{name: max(1, *(getattr(need, name) for need in needs)) for name in (
            "num_processes", "num_vpns", "num_vmas", "num_file_pages", "num_anon", "rmap_slots", "gather_slots",
        )},
        **sizes,
    })  # fmt: skip
    numbers = {"wmark_min": 2, "wmark_low": 6, "wmark_high": 10, "pcp_batch": 2, "pcp_high": 4, "reclaim_batch": 8, "kswapd_cpu": 0, "load_mode": 1}
    records = [load_policy(name) for name in policies for _ in traces]
    params = MachineParams(
        frames_in_use=np.array(frames * len(policies), np.int32),
        fast_frames=np.array(frames * len(policies), np.int32),
        **{name: np.full(len(records), value, np.int32) for name, value in numbers.items()},
        policy=FlushPolicy(*np.array(records, np.int32).T),
    )
    index = np.tile(np.arange(len(traces), dtype=np.int32), len(policies))
    return SmallRun(shape, params, tuple(fit(trace, shape) for trace in traces), index)


def flatten(samples: Samples) -> dict[str, np.ndarray]:
    """Everything that lanes counted, by name."""
    return {
        **samples.counters, **{f"histogram_{name}": values for name, values in samples.histograms.items()},
        "received": samples.received, "violations": samples.violations, "first_violation": samples.first_violation,
    }  # fmt: skip


def assert_same(ours: Samples, theirs: Samples) -> None:
    """Every number of two results is the same."""
    one, other = flatten(ours), flatten(theirs)
    assert set(one) == set(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def pick_lanes(samples: Samples, order: Sequence[int] | np.ndarray) -> Samples:
    """Lanes of a result, in this order."""
    order = np.asarray(order)
    return Samples(
        {name: values[order] for name, values in samples.counters.items()}, {name: values[order] for name, values in samples.histograms.items()},
        samples.received[order], samples.violations[order], samples.first_violation[order],
    )  # fmt: skip
