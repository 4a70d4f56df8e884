"""From the working store to ``results.nc``: named dimensions, units, integers. Schema: docs/RESULTS.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lufjax import __version__
from lufjax.counters import GAUGES, HISTOGRAMS, NUM_BUCKETS, SCALARS
from lufjax.events import Violation
from lufjax.results.store import COUNTERS, Store
from lufjax.settings import RunConfig
from lufjax.sweeps.grid import DIMS

MISSING = -1
"""Fill value of integer variables: a cell that was never simulated, a CPU that the machine does not have. Only variables with
such cells carry it as ``_FillValue``, because readers turn those into floats."""
FIRST_FIELDS = ("now", "cpu", "process", "vpn")
OVER_TIME = "nr_tlb_remote_flush_received"
CLASSES = tuple(member.name for member in Violation)
AXIS_ATTRS = {
    "workload": {"long_name": "workload", "units": "1"},
    "policy": {"long_name": "flush policy", "units": "1"},
    "num_cpus": {"long_name": "CPUs of the machine", "units": "CPUs"},
    "pressure": {"long_name": "pages touched per frame of memory", "units": "1"},
    "seed": {"long_name": "seed of the workload", "units": "1"},
}


def assemble(config: RunConfig, store: Store, frames: Mapping[int, np.ndarray], footprints: Mapping[int, np.ndarray]) -> xr.Dataset:
    """Put every lane of the store in its cell.

    Args:
        frames: group -> ``frames_in_use`` of each lane.
        footprints: group -> pages that the workload of each lane touches.
    """
    points, cpus = config.sample_points, max(config.num_cpus)
    warmup = points.index(config.warmup_events) if config.warmup_events else None
    shape = (len(config.workloads), len(config.policies), len(config.num_cpus), len(config.pressures), len(config.seeds))
    cells = _Cells(shape)
    for group in range(store.num_groups):
        values = store.read(group)
        place = tuple(values["index"].T)
        counters = values["counters"]
        for number, name in enumerate(COUNTERS):
            if name in SCALARS:
                cells.put(name, (), place, _measured(counters[:, :, number], warmup))
        cells.put(f"{OVER_TIME}_over_time", (len(points),), place, counters[:, :, COUNTERS.index(OVER_TIME)])
        for name in GAUGES:
            cells.put(name, (len(points),), place, counters[:, :, COUNTERS.index(name)])
        for number, name in enumerate(HISTOGRAMS):
            cells.put(name, (NUM_BUCKETS,), place, _measured(values["histograms"][:, :, number], warmup))
        cells.put("received", (cpus,), place, _received(config, values, warmup, cpus))
        cells.put("violations", values["violations"].shape[2:], place, values["violations"][:, -1])
        cells.put("first_violation", values["first_violation"].shape[1:], place, values["first_violation"])
        cells.put("frames_in_use", (), place, frames[group])
        cells.put("footprint", (), place, footprints[group])
    return _with_names(config, cells.arrays, points, cpus)


class _Cells:
    """Arrays over the grid that start out missing."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.arrays = shape, {}

    def put(self, name: str, extra: tuple[int, ...], place: tuple[np.ndarray, ...], values: np.ndarray) -> None:
        array = self.arrays.setdefault(name, np.full((*self.shape, *extra), MISSING, np.int64))
        array[place] = values


def _measured(cumulative: np.ndarray, warmup: int | None) -> np.ndarray:
    """Value at the end minus value at the end of the warm-up; axis 1 is the sample."""
    end = cumulative[:, -1]
    return end if warmup is None else end - np.where(end == MISSING, 0, cumulative[:, warmup])


def _received(config: RunConfig, values: Mapping[str, np.ndarray], warmup: int | None, cpus: int) -> np.ndarray:
    """Per CPU, missing beyond the CPUs of the lane."""
    measured = _measured(values["received"], warmup)
    wide = np.full((len(measured), cpus), MISSING, np.int64)
    width = min(cpus, measured.shape[1])
    wide[:, :width] = measured[:, :width]
    lanes_cpus = np.array(config.num_cpus)[values["index"][:, DIMS.index("num_cpus")]]
    return np.where(np.arange(cpus) < lanes_cpus[:, None], wide, MISSING)


