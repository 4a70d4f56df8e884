"""Events per second against the number of lanes, beside what the memory allows; ``results.nc`` and the figure of ``lufjax bench``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lufjax.backends.runners import num_cores
from lufjax.benchmark import measured, work
from lufjax.results.style import BLACK, BLUE, VERMILLION, short

COUNTED_LANES = 4
"""Lanes that visits of the kernels are counted on."""
Turn = Callable[[Any], tuple[float, float | None]]
"""From a batch to seconds of the engine and of the C program, None without one."""


def measure_lanes(batch: Any, counts: list[int], backend: str, repeats: int, turn: Turn, warm: Callable[[Any], None]) -> dict[str, Any]:
    """Run the first lanes of a :class:`lufjax.benchmark.cases.Batch`, so many at a time.

    Args:
        turn: measures a batch once. warm: compiles for it.
    """
    engine_s, c_s = [], []
    for count in counts:
        part = batch.take(np.arange(count))
        warm(part)
        times = [turn(part) for _ in range(repeats)]
        engine_s.append([ours for ours, _ in times])
        c_s.append([theirs for _, theirs in times if theirs is not None])
    some = batch.take(np.arange(min(COUNTED_LANES, len(batch.trace_index))))
    visits = work.count_visits(some.shape, some.params, some.traces, some.trace_index, some.num_events)
    works = {group: work.kernel_work(group, batch.shape) for group in visits}
    on_cpu = backend != "cuda" and jax.default_backend() == "cpu"
    bandwidth = measured.stream_bandwidth(num_cores()) if on_cpu else measured.device_bandwidth(backend)
    return {
        "lanes": counts, "events": batch.num_events, "engine_s": engine_s, "c_s": c_s if c_s[0] else None, "bandwidth": bandwidth,
        "bytes_per_event": sum(visits[group] * works[group].touched for group in visits),
    }  # fmt: skip


def dataset(report: Mapping[str, Any]) -> xr.Dataset:
    """Every repeat of every case and of every number of lanes; the whole report is an attribute."""
    sweep, cases = report["by_lanes"], report["cases"]
    seconds = {"units": "s", "long_name": "from the call to the counters on the host"}
    c_seconds = {"units": "s", "long_name": "simulation in the C program"}
    values: dict[str, Any] = {
        "engine_seconds": (("lanes", "repeat"), sweep["engine_s"], seconds),
        "case_engine_seconds": (("case", "repeat"), [case["engine_s_all"] for case in cases.values()], seconds),
        "events_per_lane": ((), sweep["events"], {"units": "events", "long_name": "events of each lane, against lanes"}),
        "bytes_per_event": ((), sweep["bytes_per_event"], {"units": "bytes", "long_name": "read and written, at most"}),
        "bandwidth": ((), sweep["bandwidth"], {"units": "bytes s-1", "long_name": "measured memory bandwidth"}),
    }
    if sweep["c_s"] is not None:
        values["c_seconds"] = (("lanes", "repeat"), sweep["c_s"], c_seconds)
        values["case_c_seconds"] = (("case", "repeat"), [case["c_s_all"] for case in cases.values()], c_seconds)
    for name, unit, long_name in (
        ("compile_s", "s", "a first call that runs one event"), ("first_s", "s", "that call and the first repeat"), ("lanes", "1", "lanes"),
        ("events", "events", "events of each lane"), ("bytes_per_lane", "bytes", "state of a lane"),
    ):  # fmt: skip
        values[f"case_{name}"] = ("case", [case[name] for case in cases.values()], {"units": unit, "long_name": long_name})
    coords = {
        "lanes": ("lanes", sweep["lanes"], {"units": "1", "long_name": "lanes"}),
        "case": ("case", np.array(list(cases), object), {"units": "1", "long_name": "batch that was measured"}),
    }
    return xr.Dataset(values, coords, {"report_json": json.dumps(report, sort_keys=True)})


def draw(ds: xr.Dataset) -> Figure:
    """Events per second against lanes: medians, with bands from the slowest to the fastest repeat, and the bound by memory bandwidth."""
    report = json.loads(ds.attrs["report_json"])
    figure = Figure(figsize=(3.5, 3.1), layout="constrained")
    ax = figure.subplots()
    lanes = ds["lanes"].values
    for name, variable, color, marker in (("lufjax", "engine_seconds", BLUE, "o"), ("C program", "c_seconds", BLACK, "s")):
        if variable in ds:
            speed = lanes[:, None] * float(ds["events_per_lane"]) / ds[variable].values
            ax.plot(lanes, np.median(speed, 1), color=color, marker=marker, label=name)
            ax.fill_between(lanes, speed.min(1), speed.max(1), color=color, alpha=0.15, lw=0)
    bound = float(ds["bandwidth"] / ds["bytes_per_event"])
    line = f"memory: {short(float(ds['bandwidth']) / 1e9)} GB/s, {short(float(ds['bytes_per_event']))} bytes per event"
    ax.axhline(bound, color=VERMILLION, ls="--", label=line)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(lanes, labels=[f"{count:,}" for count in lanes])
    low, high = ax.get_ylim()
    ticks = [m * 10**k for k in range(3, 12) for m in (1, 2, 5) if low <= m * 10**k <= high]
    ax.set_yticks(ticks, labels=[short(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("lanes")
    ax.set_ylabel("events per second")
    device = report["device"]
    ax.set_title(f"{device['cpu_model']}, {device['num_cores']} cores; {device['kind']}, {report['backend']}")
    figure.legend(loc="outside lower center")
    return figure


def write(report: Mapping[str, Any], parent: Path) -> Path:
    """Write ``results.nc`` and the figure to a directory of their own below ``parent``; returns it."""
    ds = dataset(report)
    return measured.write(ds, parent, "Speed of lufjax, beside a plain C program", {"events_per_second": lambda: draw(ds)})
