"""Stands in for ``lufjax.engine``: integers that depend on the lane alone, whatever chunk or group it is simulated in."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from lufjax.counters import GAUGES, HISTOGRAMS, NUM_BUCKETS, NUM_CLASSES, SCALARS


@dataclass(frozen=True)
class Samples:
    counters: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]
    received: np.ndarray
    violations: np.ndarray
    first_violation: np.ndarray


@dataclass
class FakeEngine:
    """Records its calls; ``before`` and ``before_compiling`` let a test break one."""

    calls: list[dict] = field(default_factory=list)
    compiled: list[tuple] = field(default_factory=list)
    before: object = None
    before_compiling: object = None

    def use_all_cores(self) -> None:
        pass

    def bytes_per_lane(self, shape) -> int:
        return 1000 * shape.num_cpus

    def compile_ahead(self, shape, params, ops, backend) -> None:
        if self.before_compiling is not None:
            self.before_compiling(len(self.compiled))
        self.compiled.append((shape, ops))

    def simulate(
        self, shape, params, traces, trace_index, *, sample_points, block_lanes=128, num_devices=None, backend="auto", strip=False, ops=None,
        progress=None,
    ) -> Samples:
        if self.before is not None:
            self.before(len(self.calls))
        lanes = len(trace_index)
        assert all(trace.ops <= ops for trace in traces)
        assert all(len(leaf) == lanes for leaf in (*params[:-1], *params.policy))
        assert all(trace.num_cpus == shape.num_cpus for trace in traces)
        assert {trace.num_events for trace in traces} == {sample_points[-1]}
        self.calls.append({"shape": shape, "params": params, "ops": ops, "lanes": lanes, "traces": len(traces), "policy": params.policy})
        # The machine's own numbers and the events decide; the padding of the trace does not.
        record = np.stack([*params[:-1], *params.policy], axis=1).astype(np.int64)
        seeds = np.array([zlib.crc32(np.ascontiguousarray(trace.events)) for trace in traces], np.int64)[trace_index]
        key = (record * np.arange(1, record.shape[1] + 1)).sum(axis=1) % 1000 + seeds % 1000
        points = np.array(sample_points, np.int64)
        names = (*SCALARS, *GAUGES)
        counters = {name: (key[:, None] + number) * points for number, name in enumerate(names)}
        by_bucket = (key[:, None, None] % 7 + np.arange(NUM_BUCKETS)) * points[None, :, None]
        histograms = {name: by_bucket * (number + 1) for number, name in enumerate(HISTOGRAMS)}
        received = (key[:, None, None] + np.arange(shape.num_cpus)) * points[None, :, None]
        violations = (key[:, None, None, None] % 5) * points[None, :, None, None] * np.arange(2 * NUM_CLASSES).reshape(NUM_CLASSES, 2)
        first = np.repeat(key[:, None, None] % 50, NUM_CLASSES, axis=1) * np.array([1, 0, 0, 1])
        if progress is not None:
            progress(int(points[-1]) // 2, int(points[-1]))
        return Samples(counters, histograms, received, violations, first)
