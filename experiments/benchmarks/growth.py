"""How the cost of an event grows with the machine, in the engine's compiled loop and in the C program.

``python -m experiments.benchmarks.growth [repeats=N] [events=N] [outputs=DIR]`` from the repository root: about ten minutes. Writes
``results.nc`` and the figure below ``DIR/growth`` and prints a table.

A cost is CPU time of one thread for the second half of the events, when the memory is full, so neither setting up nor reading input is in it; engine
and C program in turns, the least of the repeats, because other load only makes a run slower. ``linux`` and ``luf_v10``, four
lanes each, on ``llm``. What both count has to be equal.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.benchmarks import reference
from lufjax import counters, engine
from lufjax.backends import native, rollout
from lufjax.benchmark import measured, work
from lufjax.benchmark.cases import Batch, Case, build
from lufjax.benchmark.turns import Disagreement
from lufjax.results.style import BLACK, BLUE
from lufjax.trace import ops_of

POLICIES = ("linux", "luf_v10")
LIMIT = 1.5
"""The engine's cost may grow by this much more than the C program's."""
AXES = {"frames": (256, 1024, 4096, 16384, 65536), "TLB entries": (64, 256, 1024, 4096), "CPUs": (8, 16, 32, 64)}
"""TLB entries: those of the second level; the first has 16."""
FILE_PAGES = 4
"""Pages of the file for each frame."""
COLUMN = {name: column for column, name in enumerate(counters.SCALARS)}
COUNTED = [name for name in COLUMN if name != "events"]
"""The engine counts events by its cursor."""
LANES = 8
MOST_EVENTS = 1_200_000


@dataclass(frozen=True)
class Options:
    """Words of the command line."""

    repeats: int = 5
    events: int = MOST_EVENTS
    outputs: str = "outputs"


@dataclass(frozen=True)
class Point:
    """One machine of an axis."""

    axis: str
    size: int

    def build(self, most_events: int) -> Batch:
        """Its lanes: enough events to fill the memory with the first half."""
        frames = self.size if self.axis == "frames" else 4096
        cpus = self.size if self.axis == "CPUs" else 8
        tlb = ("machine.l1.sets=4", f"machine.l2.sets={self.size // 4}") if self.axis == "TLB entries" else ()
        overrides = (
            "machine=default", "machine.num_frames=1", "machine.num_vpns=1", "workload=llm", f"num_cpus={cpus}",
            f"workload.file_pages={FILE_PAGES * frames}", *tlb,
        )  # fmt: skip
        events = min(most_events, max(400_000, 16 * frames))
        return build(Case(self.axis, overrides, POLICIES, frames, LANES, events, 1))


POINTS = tuple(Point(axis, size) for axis, sizes in AXES.items() for size in sizes)


def engine_seconds(batch: Batch, compiled: native.NativeProgram) -> tuple[float, np.ndarray]:
    """CPU time of the second half of the events in compiled code, and the counters at their end."""
    state = work.start(batch.shape, batch.params, batch.traces, batch.trace_index)
    events = np.ascontiguousarray(rollout.pack_events(np.stack([trace.events for trace in batch.traces])))
    begin = 0.0
    for share in (2, 1):
        begin = time.thread_time()
        stop = np.full(len(batch.trace_index), batch.num_events // share, np.int32)
        native.run_block(compiled, batch.params, state, events, batch.trace_index.astype(np.int32), stop)
    return time.thread_time() - begin, np.asarray(state.counters)[:, [COLUMN[name] for name in COUNTED]]


def c_seconds(batch: Batch, binary: Path) -> tuple[float, np.ndarray]:
    """CPU time of the second half of the events in the C program: that of all of them less that of the first half."""
    spent, counted = [], np.zeros(0)
    for share in (2, 1):
        before = _children()
        result = reference.run_reference(binary, batch.shape, batch.params, batch.traces, batch.trace_index, [batch.num_events // share], threads=1)
        spent.append(_children() - before)
        counted = np.stack([result.counters[name][:, -1] for name in COUNTED], -1)
    return spent[1] - spent[0], counted


def _children() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def measure(options: Options) -> xr.Dataset:
    """Nanoseconds per event of every point, ``ns[point, program, repeat]``.

    Raises:
        Disagreement: engine and C program counted different things.
    """
    times = np.zeros((len(POINTS), 2, options.repeats))
    events, size = np.zeros(len(POINTS), np.int64), np.zeros(len(POINTS), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        binary = reference.compile_reference(reference.find_compiler(), Path(folder))
        for repeat in range(options.repeats):
            for number, point in enumerate(POINTS):
                batch = point.build(options.events)
                compiled = native.compile_for(batch.shape, engine.program_for(batch.params, ops_of(batch.traces)))
                (ours, counted), (theirs, expected) = engine_seconds(batch, compiled), c_seconds(batch, binary)
                if (counted != expected).any():
                    raise Disagreement(f"{point}: the engine and reference.c counted different things")
                half = len(batch.trace_index) * (batch.num_events - batch.num_events // 2)
                times[number, :, repeat] = 1e9 * ours / half, 1e9 * theirs / half
                events[number], size[number] = batch.num_events, engine.bytes_per_lane(batch.shape)
                print(f"growth: {repeat + 1}/{options.repeats} {point.size} {point.axis}: {times[number, :, repeat]}", file=sys.stderr)
    return xr.Dataset(
        {
            "cost": (("point", "program", "repeat"), times, {"units": "ns", "long_name": "CPU time per event, second half of the events"}),
            "events": ("point", events, {"units": "events", "long_name": "events of each lane"}),
            "bytes_per_lane": ("point", size, {"units": "bytes", "long_name": "state of a lane of the engine"}),
        },
        {
            "axis": ("point", np.array([point.axis for point in POINTS], object), {"long_name": "what grows"}),
            "size": ("point", [point.size for point in POINTS], {"units": "1", "long_name": "how large it is"}),
            "program": ("program", np.array(["engine", "C"], object), {"long_name": "who is measured"}),
        },
    )


def growth(ds: xr.Dataset) -> dict[str, tuple[float, float, float]]:
    """Of each axis: growth from the smallest machine to the largest, of the engine and of the C program, and the most by which the engine's is larger
    at any size."""
    best = ds["cost"].min("repeat")
    found = {}
    for axis in AXES:
        costs = best.values[(ds["axis"] == axis).values]
        grown = costs / costs[0]
        found[axis] = (*(float(g) for g in grown[-1]), float((grown[:, 0] / grown[:, 1]).max()))
    return found


def draw(ds: xr.Dataset) -> Figure:
    """Cost of an event against the size of the machine, a panel for each axis."""
    figure = Figure(figsize=(7.2, 2.5), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    best, grown = ds["cost"].min("repeat"), growth(ds)
    for ax, axis in zip(panels, AXES, strict=True):
        of = best.sel(point=(ds["axis"] == axis).values)
        sizes = of["size"].values
        for program, color, marker in (("engine", BLUE, "o"), ("C", BLACK, "s")):
            ax.plot(sizes, of.sel(program=program), color=color, marker=marker, label=f"{program}{' program' * (program == 'C')}")
        ax.set_xscale("log", base=4 if axis == "frames" or axis == "TLB entries" else 2)
        ax.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel(axis)
        ax.set_title(f"engine x{grown[axis][0]:.2f}, C program x{grown[axis][1]:.2f}")
    panels[0].set_yscale("log")
    low, high = float(best.min()), float(best.max())
    ticks = [t for t in (10, 20, 50, 100, 200, 500, 1000, 2000) if low / 2 < t < high * 2]
    panels[0].set_yticks(ticks, labels=[f"{t:,}" for t in ticks])
    panels[0].minorticks_off()
    panels[0].set_ylabel("CPU time per event (ns)")
    panels[0].legend()
    figure.suptitle("Cost of an event as the machine grows")
    return figure


def main(words: list[str]) -> int:
    """Measure, write and print. 1: the engine's cost grows too much."""
    given = dict(word.split("=", 1) for word in words)
    options = Options(**{name: type(getattr(Options, name))(value) for name, value in given.items()})
    ds = measure(options)
    folder = measured.write(ds, Path(options.outputs) / "growth", "Cost of an event as the machine grows", {"growth": lambda: draw(ds)})
    best = ds["cost"].min("repeat")
    for number, point in enumerate(POINTS):
        ours, theirs = best[number].values
        print(f"{point.axis:12s} {point.size:6d}  engine {ours:7.1f} ns  C {theirs:7.1f} ns  ratio to C {theirs / ours:.3f}")
    found = growth(ds)
    for axis, (ours, theirs, most) in found.items():
        print(f"{axis}: engine x{ours:.2f}, C program x{theirs:.2f}; at most {most:.2f} times the C program's, {LIMIT} allowed")
    print(folder)
    return int(any(most > LIMIT for _, _, most in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
