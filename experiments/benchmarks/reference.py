"""Build and run ``reference.c``: the same machine as one plain C program, the competitor that the benchmarks measure against.

The program needs a C compiler with OpenMP. Nothing here imports the engine. File formats: the head of ``reference.c``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lufjax import counters
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.trace import Trace

SOURCE = Path(__file__).with_name("reference.c")
FLAGS = ("-std=c11", "-O3", "-march=native", "-fopenmp")
MAGIC, FORMAT = 0x4652554C, 1
INDEX = ("linear", "xor")
FAULTS = {1: "RMAP_FULL", 2: "GATHER_FULL", 4: "ANON_POOL_EMPTY"}


class ReferenceUnavailable(RuntimeError):
    """The C program cannot be built here; the message is one line."""


class ReferenceFault(RuntimeError):
    """A lane faulted: a static size was too small."""

    def __init__(self, word: int, lane: int, event: int) -> None:
        names = [name for bit, name in FAULTS.items() if word & bit]
        super().__init__(f"reference lane {lane} stopped at event {event}: {', '.join(names)}")
        self.word, self.lane, self.event = word, lane, event


@dataclass(frozen=True)
class ReferenceResult:
    """What the lanes counted, cumulative at each sample point; arrays as in the engine's ``Samples``.

    Attributes:
        counters: name -> ``int64[num_lanes, num_samples]``.
        histograms: name -> ``int64[num_lanes, num_samples, 16]``.
        received: ``int64[num_lanes, num_samples, num_cpus]``.
        violations: ``int64[num_lanes, num_samples, 6, 2]``, last axis loads, stores.
        first_violation: ``int64[num_lanes, 6, 4]`` now, cpu, process, vpn; now = 0 where none.
        seconds: wall time of the simulation alone, without reading and writing files.
        threads: threads used.
    """

    counters: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]
    received: np.ndarray
    violations: np.ndarray
    first_violation: np.ndarray
    seconds: float
    threads: int


@dataclass(frozen=True)
class SnapshotRun:
    """One lane, event by event.

    Attributes:
        steps: after each event ``{"snapshot": .., "counters": .., "violations": ..}``; ends before the event that faulted.
        fault: fault word, 0 if none.
        fault_event: the event that faulted, 0 if none.
    """

    steps: list[dict[str, Any]]
    fault: int
    fault_event: int


def find_compiler() -> str | None:
    """Return the C compiler to use: ``$CC`` if it is set, else the first of cc, gcc, clang on the path; None if there is none."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((path for name in names if (path := shutil.which(name))), None)


