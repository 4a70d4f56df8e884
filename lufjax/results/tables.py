"""The numbers behind each figure: one tidy table per picture, written as CSV beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from lufjax.results import analysis
from lufjax.results.style import PARTS, PAYERS


def lines(values: xr.DataArray, paired: bool = False) -> pd.DataFrame:
    """One row per (pressure, policy, num_cpus): ``mid``, ``low``, ``high``, ``n``, then each seed's own value.

    ``mid`` is the median between quartiles, or with ``paired`` the mean in its 95 % interval.
    """
    stats = analysis.interval(values) if paired else analysis.band(values)
    names = ("mean", "low", "high") if paired else ("median", "q25", "q75")
    columns = {
        new: stats[old].transpose("pressure", "policy", "num_cpus").values.ravel()
        for new, old in zip(("mid", "low", "high"), names, strict=True)
    }
    columns["n"] = stats["n"].transpose("pressure", "policy", "num_cpus").values.ravel()
    seeds = {f"seed_{int(s)}": values.sel(seed=s).transpose("pressure", "policy", "num_cpus").values.ravel() for s in values["seed"].values}
    return _keys(values, ("pressure", "policy", "num_cpus")).assign(**columns, **seeds)


def payers(ds: xr.Dataset) -> pd.DataFrame:
    """Interrupts per 1,000 accesses by payer, mean over seeds, at the largest CPU count: rows (pressure, policy)."""
    rates = {name: analysis.rate(ds, name).isel(num_cpus=-1, drop=True).mean("seed") for name in PAYERS}
    some = next(iter(rates.values()))
    return _keys(some, ("pressure", "policy")).assign(
        **{name: r.transpose("pressure", "policy").values.ravel() for name, r in rates.items()}
    )


def allocation_tail(ds: xr.Dataset) -> pd.DataFrame:
    """Share of allocations that sent at least so many interrupts, seeds pooled, at the largest CPU count."""
    analysis.require(ds, "ipis_per_alloc")
    values = analysis.tail(ds["ipis_per_alloc"].isel(num_cpus=-1, drop=True))
    return _column(values, ("pressure", "policy", "at_least"), "share")


def lost_parts(priced: xr.Dataset) -> pd.DataFrame:
    """Time lost per access by component, mean over seeds, at the largest CPU count: rows (pressure, policy)."""
    parts = {name: priced[name].isel(num_cpus=-1, drop=True).mean("seed", skipna=False) for name in PARTS}
    some = next(iter(parts.values()))
    return _keys(some, ("pressure", "policy")).assign(
        **{name: p.transpose("pressure", "policy").values.ravel() for name, p in parts.items()}
    )


def ages(ds: xr.Dataset, name: str) -> pd.DataFrame:
    """Things per 1,000 accesses that are at least so old (events), seeds pooled, at the largest CPU count and pressure."""
    analysis.require(ds, name, "accesses")
    at = ds[[name, "accesses"]].isel(num_cpus=-1, pressure=-1, drop=True)
    accesses = at["accesses"].sum("seed").astype(np.float64)
    return _column(
        analysis.PER * analysis.exceedance(at[name].sum("seed")) / accesses.where(accesses > 0), ("policy", "at_least"), "per_1000_accesses"
    )


def pending(ds: xr.Dataset) -> pd.DataFrame:
    """Free frames that carry a debt over events: median and quartiles over seeds, at the largest CPU count and pressure."""
    analysis.require(ds, "nr_pending", "event")
    series = ds["nr_pending"].isel(num_cpus=-1, pressure=-1, drop=True).astype(np.float64)
    stats = analysis.band(series)
    columns = {
        new: stats[old].transpose("policy", "sample").values.ravel()
        for new, old in (("mid", "median"), ("low", "q25"), ("high", "q75"), ("n", "n"))
    }
    policies, events = [str(p) for p in ds["policy"].values], ds["event"].values
    return pd.DataFrame({"policy": np.repeat(policies, len(events)), "event": np.tile(events, len(policies))}).assign(**columns)


def stale_uses(ds: xr.Dataset) -> pd.DataFrame:
    """Stale accesses by class over all CPU counts, pressures and seeds, with the accesses they are out of."""
    counts = analysis.stale_uses(ds).squeeze("workload", drop=True)
    accesses = ds["accesses"].astype(np.float64).sum([d for d in ds["accesses"].dims if d != "policy"])
    frame = _column(counts, ("policy", "use"), "count")
    return frame.assign(accesses=np.repeat(accesses.values, counts.sizes["use"]))


def _keys(values: xr.DataArray, dims: Sequence[str]) -> pd.DataFrame:
    grids = np.meshgrid(*(values[d].values for d in dims), indexing="ij")
    return pd.DataFrame({d: grid.ravel() for d, grid in zip(dims, grids, strict=True)})


def _column(values: xr.DataArray, dims: Sequence[str], name: str) -> pd.DataFrame:
    return _keys(values, dims).assign(**{name: values.transpose(*dims).values.ravel()})
