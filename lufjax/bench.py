"""``lufjax bench``: how fast the engine is here, beside a plain C program of the same machine on the same lanes.

Engine and C run in turns, so that both meet the same neighbours on a shared machine; medians and extremes are reported. Nothing is
reported unless both counted the same. ``docs/PERFORMANCE.md`` says what limits the numbers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from lufjax import __version__, bench_lanes, engine
from lufjax.config import load_run_config
from lufjax.grid import plan
from lufjax.params import MachineParams, MachineShape
from lufjax.provenance import installed_version
from lufjax.settings import number, word
from lufjax.trace import Trace
from lufjax.traces import TraceKey, TraceSource, fit, measure

PACKAGE = Path(__file__).resolve().parent
REFERENCES = (PACKAGE.parent / "experiments" / "benchmarks" / "reference.py", PACKAGE / "_benchmarks" / "reference.py")
"""Where the driver of the C program is: in the source tree, in an installed package."""
POLICIES = ("never", "eager", "linux", "linux_6_15", "luf_vma_flag", "luf_v10", "fpr", "latr")
DEVICES = ("cpu", "gpu")
ONE_CORE_LANES = 512
"""Lanes, the first ones, that the C program runs on one core; what a lane costs it does not depend on how many there are."""
REPEATS = 5
FAILED = 1


@dataclass(frozen=True)
class BenchOptions:
    """Arguments of ``lufjax bench``.

    Attributes:
        device: ``cpu`` or ``gpu``; None: what JAX finds.
        lanes: lanes of the default shape, a multiple of the number of policies; None: as the backend needs for a second or two.
        events: events of each lane; None: likewise.
        quick: a smoke test of a few seconds; its numbers mean nothing.
        outputs: ``results.nc`` and the figure go to ``<outputs>/bench/<time>``.
    """

    device: str | None = None
    backend: str = "auto"
    lanes: int | None = None
    events: int | None = None
    quick: bool = False
    outputs: str = "outputs"


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


def main(options: Mapping[str, Any]) -> int:
    """Measure and print. ``options``: words of the command line, and ``json``. Returns the exit code."""
    given = dict(options)
    as_json = bool(given.pop("json", False))
    chosen = parse(given)
    os.environ |= {"LUFJAX_CACHE_DIR": "off", "CUDA_CACHE_DISABLE": "1"}  # compile times are measured, not read
    backend = choose_device(chosen.device, chosen.backend)
    reference, missing = load_reference(), None
    with tempfile.TemporaryDirectory() as folder:
        try:
            binary = reference.compile_reference(reference.find_compiler(), Path(folder))
        except reference.ReferenceUnavailable as error:
            binary, missing = None, str(error)
            print(f"lufjax bench: {error}; no ratios", file=sys.stderr)
        try:
            report = measure_all(chosen, backend, reference, binary)
        except Disagreement as error:
            print(f"lufjax bench: {error}; nothing is reported", file=sys.stderr)
            return FAILED
    report |= {"c_program": {"missing": missing} if missing else c_facts(reference), "versions": versions(), "options": asdict(chosen)}
    folder = bench_lanes.write(report, Path(chosen.outputs) / "bench")
    print(json.dumps(report | {"results": str(folder)}) if as_json else f"{as_text(report)}\n{folder}")
    return 0


def parse(given: Mapping[str, Any]) -> BenchOptions:
    """Check the words of the command line.

    Raises:
        ValueError: one line naming the word, its value and what is allowed.
    """
    known = [field.name for field in fields(BenchOptions)]
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{key}={value}: no such key; allowed are {', '.join(known)}")
    chosen = BenchOptions(**given)
    if chosen.device is not None:
        word(chosen.device, "device", DEVICES)
    word(chosen.backend, "backend", engine.BACKENDS)
    if not isinstance(chosen.quick, bool):
        raise ValueError(f"quick={chosen.quick}: allowed are true, false")
    if chosen.lanes is not None and number(chosen.lanes, "lanes", len(POLICIES), 2**20) % len(POLICIES):
        raise ValueError(f"lanes={chosen.lanes}: allowed are multiples of {len(POLICIES)}, the number of policies")
    if chosen.events is not None:
        number(chosen.events, "events", 1000, 2**26)
    return chosen


def choose_device(device: str | None, backend: str) -> str:
    """Make JAX use a kind of device. Returns the backend, resolved.

    Raises:
        ValueError: there is none.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    engine.use_all_cores()
    chosen = engine.resolve_backend(backend)
    found = engine.device_facts(chosen)["platform"]
    if device is not None and found != device:
        hint = "; a CUDA device needs CuPy (pip install 'lufjax[gpu]')" if device == "gpu" else ""
        raise ValueError(f"device={device}: no such device found for backend={backend}; allowed is {found}{hint}")
    return chosen


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