def compile_reference(cc: str | None, build_dir: Path) -> Path:
    """Compile the program with ``-O3 -march=native`` into ``build_dir``.

    Raises:
        ReferenceUnavailable: there is no compiler, or it cannot build a C11 program with OpenMP.
    """
    if cc is None:
        raise ReferenceUnavailable("no C compiler found: install gcc or clang with OpenMP, or name one in CC")
    build_dir.mkdir(parents=True, exist_ok=True)
    binary = build_dir / "reference"
    try:
        done = subprocess.run([cc, *FLAGS, "-o", str(binary), str(SOURCE)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ReferenceUnavailable(f"C compiler {cc} does not start: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        raise ReferenceUnavailable(f"C compiler {cc} cannot build reference.c: {lines[0].strip()}")
    return binary


def run_reference(
    binary: Path, shape: MachineShape, params: MachineParams, traces: Sequence[Trace], trace_index: np.ndarray,
    sample_points: Sequence[int], threads: int = 1,
) -> ReferenceResult:  # fmt: skip
    """Simulate every lane.

    Args:
        params: every leaf ``int32[num_lanes]`` (or a scalar, the same for all lanes).
        trace_index: the trace of each lane; all traces have the same number of events.
        sample_points: ascending event counts, the last is the number of events.

    Raises:
        ReferenceFault: a lane faulted.
        ValueError: the program rejects its input; one line.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "input.bin", Path(folder) / "output.bin"
        _write_input(source, shape, params, traces, np.asarray(trace_index), sample_points)
        _call([str(binary.resolve()), str(source), str(target), "--threads", str(threads)])
        return _parse_output(target.read_bytes())


def run_snapshots(binary: Path, shape: MachineShape, params: MachineParams, trace: Trace) -> SnapshotRun:
    """Simulate one lane and return the whole state after every event."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "input.bin", Path(folder) / "steps.jsonl"
        _write_input(source, shape, params, [trace], np.zeros(1, np.int32), [trace.num_events])
        _call([str(binary.resolve()), str(source), str(target), "--snapshots"])
        steps = [json.loads(line) for line in target.read_text().splitlines()]
    last = steps.pop() if steps and "fault" in steps[-1] else {"fault": 0, "event": 0}
    return SnapshotRun(steps, last["fault"], last["event"])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise ValueError(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"reference program ended with status {done.returncode}: {done.stderr.strip()}")


def _geometry(name: str, level: TlbGeometry) -> list[int]:
    if level.replacement != "lru":
        raise ValueError(f"machine.{name}.replacement={level.replacement}: the reference program knows only lru")
    return [level.sets, level.ways, INDEX.index(level.index), 0]


def _write_input(
    path: Path, shape: MachineShape, params: MachineParams, traces: Sequence[Trace], trace_index: np.ndarray, sample_points: Sequence[int]
) -> None:
    lanes = np.stack([np.broadcast_to(np.asarray(leaf), trace_index.shape) for leaf in [*params[:-1], *params.policy]], axis=1)
    num_events = {trace.num_events for trace in traces}
    if len(num_events) != 1:
        raise ValueError(f"traces: lengths {sorted(num_events)}; all traces must have the same number of events")
    header = [
        MAGIC, FORMAT, shape.num_cpus, shape.num_processes, shape.num_vpns, shape.num_frames, shape.num_vmas, shape.num_file_pages,
        shape.num_anon, *_geometry("l1", shape.l1), *_geometry("l2", shape.l2), shape.rmap_slots, shape.gather_slots, shape.batch_slots,
        shape.pcp_slots, shape.quarantine_slots, len(trace_index), len(traces), *num_events, len(sample_points),
    ]  # fmt: skip
    with path.open("wb") as out:
        for block in (header, lanes, trace_index, sample_points):
            out.write(np.asarray(block, "<i4").tobytes())
        for trace in traces:
            pages = (shape.num_processes, shape.num_vpns)
            for name, values, size, filler in (
                ("num_vmas", trace.vmas, (shape.num_vmas,), 0),
                ("num_vpns", trace.page_vma, pages, -1),
                ("num_vpns", trace.page_backing, pages, -1),
                ("num_cpus", trace.loaded, (shape.num_cpus,), -1),
            ):
                out.write(_padded(name, values, size, filler).tobytes())
            out.write(np.asarray(trace.events, "<i4").tobytes())


def _padded(name: str, values: np.ndarray, size: tuple[int, ...], filler: int) -> np.ndarray:
    if any(have > room for have, room in zip(values.shape, size, strict=True)):
        raise ValueError(f"machine.{name}: the trace holds {values.shape}, the machine has room for {size}")
    block = np.full(size, filler, "<i4")
    block[tuple(slice(0, n) for n in values.shape)] = values
    return block


def _parse_output(data: bytes) -> ReferenceResult:
    magic, num_lanes, num_samples, num_cpus, num_names, threads, name_bytes, _ = np.frombuffer(data, "<i4", 8).tolist()
    seconds = float(np.frombuffer(data, "<f8", 1, 32)[0])
    names = data[40 : 40 + name_bytes].decode().split()
    if magic != MAGIC or set(names) != set(counters.SCALARS) | set(counters.GAUGES):
        raise RuntimeError("reference.c and lufjax/counters.py disagree on the names of the counters")
    num_hist, buckets, classes = len(counters.HISTOGRAMS), counters.NUM_BUCKETS, counters.NUM_CLASSES
    widths = [num_names, num_hist * buckets, num_cpus, classes * 2]
    words = np.frombuffer(data[40 + name_bytes :], "<i8")
    samples = words[: num_lanes * num_samples * sum(widths)].reshape(num_lanes, num_samples, sum(widths))
    tails = words[samples.size :].reshape(num_lanes, classes * 4 + 2)
    for lane in np.flatnonzero(tails[:, -2])[:1]:
        raise ReferenceFault(int(tails[lane, -2]), int(lane), int(tails[lane, -1]))
    scalars, histograms, received, violations = np.split(samples, np.cumsum(widths)[:-1], axis=2)
    histograms = histograms.reshape(num_lanes, num_samples, num_hist, buckets)
    return ReferenceResult(
        counters={name: scalars[:, :, k] for k, name in enumerate(names)},
        histograms={name: histograms[:, :, k] for k, name in enumerate(counters.HISTOGRAMS)},
        received=received,
        violations=violations.reshape(num_lanes, num_samples, classes, 2),
        first_violation=tails[:, :-2].reshape(num_lanes, classes, 4),
        seconds=seconds,
        threads=threads,
    )
