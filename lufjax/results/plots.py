"""Figures of one run: PNG, PDF and the plotted numbers (CSV), the same bytes each time."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from lufjax.results import analysis, figures, tables
from lufjax.results.cost import CONTROL, CostModel, load_cost, price
from lufjax.results.panels import FEW_SEEDS, Scene, amount, pressure_label
from lufjax.results.run_directory import run_cost, transports
from lufjax.results.style import figure_style, in_order

logger = logging.getLogger(__name__)
INDEX = "index.json"
"""Beside the figures: what was drawn, with its caption, and what was skipped, with the reason."""
Drawn = tuple[Figure, dict[str, pd.DataFrame], str]
"""A figure, its tables by suffix ("" for the main one) and its caption."""


def plot_run(run_dir: Path | str, cost: str | CostModel | None = None) -> list[Path]:
    """Draw every figure of a run into ``run_dir/figures``.

    A figure whose variable or baseline is missing is skipped, with one line in the log, in ``index.json`` and in the report.

    Args:
        run_dir: directory with ``results.nc`` and ``config.yaml``.
        cost: a cost model, by name or path; that of the run's config when None.

    Returns:
        The files written: PNG, PDF and CSV of each figure, and the index.
    """
    run_dir = Path(run_dir)
    ds = analysis.load_results(run_dir)
    model = cost if isinstance(cost, CostModel) else load_cost(cost) if cost else run_cost(run_dir)
    lines = transports(run_dir, [str(p) for p in ds["policy"].values])
    out = run_dir / "figures"
    out.mkdir(exist_ok=True)
    written, index = [], []
    with figure_style():
        for workload in ds["workload"].values:
            one = ds.sel(workload=[workload])
            scene = scene_of(one)
            for name, draw in builders(one, scene, model, lines).items():
                stem = figure_name(name, scene.workload)
                entry = {"figure": stem, "workload": scene.workload}
                try:
                    figure, data, caption = draw()
                except (analysis.MissingVariable, analysis.MissingBaseline) as reason:
                    logger.warning("figure %s is skipped: %s", stem, reason)
                    index.append({**entry, "skipped": str(reason)})
                    continue
                files = save_figure(figure, data, out / stem)
                index.append({**entry, "caption": caption, "files": [f.name for f in files]})
                written += files
    path = out / INDEX
    path.write_text(json.dumps({"cost": model.name, "figures": index}, indent=1, ensure_ascii=False) + "\n")
    return [*written, path]


def figure_name(name: str, workload: str) -> str:
    """File name of a figure, without suffix: letters, digits, ``.``, ``_``, ``-`` and ``=`` only."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{name}-{workload}") if workload else name


def scene_of(ds: xr.Dataset) -> Scene:
    """What the figures of a one-workload dataset share."""
    policies = tuple(in_order([str(p) for p in ds["policy"].values]))
    unsafe = analysis.unsafe_policies(ds) if "violations" in ds else ()
    focus = f"{amount(int(ds['num_cpus'][-1]), 'CPU')}, {pressure_label(float(ds['pressure'][-1]))}"
    return Scene(str(ds["workload"].item()), policies, unsafe, ds.sizes["seed"], focus, int(ds.attrs.get("warmup_events", 0)))


def builders(ds: xr.Dataset, scene: Scene, model: CostModel, transport: dict[str, str]) -> dict[str, Callable[[], Drawn]]:
    """Figure name -> function that draws it from a one-workload dataset."""
    rule_cost = {"rule_cost": lambda: _rule_cost(ds, scene)} if analysis.NAIVE in scene.policies and len(scene.policies) > 1 else {}
    return {
        "shootdowns": lambda: _shootdowns(ds, scene),
        "reduction": lambda: _reduction(ds, scene),
        **rule_cost,
        "lost_time": lambda: _lost_time(ds, scene, model, transport),
        "payers": lambda: _payers(ds, scene),
        "staleness": lambda: _staleness(ds, scene),
        "stale_uses": lambda: _stale_uses(ds, scene),
    }


