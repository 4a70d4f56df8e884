"""Rates, paired reductions, intervals and tails from the counters of a run; float64 on the host, after the simulation.

Input is the dataset of one run (docs/RESULTS.md). Everything is computed per seed first and aggregated over seeds last, so that
policies, which see identical events for the same seed, are compared in pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from lufjax.events import Violation

DIMS: tuple[str, ...] = ("workload", "policy", "num_cpus", "pressure", "seed")
"""What identifies a lane, in the order of every array that this module returns."""
CLASSES: tuple[str, ...] = tuple(member.name for member in Violation)
RECEIVED = "nr_tlb_remote_flush_received"
BASELINE = "linux"
NAIVE = "luf_naive"
"""Deferral without a rule for mapping calls: what such a rule costs is what a policy sends beyond it."""
PER = 1000.0
"""Rates are per this many accesses."""
_ABSENT_DIM = {"workload": "", "policy": "", "num_cpus": 0, "pressure": 0.0, "seed": 0}


class MissingVariable(ValueError):
    """The results lack a variable that an estimate needs."""


class MissingBaseline(ValueError):
    """The results lack the policy that reductions are relative to."""


def load_results(run_dir: Path | str) -> xr.Dataset:
    """Read ``results.nc`` of a run into memory, with every dimension of :data:`DIMS` present.

    Raises:
        ValueError: the run has no readable ``results.nc``, or it lacks a coordinate.
    """
    path = Path(run_dir) / "results.nc"
    if not path.is_file():
        raise ValueError(f"run={run_dir}: no results.nc there; allowed are directories that a finished run wrote")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return with_all_dims(stored.load())


def with_all_dims(ds: xr.Dataset) -> xr.Dataset:
    """Put length-1 dimensions in place of dropped ones, lanes in the order of :data:`DIMS`, and sort CPUs, pressures and seeds."""
    for dim in DIMS:
        if dim not in ds.dims:
            value = ds[dim].item() if dim in ds.coords else _ABSENT_DIM[dim]
            if dim == "num_cpus" and value == 0:
                raise ValueError("results.nc: coordinate num_cpus is missing; allowed are datasets that name their CPU counts")
            lanes = [name for name in ds.data_vars if set(ds[name].dims) & set(DIMS) or not ds[name].dims]
            ds = ds.drop_vars(dim, errors="ignore")
            ds = ds.assign({name: ds[name].expand_dims({dim: [value]}) for name in lanes}).assign_coords({dim: [value]})
    ds = ds.sortby(["num_cpus", "pressure", "seed"])
    lanes = {name: var.transpose(*DIMS, ...) for name, var in ds.data_vars.items() if set(DIMS) <= set(var.dims)}
    return ds.assign(lanes)


def require(ds: xr.Dataset, *names: str) -> None:
    """Raise :class:`MissingVariable` (one line) for the first variable that the dataset lacks."""
    for name in names:
        if name not in ds:
            raise MissingVariable(f"results.nc: variable {name} is missing")


def rate(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Counter per 1,000 accesses of the same lane; missing where a lane made no access."""
    require(ds, name, "accesses")
    accesses = ds["accesses"].astype(np.float64)
    return (PER * ds[name].astype(np.float64) / accesses.where(accesses > 0)).rename(name)


def reduction(ds: xr.Dataset, name: str = RECEIVED, baseline: str = BASELINE) -> xr.DataArray:
    """Share of the baseline's rate that a policy avoids, per lane: ``1 - rate / rate of the baseline`` at the same coordinates.

    Missing (NaN) at 1 CPU, where there is no remote CPU and so nothing to reduce, and wherever the baseline's count is 0.

    Raises:
        MissingBaseline: the run did not simulate ``baseline``.
    """
    rates = rate(ds, name)
    reference = require_baseline(ds, baseline, rates)
    return (1.0 - rates / reference.where((reference > 0) & (ds["num_cpus"] > 1))).transpose(*DIMS)


def extra(ds: xr.Dataset, name: str = RECEIVED, per: str = "accesses") -> xr.DataArray:
    """What a policy counts beyond :data:`NAIVE` under identical events, per lane: of ``name``, for each ``per`` (1,000 ``accesses``).

    Missing (NaN) where the lane has no ``per``.

    Raises:
        MissingBaseline: the run did not simulate :data:`NAIVE`.
    """
    require(ds, name, per)
    counts = ds[name].astype(np.float64)
    of = ds[per].astype(np.float64)
    scale = PER if per == "accesses" else 1.0
    return (scale * (counts - require_baseline(ds, NAIVE, counts)) / of.where(of > 0)).transpose(*DIMS)


def deferring(ds: xr.Dataset) -> tuple[str, ...]:
    """Policies other than :data:`NAIVE` that deferred an unmap in any lane of this run."""
    require(ds, "deferred_unmaps")
    counts = ds["deferred_unmaps"].sum([d for d in ds["deferred_unmaps"].dims if d != "policy"])
    return tuple(str(p) for p in ds["policy"].values[counts.values > 0] if p != NAIVE)


def require_baseline(ds: xr.Dataset, baseline: str, values: xr.DataArray) -> xr.DataArray:
    """Values of the policy ``baseline``; :class:`MissingBaseline` (one line) if the run has none."""
    policies = [str(p) for p in ds["policy"].values]
    if baseline not in policies:
        raise MissingBaseline(f"policy {baseline} is not in this run (it has {', '.join(policies)})")
    return values.sel(policy=baseline, drop=True)


