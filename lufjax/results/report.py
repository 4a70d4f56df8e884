"""``report.md`` of a run: what was run, the headline table, figures, cautions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lufjax.results import analysis
from lufjax.results.panels import pressure_label
from lufjax.results.plots import INDEX
from lufjax.results.run_directory import provenance, read_config
from lufjax.results.style import UNSAFE_MARK, in_order, short

FACTS = {
    "run_id": "run",
    "command": "command",
    "git_commit": "commit",
    "git_dirty": "uncommitted changes",
    "device": "device",
    "wall_s": "seconds taken",
}
"""Key of the provenance -> its name in the report."""
DRIFT = 0.2
"""A change of the shootdown rate from the first to the second half of the measured events beyond this share is worth a caution."""
FEW_COUNTS = 100
"""Fewer shootdowns than this at a point make its reduction coarse."""


def write_report(run_dir: Path | str) -> Path:
    """Write ``report.md`` beside the results; figures that ``plot_run`` drew or skipped are listed from their index."""
    run_dir = Path(run_dir)
    ds, config = analysis.load_results(run_dir), read_config(run_dir)
    parts = [f"# Results of {config.get('name', run_dir.name)}", what_was_run(ds, config)]
    for workload in ds["workload"].values:
        one = ds.sel(workload=[workload])
        parts += [headline(one), rule_cost(one)]
    parts += [figure_list(run_dir), cautions(ds)]
    path = run_dir / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def what_was_run(ds: xr.Dataset, config: dict[str, Any]) -> str:
    """Extent of the sweep, events, warm-up, versions and commit."""
    facts = provenance(ds)
    rows = [(name.replace("_", " "), ", ".join(_value(v) for v in ds[name].values)) for name in analysis.DIMS if name != "seed"]
    seeds = ds["seed"].values
    rows += [
        ("seeds", f"{len(seeds)} ({_value(seeds[0])} to {_value(seeds[-1])})"),
        ("lanes", f"{int(np.prod([ds.sizes[d] for d in analysis.DIMS])):,}"),
    ]
    events, divisor = config.get("num_events"), config.get("warmup_divisor")
    if events is not None:
        rows.append(
            (
                "events per lane",
                f"{events:,}" + (f", of which {events // divisor:,} are warm-up and not counted" if divisor else ", all counted"),
            )
        )
    if "accesses" in ds:
        rows.append(("accesses counted", f"{int(np.nansum(ds['accesses'].values)):,}"))
    machine = config.get("machine", {})
    tlbs = [f"{level.upper()} {machine[level]['sets'] * machine[level]['ways']} entries" for level in ("l1", "l2") if level in machine]
    if tlbs:
        rows.append(("TLB of a CPU", ", ".join(tlbs)))
    rows += [(title, _value(facts[key])) for key, title in FACTS.items() if key in facts]
    rows += [("versions", ", ".join(f"{k} {v}" for k, v in sorted(facts["versions"].items()) if v))] if "versions" in facts else []
    return "## What was run\n\n" + _table(["", ""], rows) + "\n\nThe whole config is in `config.yaml`, every number in `results.nc`."


def headline(ds: xr.Dataset) -> str:
    """Reduction of shootdowns per policy and CPU count, one table per pressure, with what each policy let through."""
    workload = str(ds["workload"].item()) or "the workload"
    policies = in_order([str(p) for p in ds["policy"].values])
    try:
        rates = analysis.rate(ds, analysis.RECEIVED).squeeze("workload", drop=True)
    except analysis.MissingVariable as reason:
        return f"## Shootdowns: {workload}\n\nNo table: {reason}."
    try:
        stats = analysis.interval(100 * analysis.reduction(ds).squeeze("workload", drop=True))
        about = (
            f"Reduction of TLB shootdowns received per access relative to `{analysis.BASELINE}` under identical events, in "
            f"percent: mean of {ds.sizes['seed']} "
            f"paired seeds, plus or minus the half-width of the 95 % t interval. `{analysis.BASELINE}` itself: shootdowns received "
            "per 1,000 accesses."
        )
    except analysis.MissingBaseline as reason:
        stats = None
        about = f"No reductions: {reason}. Shootdowns received per 1,000 accesses, mean over seeds."
    unsafe = analysis.unsafe_policies(ds) if "violations" in ds else ()
    blocks = []
    for pressure in ds["pressure"].values:
        violations = _violations(ds.sel(pressure=[pressure]))
        rows = []
        for policy in policies:
            at = {"policy": policy, "pressure": pressure}
            if stats is None or policy == analysis.BASELINE:
                cells = [short(float(v)) for v in rates.sel(at).mean("seed").values]
            else:
                cells = [_percent(stats.sel(at).isel(num_cpus=i)) for i in range(ds.sizes["num_cpus"])]
            rows.append([f"`{policy}`" + (f" {UNSAFE_MARK}" if policy in unsafe else ""), *cells, violations[policy]])
        counts = [f"{int(c)} CPU{'s' if c > 1 else ''}" for c in ds["num_cpus"].values]
        blocks.append(f"### {pressure_label(float(pressure)).capitalize()}\n\n" + _table(["policy", *counts, "violations"], rows))
    if stats is not None:
        about += " A dash: missing. At 1 CPU there is no remote CPU and so no shootdown to reduce; elsewhere the baseline had none."
    about += "\nViolations: wrong stale accesses by class at this pressure, all CPU counts and seeds, warm-up included."
    return f"## Shootdowns: {workload}\n\n{about}\n\n" + "\n\n".join(blocks)


def rule_cost(ds: xr.Dataset) -> str:
    """What each policy that defers unmaps sends beyond ``luf_naive``; empty where the run has nothing to compare."""
    if analysis.NAIVE not in ds["policy"].values or not {"deferred_unmaps", "nr_gathers", analysis.RECEIVED} <= set(ds):
        return ""
    policies = in_order(analysis.deferring(ds))
    if not policies:
        return ""
    received = analysis.interval(analysis.extra(ds).squeeze("workload", drop=True))
    base = analysis.rate(ds, analysis.RECEIVED).sel(policy=analysis.NAIVE).squeeze("workload", drop=True).mean("seed")
    calls = analysis.PER * float((ds["nr_gathers"] / ds["accesses"]).mean())
    points = [(float(p), int(c)) for p in ds["pressure"].values for c in ds["num_cpus"].values if c > 1]
    if not points:
        return ""
    rows = [[f"`{analysis.NAIVE}` itself", *(short(float(base.sel(pressure=p, num_cpus=c))) for p, c in points)]]
    for policy in policies:
        stats = [received.sel(policy=policy, pressure=p, num_cpus=c) for p, c in points]
        rows.append([f"`{policy}`", *(_beyond(one, float(base.sel(pressure=p, num_cpus=c))) for one, (p, c) in zip(stats, points, strict=True))])
    return (
        f"### Beyond `{analysis.NAIVE}`: {ds['workload'].item() or 'the workload'}\n\n"
        f"Shootdowns received per 1,000 accesses beyond those of `{analysis.NAIVE}` under identical events: mean of {ds.sizes['seed']} paired "
        f"seeds, plus or minus the half-width of the 95 % t interval, and in percent of its own. The workload makes {short(calls)} mapping "
        "calls per 1,000 accesses.\n\n" + _table(["policy", *(f"{pressure_label(p)}, {c} CPUs" for p, c in points)], rows)
    )


def figure_list(run_dir: Path) -> str:
    """The figures with their captions, and those that were skipped with the reason."""
    path = run_dir / "figures" / INDEX
    if not path.is_file():
        return "## Figures\n\nNone were drawn; `lufjax plot` draws them."
    index = json.loads(path.read_text())
    lines = ["## Figures"]
    for entry in index["figures"]:
        name = entry["figure"]
        if "skipped" in entry:
            lines.append(f"**{name}** was skipped: {entry['skipped']}.")
        else:
            links = ", ".join(f"[{file}](figures/{file})" for file in entry["files"][1:])
            lines.append(f"![{name}](figures/{name}.png)\n\n**{name}**. {entry['caption']} {links}")
    return "\n\n".join(lines)


def cautions(ds: xr.Dataset) -> str:
    """What a reader has to know before quoting a number, from what this run shows."""
    notes = [
        "Counts are those of the model in `docs/MODEL.md`, not of a kernel: a shootdown is one flush function run for another "
        "CPU, and coalescing of interrupts is not modelled.",
        "Times are counts multiplied by a cost model; figures tagged [K] in `conf/cost/` are unverified defaults. Lock contention "
        "and memory bandwidth are not priced.",
    ]
    if ds.sizes["seed"] < 2:
        notes.append("There is one seed, so no interval.")
    elif ds.sizes["seed"] < 5:
        notes.append(f"There are only {ds.sizes['seed']} seeds; intervals are wide and assume normal errors.")
    if "violations" in ds:
        unsafe = in_order(analysis.unsafe_policies(ds))
        notes.append(
            f"{UNSAFE_MARK} Let violations through: {', '.join(f'`{p}`' for p in unsafe)}; their counts are not a saving."
            if unsafe
            else "No policy let a violation through."
        )
    else:
        notes.append("results.nc: variable violations is missing, so nothing is known about safety.")
    return "## Cautions\n\n" + "\n".join(f"- {note}" for note in [*notes, *_measured_cautions(ds)])


def _measured_cautions(ds: xr.Dataset) -> list[str]:
    notes = []
    for name, over, text in (
        ("events_disabled", "events", "of the events were not enabled and did nothing"),
        ("alloc_fail", "pgfault", "of the page faults found no frame"),
        ("segv", "accesses", "of the accesses had no usable VMA"),
    ):
        if name in ds and over in ds and float(ds[name].sum()) > 0:
            notes.append(f"{100 * float(ds[name].sum()) / max(float(ds[over].sum()), 1):.2g} % {text} (`{name}`).")
    counts = ds[analysis.RECEIVED].sum("seed") if analysis.RECEIVED in ds else None
    if counts is not None and analysis.BASELINE in ds["policy"].values:
        many = counts.sel(policy=analysis.BASELINE).where(ds["num_cpus"] > 1, drop=True)
        few = int((many < FEW_COUNTS).sum())
        if few:
            notes.append(
                f"At {few} of {many.size} points `{analysis.BASELINE}` received fewer than {FEW_COUNTS} shootdowns in all seeds "
                "together; reductions there are coarse."
            )
    try:
        drift = analysis.drift(ds)
        drift = drift.sel(policy=analysis.BASELINE) if analysis.BASELINE in ds["policy"].values else drift
        change = (drift - 1).values[np.isfinite(drift.values)]
        worst = float(change[np.argmax(np.abs(change))]) if change.size else 0.0
        if abs(worst) > DRIFT:
            notes.append(
                f"The shootdown rate was not steady: at one point it was {worst:+.0%} in the second half of the measured events "
                "relative to the one before."
            )
    except analysis.MissingVariable:
        notes.append("Whether the shootdown rate was steady is not known: the time series is missing or too short.")
    return notes


def _violations(ds: xr.Dataset) -> dict[str, str]:
    policies = [str(p) for p in ds["policy"].values]
    if "violations" not in ds:
        return dict.fromkeys(policies, "unknown")
    totals = ds["violations"].sum([d for d in ds["violations"].dims if d not in ("policy", "violation_class")])
    found = {}
    for policy in policies:
        counts = zip(analysis.class_names(ds), totals.sel(policy=policy).values, strict=True)
        found[policy] = ", ".join(f"{name} {int(n):,}" for name, n in counts if n > 0) or "none"
    return found


def _percent(stats: xr.Dataset) -> str:
    mean, half = float(stats["mean"]), float(stats["high"] - stats["mean"])
    if not np.isfinite(mean):
        return "\u2013"
    digits = 0 if mean in (0, 100) and not half > 0 else 3 if 99.9 < mean < 100 else 1
    text = f"{mean:,.{digits}f}" + (f" \u00b1 {half:.{digits}f}" if half > 0 else "")
    return text.replace("-", "\u2212")


def _beyond(stats: xr.Dataset, base: float) -> str:
    mean, half = float(stats["mean"]), float(stats["high"] - stats["mean"])
    if mean == 0 and not half > 0:
        return "0"
    text = f"{mean:+.3g}" + (f" \u00b1 {half:.2g}" if half > 0 else "") + (f" ({100 * mean / base:+.1f} %)" if base > 0 else "")
    return text.replace("-", "\u2212")


def _value(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] * len(header)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)])
