"""The figures: tables in, Matplotlib figures out."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lufjax.results import panels, style
from lufjax.results.panels import Scene

COLUMNS = 4
"""Panels in a row."""
WIDTH = 7.2
"""Inches."""
SHARE_RANGE = (1e-7, 1e-1)
"""Shares of accesses between which the colour of the matrix of stale uses changes."""


def line_figure(scene: Scene, table: pd.DataFrame, title: str, ylabel: str) -> Figure:
    """Median and quartiles (each seed where there are few) against CPUs, one panel per pressure."""
    figure, axes = _grid(table)
    panels.draw_lines(scene, axes, table)
    style.magnitude_axis(axes, table[["mid", "high"]].to_numpy())
    _label(scene, axes, table, ylabel)
    return _finish(figure, scene, scene.policies, title)


def reduction_figure(scene: Scene, table: pd.DataFrame, title: str, ylabel: str) -> Figure:
    """Mean reduction with its 95 % interval over paired seeds against CPUs, one panel per pressure."""
    figure, axes = _grid(table)
    shown = [p for p in scene.policies if p in set(table["policy"])]
    panels.draw_reductions(scene, axes, table, shown)
    style.reduction_axis(axes, 1 - table["mid"].to_numpy() / 100)
    _label(scene, axes, table, ylabel)
    return _finish(figure, scene, shown, title)


def rule_cost_figure(scene: Scene, table: pd.DataFrame, title: str, ylabel: str) -> Figure:
    """Mean of what each policy sends beyond ``luf_naive``, with its 95 % interval over paired seeds, one panel per pressure."""
    figure, axes = _grid(table)
    shown = [p for p in scene.policies if p in set(table["policy"])]
    panels.draw_extras(scene, axes, table, shown)
    _label(scene, axes, table, ylabel)
    return _finish(figure, scene, shown, title)


def lost_time_figure(scene: Scene, table: pd.DataFrame, parts: pd.DataFrame, title: str, ylabel: str) -> Figure:
    """Time lost against CPUs, and below it what it consists of at the largest CPU count."""
    table, parts = _few_pressures(table), _few_pressures(parts)
    bars = _bars_height(scene)
    figure = Figure(figsize=(WIDTH, 2.95 + bars), layout="constrained")
    lines, shares = figure.subplots(2, _num_pressures(table), sharey="row", squeeze=False, height_ratios=[1.75, bars])
    panels.draw_lines(scene, list(lines), table)
    style.magnitude_axis(list(lines), table[["mid", "high"]].to_numpy())
    panels.draw_shares(scene, list(shares), parts, style.PARTS, "share of the time lost (%)\nand total in ns per access")
    shares[0].set_title(" ", pad=8)
    panels.parts_legend(shares[0], style.PARTS)
    _label(scene, list(lines), table, ylabel)
    return _finish(figure, scene, scene.policies, title)


def payers_figure(scene: Scene, table: pd.DataFrame, tail: pd.DataFrame, title: str) -> Figure:
    """Who sends the interrupts (stacked shares with totals), and how many one allocation sends."""
    table, tail = _few_pressures(table), _few_pressures(tail)
    bars = _bars_height(scene)
    figure = Figure(figsize=(WIDTH, 3.15 + bars), layout="constrained")
    shares, tails = figure.subplots(2, _num_pressures(table), sharey="row", squeeze=False, height_ratios=[bars, 1.6])
    panels.draw_shares(scene, list(shares), table, style.PAYERS, "share of interrupts sent (%)\nand total per 1,000 accesses")
    for ax, pressure in zip(shares, sorted(set(table["pressure"])), strict=True):
        ax.set_title(panels.pressure_label(pressure), pad=17)
    panels.parts_legend(shares[0], style.PAYERS)
    panels.draw_tail(scene, list(tails), tail)
    tails[0].set_ylabel("share of allocations\nthat send at least x")
    return _finish(figure, scene, scene.policies, title)


def staleness_figure(scene: Scene, at_use: pd.DataFrame, at_discharge: pd.DataFrame, pending: pd.DataFrame, title: str) -> Figure:
    """How old stale entries are when used, how old debts are when paid, and how many free frames carry one over time."""
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    use, discharge, over_time = figure.subplots(1, 3)
    panels.draw_ages(scene, use, at_use)
    panels.draw_ages(scene, discharge, at_discharge)
    panels.draw_pending(scene, over_time, pending)
    for ax, xlabel, ylabel in (
        (use, "age of the stale entry (events)", "stale accesses at least\nthis old, per 1,000 accesses"),
        (discharge, "age of the debt (events)", "discharges at least this\nold, per 1,000 accesses"),
        (over_time, "events (thousands)", "free frames that carry a debt"),
    ):
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
    return _finish(figure, scene, scene.policies, title)


def stale_uses_figure(scene: Scene, table: pd.DataFrame, title: str) -> Figure:
    """Stale accesses by policy and class as a matrix with its numbers; colour is the share of accesses, log scale."""
    policies, uses = list(scene.policies), list(dict.fromkeys(table["use"]))
    counts = table.pivot(index="policy", columns="use", values="count").loc[policies, uses].to_numpy()
    accesses = table.drop_duplicates("policy").set_index("policy")["accesses"].loc[policies].to_numpy()
    shares = counts / np.where(accesses > 0, accesses, np.nan)[:, None]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.2 * len(policies)), layout="constrained")
    ax = figure.subplots()
    norm = LogNorm(*SHARE_RANGE, clip=True)
    for i, j in np.ndindex(*counts.shape):
        color = mpl.colormaps["Blues" if j == 0 else "Oranges"](0.15 + 0.7 * norm(shares[i, j])) if counts[i, j] > 0 else (1, 1, 1, 1)
        ax.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, facecolor=color, lw=0))
        ink = "#A0A0A0" if not counts[i, j] > 0 else "#202020" if np.dot(color[:3], (0.3, 0.59, 0.11)) > 0.5 else "white"
        ax.text(
            j,
            i,
            f"{counts[i, j]:,.0f}" if counts[i, j] < 1e7 else style.short(counts[i, j]),
            ha="center",
            va="center",
            fontsize=6.5,
            color=ink,
        )
    ax.axvline(0.5, color="#202020", lw=0.8)
    ax.set(xlim=(-0.5, len(uses) - 0.5), ylim=(len(policies) - 0.5, -0.5))
    ax.set_xticks(range(len(uses)), labels=uses)
    ax.set_yticks(range(len(policies)), labels=scene.labels)
    ax.grid(False)
    ax.tick_params(which="both", length=0)
    ax.xaxis.tick_top()
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xlabel(
        "tolerated: right content read through a stale entry, measured events only; others: violations, whole run, several classes possible"
    )
    return _finish(figure, scene, (), title)


def _grid(table: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    number = _num_pressures(table)
    columns = min(COLUMNS, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH, 0.65 + 2.05 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for ax in axes[number:]:
        ax.set_visible(False)
    return figure, axes[:number]


def _few_pressures(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pressures that fit in one row of panels: the ends and evenly chosen ones between."""
    pressures = np.unique(table["pressure"])
    shown = pressures[np.unique(np.linspace(0, len(pressures) - 1, COLUMNS).round().astype(int))]
    return table.loc[[p in shown for p in table["pressure"]]]