def interval(values: xr.DataArray, dim: str = "seed", level: float = 0.95) -> xr.Dataset:
    """Mean and Student-t interval over ``dim``, missing values left out.

    Returns:
        ``mean``, ``low``, ``high`` and ``n`` (values used). One value has a mean but no interval; no value has neither.
    """
    n = values.notnull().sum(dim)
    mean = values.sum(dim, skipna=True) / n.where(n > 0)
    spread = np.sqrt(((values - mean) ** 2).sum(dim, skipna=True) / (n - 1).where(n > 1))
    quantile = xr.apply_ufunc(lambda df: stdtrit(df, 0.5 + level / 2), (n - 1).where(n > 1).astype(np.float64))
    half = quantile * spread / np.sqrt(n.where(n > 1))
    return xr.Dataset({"mean": mean, "low": mean - half, "high": mean + half, "n": n})


def band(values: xr.DataArray, dim: str = "seed") -> xr.Dataset:
    """Median and quartiles over ``dim``, missing values left out: ``median``, ``q25``, ``q75``, ``n``."""
    n = values.notnull().sum(dim)
    known = values.where(n > 0, 0.0)
    quantiles = known.quantile([0.25, 0.5, 0.75], dim=dim, skipna=True).where(n > 0)
    low, median, high = (quantiles.isel(quantile=i, drop=True) for i in range(3))
    return xr.Dataset({"median": median, "q25": low, "q75": high, "n": n})


def bucket_edges(num_buckets: int) -> np.ndarray:
    """Smallest value of each log2 bucket: 0, 1, 2, 4, 8, ..."""
    return np.concatenate([[0], 2 ** np.arange(num_buckets - 1, dtype=np.int64)])


def exceedance(histogram: xr.DataArray) -> xr.DataArray:
    """Count of values at or above the lower edge of each bucket (coordinate ``at_least``, replacing ``bucket``)."""
    axis = histogram.get_axis_num("bucket")
    counts = np.flip(np.cumsum(np.flip(histogram.values.astype(np.float64), axis), axis), axis)
    dims = ["at_least" if d == "bucket" else d for d in histogram.dims]
    coords = {d: histogram[d].values for d in histogram.dims if d != "bucket"}
    return xr.DataArray(counts, dims=dims, coords={**coords, "at_least": bucket_edges(histogram.sizes["bucket"])}, name=histogram.name)


def tail(histogram: xr.DataArray) -> xr.DataArray:
    """Complementary distribution of a log2 histogram with counts pooled over seeds: ``P(value >= at_least)``; missing if it is empty."""
    counts = exceedance(histogram.sum("seed"))
    total = counts.isel(at_least=0, drop=True)
    return (counts / total.where(total > 0)).rename("tail")


def quantile_range(histogram: np.ndarray, level: float) -> tuple[int, int] | None:
    """Smallest and largest value of the bucket that holds quantile ``level`` of one log2 histogram; None if it is empty.

    The last bucket has no upper bound; its lower one is returned twice.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    if counts.sum() <= 0:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), level * counts.sum(), side="left"))
    edges = bucket_edges(len(counts))
    last = bucket in (0, len(counts) - 1)
    return int(edges[bucket]), int(edges[bucket] if last else edges[bucket + 1] - 1)


def stale_uses(ds: xr.Dataset) -> xr.DataArray:
    """Stale accesses by what they read, summed over CPU counts, pressures and seeds.

    Returns:
        Dims (workload, policy, use), ``use`` being ``tolerated`` (measured events) and then the violation classes (the whole run, warm-up
        included). An access may be in several classes.
    """
    require(ds, "violations", "tolerated")
    lanes = [d for d in ds["violations"].dims if d not in ("workload", "policy", "violation_class")]
    classes = ds["violations"].astype(np.float64).sum(lanes).rename(violation_class="use").assign_coords(use=list(class_names(ds)))
    tolerated = ds["tolerated"].astype(np.float64).sum(["num_cpus", "pressure", "seed"]).expand_dims(use=["tolerated"])
    return xr.concat([tolerated, classes], dim="use").transpose("workload", "policy", "use").rename("stale_uses")


def class_names(ds: xr.Dataset) -> tuple[str, ...]:
    """Violation classes of the dataset, by name."""
    return tuple(str(c) for c in ds["violation_class"].values) if "violation_class" in ds.coords else CLASSES


def unsafe_policies(ds: xr.Dataset) -> tuple[str, ...]:
    """Policies that let at least one violation through, in any lane of this run."""
    require(ds, "violations")
    counts = ds["violations"].sum([d for d in ds["violations"].dims if d != "policy"])
    return tuple(str(p) for p in ds["policy"].values[counts.values > 0])


def drift(ds: xr.Dataset) -> xr.DataArray:
    """Shootdown rate in the second half of the measured events over that in the first half, seeds pooled; 1 is a steady run."""
    name = f"{RECEIVED}_over_time"
    require(ds, name, "event")
    events = ds["event"].values.astype(np.float64)
    begin = int(np.searchsorted(events, float(ds.attrs.get("warmup_events", 0))))
    middle = int(np.searchsorted(events, (events[min(begin, len(events) - 1)] + events[-1]) / 2))
    if not begin < middle < len(events) - 1:
        raise MissingVariable(f"results.nc: variable {name} has too few samples after the warm-up")
    at = [ds[name].astype(np.float64).sum("seed").isel(sample=i, drop=True) for i in (begin, middle, -1)]
    early, late = (at[1] - at[0]) / (events[middle] - events[begin]), (at[2] - at[1]) / (events[-1] - events[middle])
    return (late / early.where(early > 0)).rename("drift")