def load_reference() -> ModuleType:
    """The driver of the C program, beside the source tree or inside the installed package."""
    path = next(path for path in REFERENCES if path.is_file())
    spec = importlib.util.spec_from_file_location("lufjax_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe(case: Case, batch: Batch, size: int) -> dict[str, Any]:
    """What was measured."""
    shape = asdict(batch.shape)
    config = {"overrides": list(case.overrides), "policies": list(case.policies), "num_traces": len(batch.traces)}
    return {"bytes_per_lane": size, "lanes": case.num_lanes, "events": case.num_events, "config": config, "shape": shape}


def device_facts(backend: str) -> dict[str, Any]:
    """The device and the CPU model."""
    return engine.device_facts(backend) | {"cpu_model": cpu_model(), "num_cores": engine.num_cores()}


def cpu_model() -> str:
    """Name of the CPU as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, Any]:
    """Versions of everything that decides the speed."""
    packages = ("jax", "jaxlib", "numpy", "llvmlite", "cupy-cuda13x", "cupy-cuda12x")
    return {"lufjax": __version__, "python": platform.python_version()} | {name: installed_version(name) for name in packages}


def c_facts(reference: ModuleType) -> dict[str, Any]:
    """Compiler and flags of the C program."""
    done = subprocess.run([reference.find_compiler(), "--version"], capture_output=True, text=True, check=False)
    return {"compiler": (done.stdout.splitlines() or ["unknown"])[0], "flags": list(reference.FLAGS), "threads": engine.num_cores()}


def as_text(report: Mapping[str, Any]) -> str:
    """A short table for people."""
    device = report["device"]
    lines = [f"{device['cpu_model']}, {device['num_cores']} cores; device {device['kind']}; backend {report['backend']}"]
    lines.append(", ".join(f"{name} {value}" for name, value in report["versions"].items() if value))
    for name, case in report["cases"].items():
        spread = f"{case['steady_s_min']:.2f} to {case['steady_s_max']:.2f}"
        lines.append(f"{name}: {case['events_per_s'] / 1e6:.2f} M events/s ({case['lanes']} lanes x {case['events']}, {spread} s)")
        lines.append(f"  compile {case['compile_s']:.2f} s, first {case['first_s']:.2f} s, {case['bytes_per_lane']} bytes per lane")
        if "ratio_to_c" in case:
            spread = f"{case['ratio_to_c_min']:.3f} to {case['ratio_to_c_max']:.3f}"
            lines.append(f"  C {case['c_events_per_s'] / 1e6:.2f} M events/s, ratio {case['ratio_to_c']:.3f} ({spread}), counters equal")
            one_core = f"{case['c_one_core_events_per_s'] / 1e6:.2f} M events/s, ratio {case['ratio_to_c_one_core']:.3f}"
            lines.append(f"  C on one core {one_core}")
    low, high = report["mixed_over_most_expensive_min"], report["mixed_over_most_expensive_max"]
    lines.append(
        f"8 policies mixed / {report['most_expensive_policy']} alone: {report['mixed_over_most_expensive']:.3f} ({low:.3f} to {high:.3f})"
    )
    return "\n".join(lines)