def _num_pressures(table: pd.DataFrame) -> int:
    return len(set(table["pressure"]))


def _bars_height(scene: Scene) -> float:
    return 0.25 + 0.125 * len(scene.policies)


def _label(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame, ylabel: str) -> None:
    for i, (ax, pressure) in enumerate(zip(axes, sorted(set(table["pressure"])), strict=True)):
        ax.set_title(panels.pressure_label(pressure))
        ax.set_xlabel("CPUs")
        if i % COLUMNS == 0:
            ax.set_ylabel(ylabel)


def _finish(figure: Figure, scene: Scene, policies: Sequence[str], title: str) -> Figure:
    figure.suptitle(title, x=0.01, ha="left")
    if scene.unsafe if not policies else set(policies) & set(scene.unsafe):
        figure.text(0.99, 1 - 0.06 / figure.get_figheight(), style.UNSAFE_NOTE, ha="right", va="top", fontsize=6.5, color="#303030")
    if policies:
        widest = max(len(style.label(p, scene.unsafe)) for p in policies)
        fitting = max(1, min(5, int(WIDTH / (0.55 + 0.06 * widest))))
        rows = -(-len(policies) // fitting)
        columns = -(-len(policies) // rows)
        handles = [Line2D([], [], **scene.line(p), label=style.label(p, scene.unsafe)) for p in policies]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure
