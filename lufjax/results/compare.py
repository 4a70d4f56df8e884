"""Two runs side by side: what differs in their configs, and by how much their results differ where they can be paired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lufjax.counters import SCALARS
from lufjax.results import analysis
from lufjax.results.run_directory import flatten, provenance, read_config
from lufjax.results.style import in_order

ABSENT = "(absent)"
PLACES = ("name", "outputs", "run_dir", "resume", "figures")
"""Config keys that say where results go and not what they are."""


def compare_runs(a: Path | str, b: Path | str) -> str:
    """Text that says what differs between run ``a`` and run ``b``.

    Results are paired lane by lane where workload, policy, num_cpus, pressure and seed all match; what has no partner is listed.

    Raises:
        ValueError: one of them is not a finished run.
    """
    first, second = analysis.load_results(a), analysis.load_results(b)
    parts = [
        f"A: {a}\nB: {b}",
        _config_text(read_config(a), read_config(b)),
        _provenance_text(first, second),
        _coordinate_text(first, second),
    ]
    return "\n\n".join([*parts, _result_text(first, second)]) + "\n"


def config_differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Flattened keys whose values differ, with both values; places where results go are left out."""
    left, right = flatten(a), flatten(b)
    keys = [key for key in dict.fromkeys([*left, *right]) if key.split(".")[0] not in PLACES]
    pairs = {key: (left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def counter_differences(a: xr.Dataset, b: xr.Dataset) -> dict[tuple[str, str, str], dict[str, float]]:
    """Counters that differ, by (workload, policy, counter), over the lanes that both runs have.

    Returns:
        ``a`` and ``b`` (totals), ``lanes`` and ``differ`` (numbers of lanes), and ``ratio``, ``low``, ``high``: the mean of B/A per lane,
        of lanes where A is not 0, with its 95 % interval over seeds (ratios are averaged over points within a seed first); NaN where
        there is none.
    """
    one, two = xr.align(a, b, join="inner", exclude=set(a.dims) - set(analysis.DIMS))
    found = {}
    names = [n for n in SCALARS if n in one and n in two]
    for workload in one["workload"].values:
        for policy in in_order([str(p) for p in one["policy"].values]):
            for name in names:
                x, y = (ds[name].sel(workload=workload, policy=policy).astype(np.float64) for ds in (one, two))
                differ = int(((x != y) & (x.notnull() | y.notnull())).sum())
                if not differ:
                    continue
                per_seed = (y / x.where(x != 0)).stack(point=("num_cpus", "pressure"))
                count = per_seed.notnull().sum("point")
                stats = analysis.interval(per_seed.sum("point", skipna=True) / count.where(count > 0))
                found[str(workload), policy, name] = {
                    "a": float(x.sum()), "b": float(y.sum()), "lanes": x.size, "differ": differ,
                    "ratio": float(stats["mean"]), "low": float(stats["low"]), "high": float(stats["high"]),
                }  # fmt: skip
    return found


def _config_text(a: dict[str, Any], b: dict[str, Any]) -> str:
    differences = config_differences(a, b)
    if not differences:
        return "Config: the same."
    lines = [[key, str(x), str(y)] for key, (x, y) in differences.items()]
    return f"Config: {len(lines)} {'key differs' if len(lines) == 1 else 'keys differ'}.\n" + _columns([["key", "A", "B"], *lines])


def _provenance_text(a: xr.Dataset, b: xr.Dataset) -> str:
    left, right = (
        flatten(
            {k: v for k, v in provenance(ds).items() if k in ("git_commit", "git_dirty", "code_sha256", "versions", "device", "backend")}
        )
        for ds in (a, b)
    )
    keys = [k for k in dict.fromkeys([*left, *right]) if left.get(k, ABSENT) != right.get(k, ABSENT)]
    if not keys:
        return "Versions, commit and device: the same."
    return "Versions, commit and device that differ:\n" + _columns(
        [["fact", "A", "B"], *([k, str(left.get(k, ABSENT)), str(right.get(k, ABSENT))] for k in keys)]
    )


def _coordinate_text(a: xr.Dataset, b: xr.Dataset) -> str:
    lines = []
    for dim in analysis.DIMS:
        left, right = a[dim].values.tolist(), b[dim].values.tolist()
        for run, extra in (("A", [v for v in left if v not in right]), ("B", [v for v in right if v not in left])):
            if extra:
                lines.append(f"only in {run}: {dim} {', '.join(str(v) for v in extra)}")
    names = sorted({str(n) for n in a.data_vars} ^ {str(n) for n in b.data_vars})
    lines += [f"only in {'A' if name in a else 'B'}: variable {name}" for name in names]
    return "\n".join(lines) or "Points and seeds: the same."


def _result_text(a: xr.Dataset, b: xr.Dataset) -> str:
    empty = [dim for dim in analysis.DIMS if not set(a[dim].values.tolist()) & set(b[dim].values.tolist())]
    if empty:
        return f"Results: no lane can be paired; the runs share no {empty[0]}."
    differences = counter_differences(a, b)
    if not differences:
        return "Results: every counter of every paired lane is the same."
    rows = [["workload", "policy", "counter", "A", "B", "B/A of totals", "B/A per lane [95 %]", "lanes that differ"]]
    for (workload, policy, name), d in differences.items():
        total = _ratio(d["b"] / d["a"]) if d["a"] else "\u2013"
        paired = _ratio(d["ratio"]) + (f" [{_ratio(d['low'])}, {_ratio(d['high'])}]" if np.isfinite(d["low"]) else "")
        rows.append([workload, policy, name, f"{d['a']:,.0f}", f"{d['b']:,.0f}", total, paired, f"{d['differ']} of {d['lanes']}"])
    same = [
        p for p in in_order([str(p) for p in a["policy"].values if p in b["policy"].values]) if not any(key[1] == p for key in differences)
    ]
    note = f"\nEvery counter the same: {', '.join(same)}." if same else ""
    return "Results: counters that differ, over paired lanes (a dash: A is 0).\n" + _columns(rows) + note


def _ratio(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "\u2013"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
