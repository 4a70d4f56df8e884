"""Engine and C program in turns, so that both meet the same neighbours on a shared machine; each of their counts is compared."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lufjax import engine
from lufjax.benchmark import bench_lanes
from lufjax.benchmark.cases import Batch, Case, build, cases, describe
from lufjax.benchmark.facts import device_facts
from lufjax.benchmark.options import BenchOptions

ONE_CORE_LANES = 512
"""Lanes, the first ones, that the C program runs on one core; what a lane costs it does not depend on how many there are."""
REPEATS = 5


class Disagreement(RuntimeError):
    """Engine and C program counted different things."""


def measure_all(chosen: BenchOptions, backend: str, reference: ModuleType, binary: Path | None) -> dict[str, Any]:
    """Every case, then the mixed batch against its most expensive policy."""
    repeats = REPEATS
    report: dict[str, Any] = {"backend": backend, "device": device_facts(backend), "repeats": repeats, "cases": {}}
    for case in cases(chosen, backend):
        batch = build(case)
        size = engine.bytes_per_lane(batch.shape)
        print(f"lufjax bench: {case.name}: {case.num_lanes} lanes of {case.num_events} events, {size} bytes per lane", file=sys.stderr)
        found = measure_case(case.name, batch, backend, repeats, reference, binary)
        report["cases"][case.name] = found | describe(case, batch, size)
        if "ratio_to_c" in found:
            report[f"ratio_to_c_{case.name}"] = found["ratio_to_c"]
        if case.name == "llm_8cpu":
            report |= measure_mixed(case, batch, backend, repeats)
    report["by_lanes"] = measure_by_lanes(chosen, backend, repeats, reference, binary)
    return report


def measure_by_lanes(chosen: BenchOptions, backend: str, repeats: int, reference: ModuleType, binary: Path | None) -> dict[str, Any]:
    """Lanes of one policy on the machine of ``llm_8cpu``, from few to many."""
    like = cases(chosen, backend)[0]
    most = 256 if backend == "native" and not chosen.quick else like.num_lanes
    step, steps = {"native": (2, 9), "cuda": (4, 6), "xla": (4, 3)}[backend]
    counts = sorted({max(1, most // step**k) for k in range(steps)})
    batch = build(replace(like, policies=("luf_v10",), num_lanes=most, num_events=like.num_events // 4))
    return bench_lanes.measure_lanes(
        batch, counts, backend, repeats, lambda part: turn("lanes", part, backend, reference, binary),
        lambda part: part.run(backend, num_events=1),
    )  # fmt: skip


def measure_case(
    name: str, batch: Batch, backend: str, repeats: int, reference: ModuleType, binary: Path | None
) -> dict[str, Any]:  # fmt: skip
    """Compile, then run engine and C in turns. The first call runs one event: compilation and setting up, and little else."""
    compile_s, _ = batch.run(backend, num_events=1)
    part = batch.take(np.arange(min(len(batch.trace_index), ONE_CORE_LANES)))
    ours, theirs, alone = [], [], []
    for _ in range(repeats):
        seconds, c_seconds = turn(name, batch, backend, reference, binary)
        ours.append(seconds)
        if binary is not None:
            theirs.append(c_seconds)
            alone.append(reference.run_reference(binary, part.shape, part.params, part.traces, part.trace_index, [part.num_events]).seconds)
    steady = statistics.median(ours)
    found = {
        "events_per_s": round(batch.lane_events / steady), "compile_s": compile_s, "first_s": compile_s + ours[0], "steady_s": steady,
        "steady_s_min": min(ours), "steady_s_max": max(ours), "engine_s_all": ours,
    }  # fmt: skip
    if not theirs:
        return found
    ratios = sorted(c / e for c, e in zip(theirs, ours, strict=True))
    one_core = sorted(c / part.lane_events * batch.lane_events / e for c, e in zip(alone, ours, strict=True))
    c_time = statistics.median(theirs)
    return found | {
        "c_events_per_s": round(batch.lane_events / c_time), "c_s": c_time, "c_s_min": min(theirs), "c_s_max": max(theirs), "c_s_all": theirs,
        "ratio_to_c": statistics.median(ratios), "ratio_to_c_min": ratios[0], "ratio_to_c_max": ratios[-1], "counters_equal": True,
        "c_one_core_events_per_s": round(part.lane_events / statistics.median(alone)),
        "ratio_to_c_one_core": statistics.median(one_core), "ratio_to_c_one_core_min": one_core[0], "ratio_to_c_one_core_max": one_core[-1],
    }  # fmt: skip


def turn(name: str, batch: Batch, backend: str, reference: ModuleType, binary: Path | None) -> tuple[float, float | None]:
    """Seconds of the engine and, where there is one, of the C program, on the same lanes.

    Raises:
        Disagreement: they counted different things.
    """
    ours, samples = batch.run(backend)
    if binary is None:
        return ours, None
    result = reference.run_reference(
        binary, batch.shape, batch.params, batch.traces, batch.trace_index, [batch.num_events], engine.num_cores()
    )  # fmt: skip
    refuse_difference(name, samples, result)
    return ours, result.seconds


def measure_mixed(case: Case, batch: Batch, backend: str, repeats: int) -> dict[str, Any]:
    """The batch of all policies against as many lanes, on the same traces, of the policy that takes longest."""
    alone = {name: batch.take(_lanes_of(batch, p)) for p, name in enumerate(case.policies)}
    slowest = max(alone, key=lambda name: min(alone[name].run(backend)[0] for _ in range(2)))
    pairs = [(batch.run(backend)[0], alone[slowest].run(backend)[0]) for _ in range(repeats)]
    ratios = sorted(mixed / single for mixed, single in pairs)
    return {
        "mixed_over_most_expensive": statistics.median(ratios), "mixed_over_most_expensive_min": ratios[0],
        "mixed_over_most_expensive_max": ratios[-1], "most_expensive_policy": slowest,
    }  # fmt: skip


def _lanes_of(batch: Batch, policy: int) -> np.ndarray:
    """As many lanes as the batch has, all of one policy, each trace as often as in the batch."""
    return np.resize(np.flatnonzero(batch.policy == policy), len(batch.policy))


def refuse_difference(name: str, samples: engine.Samples, result: Any) -> None:
    """Compare everything that both counted.

    Raises:
        Disagreement: names the case, the first counter and the first lane that differ.
    """
    pairs = [(key, value, result.counters[key]) for key, value in samples.counters.items()]
    pairs += [(key, value, result.histograms[key]) for key, value in samples.histograms.items()]
    pairs += [(key, getattr(samples, key), getattr(result, key)) for key in ("received", "violations", "first_violation")]
    for key, ours, theirs in pairs:
        lanes = np.flatnonzero((ours != theirs).reshape(len(ours), -1).any(1))
        if len(lanes):
            raise Disagreement(f"{name}: the engine and reference.c differ in {key} on {len(lanes)} lanes, first on lane {lanes[0]}")