def _shootdowns(ds: xr.Dataset, scene: Scene) -> Drawn:
    table = tables.lines(analysis.rate(ds, analysis.RECEIVED).squeeze("workload", drop=True))
    title = f"{_lead(scene)}TLB shootdowns received"
    figure = figures.line_figure(scene, table, title, "interrupts received\nper 1,000 accesses")
    return (
        figure,
        {"": table},
        f"TLB shootdowns received (the TLB row of /proc/interrupts) per 1,000 accesses against CPUs; {_spread(scene, ds)}. {_shade()}",
    )


def _reduction(ds: xr.Dataset, scene: Scene) -> Drawn:
    values = 100.0 * analysis.reduction(ds).squeeze("workload", drop=True)
    table = tables.lines(values.sel(policy=[p for p in scene.policies if p != analysis.BASELINE]), paired=True)
    if not np.isfinite(table["mid"]).any():
        raise analysis.MissingBaseline(
            f"policy {analysis.BASELINE} received no shootdown at any point of this run, so there is none to reduce"
        )
    title = f"{_lead(scene)}shootdowns avoided relative to {analysis.BASELINE}"
    figure = figures.reduction_figure(scene, table, title, f"reduction relative\nto {analysis.BASELINE} (%)")
    paired = "one seed, no interval" if scene.seeds < 2 else f"mean of {scene.seeds} paired seeds with 95 % t intervals"
    return figure, {"": table}, (
        f"Shootdowns received per access, reduction relative to {analysis.BASELINE} under identical events: {paired}. Missing at 1 "
        "CPU, where there is "
        "nothing to reduce. The axis is logarithmic in what remains (linear in the shaded strip, where 100 % has its place); "
        "markers are set slightly apart."
    )  # fmt: skip


def _rule_cost(ds: xr.Dataset, scene: Scene) -> Drawn:
    values = analysis.extra(ds, "nr_tlb_remote_flush", "nr_gathers").squeeze("workload", drop=True)
    shown = [p for p in scene.policies if p in analysis.deferring(ds)]
    if not shown or not np.isfinite(values).any():
        raise analysis.MissingVariable(f"no mapping call of this workload, or no policy but {analysis.NAIVE} that deferred an unmap")
    table = tables.lines(values.sel(policy=shown), paired=True)
    title = f"{_lead(scene)}flushes beyond {analysis.NAIVE} per mapping call"
    figure = figures.rule_cost_figure(scene, table, title, "extra flushes\nper mapping call")
    paired = "one seed, no interval" if scene.seeds < 2 else f"mean of {scene.seeds} paired seeds with 95 % t intervals"
    return figure, {"": table}, (
        f"Remote flushes (nr_tlb_remote_flush) beyond those of {analysis.NAIVE} under identical events, for each munmap, mprotect or "
        f"madvise call: {paired}. Policies that defer nothing are left out; markers are set slightly apart."
    )  # fmt: skip


def _lost_time(ds: xr.Dataset, scene: Scene, model: CostModel, transport: dict[str, str]) -> Drawn:
    priced = price(ds, model, transport).squeeze("workload", drop=True)
    table, parts = tables.lines(priced["lost"]), tables.lost_parts(priced)
    title = f"{_lead(scene)}estimated time lost to shootdowns per CPU, cost model {model.name}"
    figure = figures.lost_time_figure(scene, table, parts, title, "ns lost per access")
    caption = (
        "Estimated time that a CPU loses to shootdowns per access of its own (ns, or us per 1,000 accesses), cost model "
        f"{model.name}; {_spread(scene, ds)}. "
        f"Below: what it consists of at {amount(int(ds['num_cpus'][-1]), 'CPU')}, the mean total beside each bar; negative parts are drawn "
        f"as 0. {_shade()}{_left_out(ds)}"
    )
    if model.refill == "measured" and CONTROL not in scene.policies:
        caption += f" Refills are not priced: this run has no policy {CONTROL} to compare walks with."
    return figure, {"": table, ".parts": parts}, caption