def _with_names(config: RunConfig, arrays: Mapping[str, np.ndarray], points: tuple[int, ...], cpus: int) -> xr.Dataset:
    units = SCALARS | GAUGES | HISTOGRAMS
    units["frames_in_use"] = ("frames", "frames of memory of the lane")
    units["footprint"] = ("pages", "different pages that the workload touches")
    units["received"] = ("interrupts", "flush functions run on each CPU for another CPU")
    units["violations"] = ("accesses", "wrong stale accesses, over the whole run")
    units["first_violation"] = ("1", "event, CPU, process and page of the first wrong stale access; event 0 where there was none")
    units[f"{OVER_TIME}_over_time"] = ("interrupts", f"{SCALARS[OVER_TIME][1]}, since the first event")
    extra = dict.fromkeys(HISTOGRAMS, ("bucket",)) | dict.fromkeys((*GAUGES, f"{OVER_TIME}_over_time"), ("sample",))
    extra |= {"received": ("cpu",), "violations": ("violation_class", "access"), "first_violation": ("violation_class", "field")}
    data = {}
    for name, array in arrays.items():
        unit, long_name = units[name]
        data[name] = ((*DIMS, *extra.get(name, ())), array, {"units": unit, "long_name": long_name})
    coords = {
        "workload": ("workload", np.array(list(config.workloads), object), AXIS_ATTRS["workload"]),
        "policy": ("policy", np.array(list(config.policies), object), AXIS_ATTRS["policy"]),
        "num_cpus": ("num_cpus", np.array(config.num_cpus, np.int64), AXIS_ATTRS["num_cpus"]),
        "pressure": ("pressure", np.array(config.pressures, np.float64), AXIS_ATTRS["pressure"]),
        "seed": ("seed", np.array(config.seeds, np.int64), AXIS_ATTRS["seed"]),
        "event": ("sample", np.array(points, np.int64), {"units": "events", "long_name": "events simulated at the sample"}),
        "bucket": ("bucket", np.arange(NUM_BUCKETS), {"units": "1", "long_name": "log2 bucket; 0: value 0, k: from 2**(k-1) to 2**k - 1"}),
        "violation_class": ("violation_class", np.array(CLASSES, object), {"units": "1", "long_name": "class of wrong stale access"}),
        "access": ("access", np.array(["load", "store"], object), {"units": "1", "long_name": "kind of access"}),
        "cpu": ("cpu", np.arange(cpus), {"units": "1", "long_name": "CPU"}),
        "field": ("field", np.array(FIRST_FIELDS, object), {"units": "1", "long_name": "field of a first violation"}),
    }
    return xr.Dataset(data, coords)


def describe(ds: xr.Dataset, provenance: Mapping[str, Any], config: RunConfig) -> xr.Dataset:
    """Add the global attributes."""
    return ds.assign_attrs(
        Conventions="CF-1.11",
        title=f"TLB shootdowns by flush policy: {config.name}",
        source=f"lufjax {__version__}",
        history=f"{provenance['ended']} {provenance['command']}",
        references="docs/MODEL.md and docs/RESULTS.md of lufjax",
        warmup_events=config.warmup_events,
        num_events=config.num_events,
        provenance_json=json.dumps(provenance, sort_keys=True),
    )


def write_netcdf(ds: xr.Dataset, path: Path) -> None:
    """Write under a temporary name, then rename: the file is complete or not there."""
    draft = path.with_name(f"{path.name}.draft")
    encoding = {}
    for name, variable in ds.data_vars.items():
        holes = name != "first_violation" and bool((variable == MISSING).any())
        encoding[name] = {"zlib": True, "complevel": 4, "shuffle": True, "_FillValue": MISSING if holes else None}
    ds.to_netcdf(draft, engine="h5netcdf", encoding=encoding)
    os.replace(draft, path)
