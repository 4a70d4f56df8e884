"""Predicted beside measured: the tables of docs/KERNEL_COUNTS.md.

    python experiments/kernel_counts/table.py           print them
    python experiments/kernel_counts/table.py --write   put them into docs/KERNEL_COUNTS.md

Each row runs what ``lufjax run`` runs for the arguments of :func:`arguments`, policy ``linux``, seed 0, without writing a run directory.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np

from lufjax import engine
from lufjax.config import load_run_config
from lufjax.sweeps import grid
from lufjax.sweeps.traces import TraceSource, fit

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "KERNEL_COUNTS.md"
BEGIN, END = "<!-- begin {} (experiments/kernel_counts/table.py --write) -->", "<!-- end {} -->"
PAGES_PER_MIB = 256
SAME_RUN = 0.02
"""Files whose sizes, in percent of free memory, differ by less than this share are repetitions of one point."""


@dataclass(frozen=True)
class Point:
    """What was varied: CPUs, who does what on them, pages of a call, MiB of memory, file size in percent of free memory."""

    mode: str
    vcpus: int
    actors: int
    busy: int
    sleepers: int
    k: int
    mem_mib: int
    file_percent: int


@dataclass(frozen=True)
class Prediction:
    """Counts of one run of the model."""

    calls: int
    shootdowns: int
    interrupts: int
    local_pages: int
    local_full: int
    pages: int
    direct: int


Row = dict[str, float]


def measured() -> dict[Point, list[Row]]:
    """The measured runs by point; repetitions of a point together."""
    points: dict[Point, list[Row]] = defaultdict(list)
    with (HERE / "measured.csv").open() as file:
        for line in csv.DictReader(file):
            row = {name: float(value) for name, value in line.items() if name not in ("tag", "mode") and value}
            values = [int(row[field.name]) for field in fields(Point)[1:]]
            point = Point(line["mode"], *values)
            points[next((p for p in points if _is_same(p, point)), point)].append(row)
    return dict(sorted(points.items(), key=lambda item: tuple(getattr(item[0], field.name) for field in fields(Point))))


def _is_same(a: Point, b: Point) -> bool:
    others = all(getattr(a, field.name) == getattr(b, field.name) for field in fields(Point)[:-1])
    return others and abs(a.file_percent - b.file_percent) <= SAME_RUN * a.file_percent


def is_reclaim(point: Point) -> bool:
    """Whether pages are reclaimed, or calls made."""
    return point.mode.startswith("ro_")


def arguments(point: Point, runs: list[Row]) -> list[str]:
    """The arguments of ``lufjax run`` for a point. Pages per batch are an input: as many as were measured."""
    workload = {"munmap_ft": "munmap"}.get(point.mode, point.mode)
    placement = {"actors": point.actors, "busy": point.busy, "sleepers": point.sleepers}
    options = [f"workload={workload}", *(f"workload.{name}={value}" for name, value in placement.items()), f"num_cpus={point.vcpus}"]
    if not is_reclaim(point):
        more = {"munmap_ft": ["workload.free_tables=true"], "madvise": [f"workload.concurrent={str(point.actors > 1).lower()}"]}
        sizes = [f"workload.k={point.k}", "machine.drive=scripted", "pressure=0.05", "warmup_divisor=0", "num_events=10000"]
        return [*options, *more.get(point.mode, []), *sizes]
    file_pages = int(runs[0]["file_mib"]) * PAGES_PER_MIB
    laps = 6 if point.mode == "ro_rand" else 2
    num_events = laps * file_pages * (point.actors + point.busy) // point.actors
    sizes = [f"workload.file_pages={file_pages}", f"pressure={point.file_percent / 100}", f"num_events={num_events}"]
    return [*options, *sizes, f"machine.reclaim_batch={pages_per_flush(runs)}"] if point.vcpus > 1 else [*options, *sizes]


def pages_per_flush(runs: list[Row]) -> int:
    """Pages reclaimed per batch flush, over all repetitions, rounded."""
    return round(sum(run["pages_reclaimed"] for run in runs) / sum(run["batch_flushes"] for run in runs))


def predict(argv: list[str]) -> Prediction:
    """Simulate one point and count what comes after its warm-up."""
    config = load_run_config(argv)
    source = TraceSource(config.workloads, config.num_events, 0)
    (group,) = grid.plan(config, source)
    trace = fit(source.get(group.trace_keys[0]), group.shape)
    warmup = config.num_events // config.warmup_divisor if config.warmup_divisor else 0
    points = [warmup, config.num_events] if warmup else [config.num_events]
    samples = engine.simulate(group.shape, group.params, [trace], group.trace_index, sample_points=points, num_devices=1)

    def count(*names: str) -> int:
        return sum(int(samples.counters[name][0, -1] - (samples.counters[name][0, 0] if warmup else 0)) for name in names)

    return Prediction(
        calls=count("nr_gathers"), shootdowns=count("nr_tlb_remote_flush"), interrupts=count("nr_tlb_remote_flush_received"),
        local_pages=count("nr_tlb_local_flush_one"), local_full=count("nr_tlb_local_flush_all"),
        pages=count("pgsteal_kswapd", "pgsteal_direct") - count("pgrescued"), direct=count("pgsteal_direct"),
    )  # fmt: skip


def mask_targets(argv: list[str]) -> float:
    """CPUs in the mask beside the flushing one, per shootdown, from the state before each event of a short run.

    The flushing CPU is in the mask wherever this is used.
    """
    config = load_run_config(argv)
    source = TraceSource(config.workloads, config.num_events, 0)
    (group,) = grid.plan(config, source)
    trace = fit(source.get(group.trace_keys[0]), group.shape)
    machine = engine.Machines(group.shape, [jax.tree.map(lambda leaf: int(leaf[0]), group.params)], [trace])
    requests = bits = before = 0
    for row in trace.events:
        mask = int(np.array(machine.state.cpumask)[0, 0, 0])
        machine.step(row[None])
        now = engine.counters_of(machine.host()[0])["nr_tlb_remote_flush"]
        requests, bits, before = now, bits + (now - before) * (mask.bit_count() - 1), now
    return bits / requests


def mask_of(point: Point, argv: list[str], prediction: Prediction) -> float | None:
    """CPUs in the mask beside the flushing one, per shootdown; where nobody sleeps these are the interrupts."""
    if not prediction.shootdowns:
        return None
    if not point.sleepers:
        return prediction.interrupts / prediction.shootdowns
    short = ["num_events=300"] if not is_reclaim(point) else ["num_events=600", "workload.file_pages=512", "pressure=4", "warmup_divisor=0"]
    names = {text.split("=")[0] for text in short}
    return mask_targets([text for text in argv if text.split("=")[0] not in names] + short)


def span(values: Iterable[float | None], digits: int) -> str:
    """One number, or lowest to highest."""
    given = [round(value, digits) for value in values if value is not None]
    if not given:
        return "-"
    low, high = min(given), max(given)
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f} - {high:.{digits}f}"


def ratio(over: str, under: str) -> Callable[[Row], float | None]:
    """Quotient of two columns of a measured run, None where there is nothing to divide by."""
    return lambda run: run.get(over, 0) / run[under] if run.get(under) else None


def percent(share: float | None) -> float | None:
    """A share in percent."""
    return None if share is None else 100 * share


def full_share(got: Prediction, pages: int) -> float | None:
    """Share of full flushes among the requests of a run whose ranged ones have ``pages`` pages; None if no other CPU was asked."""
    return got.local_full / (got.local_full + got.local_pages / pages) if got.shootdowns else None


def pair(predicted: Iterable[float | None], seen: Iterable[float | None], digits: int) -> str:
    """One cell: predicted / measured."""
    left, right = span(predicted, digits), span(seen, digits)
    return "-" if left == right == "-" else f"{left} / {right}"


MAPPING_HEAD = ["mode", "CPUs", "A + B + S", "k", "requests per iteration", "TLB row per iteration", "full, %", "mask targets"]


def mapping_line(point: Point, runs: list[Row]) -> list[str]:
    """One line of the table of mapping calls."""
    argv = arguments(point, runs)
    got = predict(argv)
    iterations = got.calls / (2 if point.mode == "mprotect" else 1)
    return [
        point.mode, str(point.vcpus), f"{point.actors} + {point.busy} + {point.sleepers}", str(point.k),
        pair([(got.local_full + got.local_pages / point.k) / iterations], map(ratio("mm_range_requests", "iterations"), runs), 2),
        pair([got.interrupts / iterations], map(ratio("tlb_row", "iterations"), runs), 2),
        pair([percent(full_share(got, point.k))], (percent(run.get("full_fraction")) for run in runs), 0),
        pair([mask_of(point, argv, got)], map(ratio("mask_targets", "remote_requests"), runs), 2),
    ]  # fmt: skip


RECLAIM_HEAD = [
    "mode", "CPUs", "A + B + S", "MiB", "file, %", "pages per flush (input)", "TLB row per page", "TLB row per shootdown", "full, %",
    "mask targets", "direct, %",
]  # fmt: skip


def reclaim_line(point: Point, runs: list[Row]) -> list[str]:
    """One line of the table of reclaim: kswapd on the first CPU, and on the last."""
    places = [[*arguments(point, runs), f"machine.kswapd_cpu={cpu}"] for cpu in sorted({0, point.vcpus - 1})]
    got = [predict(place) for place in places]
    masks = [mask_of(point, place, one) for place, one in zip(places, got, strict=True)]
    per_shootdown = [one.interrupts / one.shootdowns if one.shootdowns else None for one in got]
    flushes = "batch_flushes" if point.vcpus > 1 else "mm_range_requests"
    return [
        point.mode, str(point.vcpus), f"{point.actors} + {point.busy} + {point.sleepers}", str(point.mem_mib), str(point.file_percent),
        pair((one.pages / (one.shootdowns or one.local_pages) for one in got), map(ratio("pages_reclaimed", flushes), runs), 1),
        pair((one.interrupts / one.pages for one in got), map(ratio("tlb_row", "pages_reclaimed"), runs), 3),
        pair(per_shootdown, map(ratio("tlb_row", "remote_requests"), runs), 2),
        pair((percent(full_share(one, 1)) for one in got), (percent(run.get("full_fraction")) for run in runs), 0),
        pair(masks, (run.get("batch_mask_targets") for run in runs), 2),
        pair((percent(one.direct / (one.pages or 1)) for one in got), (percent(run.get("direct_share")) for run in runs), 0),
    ]  # fmt: skip


def row_text(cells: list[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def markdown(lines: list[list[str]]) -> str:
    """Lines of cells, head first, as a table."""
    return "\n".join(map(row_text, [lines[0], ["---"] * len(lines[0]), *lines[1:]]))


def replace_between(text: str, name: str, table: str) -> str:
    """Put a table between its two markers."""
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="predicted beside measured kernel counts")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/KERNEL_COUNTS.md")
    is_writing = parser.parse_args().write
    points = measured().items()
    tables = {
        "calls": [MAPPING_HEAD, *(mapping_line(point, runs) for point, runs in points if not is_reclaim(point))],
        "reclaim": [RECLAIM_HEAD, *(reclaim_line(point, runs) for point, runs in points if is_reclaim(point))],
    }
    for name, lines in tables.items():
        if is_writing:
            DOCUMENT.write_text(replace_between(DOCUMENT.read_text(), name, markdown(lines)))
        else:
            print(markdown(lines), end="\n\n")


if __name__ == "__main__":
    main()