def _payers(ds: xr.Dataset, scene: Scene) -> Drawn:
    table, tail = tables.payers(ds.squeeze("workload", drop=True)), tables.allocation_tail(ds.squeeze("workload", drop=True))
    cpus = amount(int(ds["num_cpus"][-1]), "CPU")
    figure = figures.payers_figure(scene, table, tail, f"{_lead(scene)}who pays, at {cpus}")
    return figure, {"": table, ".tail": tail}, (
        f"Above: interrupts by who sent them, at {cpus}; beside each bar the total per 1,000 accesses "
        f"(mean of {amount(scene.seeds, 'seed')}). "
        "Below: share of allocations that sent at least x interrupts (log2 buckets, seeds pooled)."
        f"{_left_out(ds)}"
    )  # fmt: skip


def _staleness(ds: xr.Dataset, scene: Scene) -> Drawn:
    one = ds.squeeze("workload", drop=True)
    data = {".use": tables.ages(one, "age_at_use"), ".discharge": tables.ages(one, "age_at_discharge"), ".pending": tables.pending(one)}
    figure = figures.staleness_figure(
        scene, data[".use"], data[".discharge"], data[".pending"], f"{_lead(scene)}age of stale entries and debts, at {scene.focus}"
    )
    return figure, data, (
        f"At {scene.focus}, {amount(scene.seeds, 'seed')}: stale accesses by age of the entry and discharges by age of the debt, "
        "as the rate of those at least so old (log2 buckets, seeds pooled), and free frames that carry a debt over the whole run "
        "(median and quartiles; the warm-up is shaded)."
    )  # fmt: skip


def _stale_uses(ds: xr.Dataset, scene: Scene) -> Drawn:
    table = tables.stale_uses(ds)
    figure = figures.stale_uses_figure(scene, table, f"{_lead(scene)}stale uses by class, whole run")
    return figure, {"": table}, (
        "Accesses through stale entries, summed over all CPU counts, pressures and seeds. Colour: share of all accesses, log "
        "scale; white is none. "
        "Tolerated ones read the right content (measured events); violations are counted from the first event, warm-up included; "
        "one access may be in several classes."
    )  # fmt: skip


def _left_out(ds: xr.Dataset) -> str:
    more = ds.sizes["pressure"] - figures.COLUMNS
    return f" {more} more pressures are in the CSV files." if more > 0 else ""


def _lead(scene: Scene) -> str:
    return f"{scene.workload}: " if scene.workload else ""


def _spread(scene: Scene, ds: xr.Dataset) -> str:
    if scene.seeds == 1:
        return "one seed"
    if ds.sizes["num_cpus"] == 1:
        return f"median of {scene.seeds} seeds with quartiles, policies side by side"
    return f"median of {scene.seeds} seeds, " + (
        "each seed a thin line" if scene.seeds <= FEW_SEEDS else "band from first to third quartile"
    )


def _shade() -> str:
    return "Where an axis has a shaded strip, it is linear there (so that 0 has a place) and logarithmic above."


def save_figure(figure: Figure, data: dict[str, pd.DataFrame], stem: Path) -> list[Path]:
    """Write PNG, PDF and CSV files without a date or a software name; the layout is computed once for both pictures."""
    png, pdf = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")
    with warnings.catch_warnings():  # a figure with very few points keeps the default layout
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.draw_without_rendering()
    figure.set_layout_engine(None)
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Title": stem.name})
    csvs = []
    for suffix, table in data.items():
        csvs.append(stem.with_name(f"{stem.name}{suffix}.csv"))
        table.to_csv(csvs[-1], index=False, float_format="%.10g", lineterminator="\n")
    return [png, pdf, *csvs]
