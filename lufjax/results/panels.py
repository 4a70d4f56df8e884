"""What is drawn inside one panel: lines, stacked shares, tails and ages. Nothing is computed here beyond layout."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lufjax.results import style

FEW_SEEDS = 5
"""So many seeds are drawn one by one, more as a band."""
Parts = Mapping[str, tuple[str, str, str]]
"""Column -> label, colour, hatch."""


@dataclass(frozen=True)
class Scene:
    """What all figures of one workload share.

    Attributes:
        workload: its name.
        policies: in the order of legends.
        unsafe: those that let a violation through.
        seeds: number of seeds.
        focus: text naming the point shown where only one is ("64 CPUs, 4 pages per frame").
        warmup_events: events before counting starts.
    """

    workload: str
    policies: tuple[str, ...]
    unsafe: tuple[str, ...]
    seeds: int
    focus: str
    warmup_events: int

    @property
    def styles(self) -> dict[str, style.PolicyStyle]:
        """Style of each policy."""
        return style.policy_styles(self.policies)

    @property
    def labels(self) -> list[str]:
        """Names of the policies, the unsafe ones marked."""
        return [style.label(p, self.unsafe) for p in self.policies]

    def line(self, policy: str) -> dict[str, Any]:
        """Keywords of a policy's line; hollow markers if it let a violation through."""
        s = self.styles[policy]
        face = "white" if policy in self.unsafe else s.color
        return {"color": s.color, "marker": s.marker, "ls": s.dash, "markerfacecolor": face, "markeredgecolor": s.color, "zorder": 3}


def pressure_label(pressure: float) -> str:
    """Text of a memory pressure."""
    return f"{amount(pressure, 'page')} per frame"


def amount(number: float, noun: str) -> str:
    """A number with its noun: "1 CPU", "64 CPUs"."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def draw_lines(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Lines with bands against CPUs, one panel per pressure; each seed as a thin line where there are few.

    With one CPU count there are no lines: points stand side by side, with their quartiles.
    """
    counts = sorted(set(table["num_cpus"]))
    seeds = [c for c in table.columns if c.startswith("seed_")]
    for ax, (_, panel) in zip(axes, table.groupby("pressure", sort=True), strict=True):
        for i, policy in enumerate(scene.policies):
            rows, color = panel[panel["policy"] == policy], scene.styles[policy].color
            if len(counts) == 1:
                dodge = 2.0 ** (0.05 * (i - (len(scene.policies) - 1) / 2))
                rows = rows.assign(num_cpus=rows["num_cpus"] * dodge)
                ax.vlines(rows["num_cpus"], rows["low"], rows["high"], color=color, lw=0.8)
            elif 1 < len(seeds) <= FEW_SEEDS:
                ax.plot(rows["num_cpus"], rows[seeds], color=color, lw=0.4, alpha=0.5)
            elif len(seeds) > FEW_SEEDS:
                ax.fill_between(rows["num_cpus"], rows["low"], rows["high"], color=color, alpha=0.18, lw=0)
            ax.plot(rows["num_cpus"], rows["mid"], **scene.line(policy), clip_on=False)
        style.cpu_axis(ax, counts)


def draw_reductions(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame, policies: Sequence[str]) -> None:
    """What remains of the baseline (1 - reduction) with paired intervals, one panel per pressure; markers set slightly apart."""
    remaining = table.assign(mid=1 - table["mid"] / 100, half=(table["high"] - table["mid"]) / 100)
    _draw_paired(scene, axes, remaining, policies)
    for ax in axes:
        if min(table["num_cpus"]) == 1:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            at = {"transform": ax.get_xaxis_transform(), "rotation": 90, "ha": "center", "va": "center"}
            ax.text(1, 0.45, "nothing to reduce", fontsize=5.5, color="#707070", bbox=box, **at)


def draw_extras(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame, policies: Sequence[str]) -> None:
    """What policies send beyond ``luf_naive`` with paired intervals, one panel per pressure; markers set slightly apart."""
    _draw_paired(scene, axes, table.assign(half=table["high"] - table["mid"]), policies)
    for ax in axes:
        ax.axhline(0, color="#404040", lw=0.7, zorder=1)


def _draw_paired(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame, policies: Sequence[str]) -> None:
    """``mid`` and ``half`` against CPUs, one panel per pressure; markers set slightly apart."""
    counts = sorted(set(table["num_cpus"]))
    for ax, (_, panel) in zip(axes, table.groupby("pressure", sort=True), strict=True):
        for i, policy in enumerate(policies):
            rows = panel[(panel["policy"] == policy) & panel["mid"].notna()]
            dodge = 2.0 ** (0.07 * (i - (len(policies) - 1) / 2))
            half = np.nan_to_num(np.asarray(rows["half"]))
            ax.errorbar(rows["num_cpus"] * dodge, rows["mid"], yerr=half, capsize=1.5, elinewidth=0.7, capthick=0.7, **scene.line(policy))
        style.cpu_axis(ax, counts)
        ax.set_xlim(counts[0] / 1.6, counts[-1] * 1.6)


def draw_shares(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame, parts: Parts, xlabel: str) -> None:
    """Horizontal stacked shares, one bar per policy, with the total (the sum of the table's columns) at its end."""
    for ax, (_, panel) in zip(axes, table.groupby("pressure", sort=True), strict=True):
        values = panel.set_index("policy").loc[list(scene.policies), list(parts)].fillna(0.0)
        drawn = values.clip(lower=0)
        total = drawn.sum(axis=1)
        left = np.zeros(len(values))
        for part, (_, color, hatch) in parts.items():
            share = (100 * drawn[part] / total.where(total > 0)).fillna(0).to_numpy()
            ax.barh(range(len(values)), share, left=left, height=0.72, color=color, hatch=hatch, edgecolor="white", lw=0.3)
            left += share
        for i, value in enumerate(values.sum(axis=1)):
            ax.text(103, i, style.short(value), va="center", ha="left", fontsize=6, color="#202020" if value else "#A0A0A0")
        ax.set_xlabel(xlabel, fontsize=6.5)
        ax.set_xlim(0, 134)
        ax.set_xticks([0, 25, 50, 75, 100])
        ax.set_yticks(range(len(values)), labels=scene.labels)
        ax.set_ylim(len(values) - 0.4, -0.6)
        ax.grid(False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.spines["bottom"].set_bounds(0, 100)


def parts_legend(ax: Axes, parts: Parts) -> None:
    """Legend of the stacked parts in a line above the panel; the title of the panel has to leave room for it."""
    handles = [Patch(facecolor=color, hatch=hatch, edgecolor="white", lw=0.3, label=text) for text, color, hatch in parts.values()]
    legend = ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, ncols=len(handles), handlelength=2.2)
    legend.set_in_layout(False)


def draw_tail(scene: Scene, axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Complementary distribution of interrupts per allocation, log-log; policies whose allocations send none are named above."""
    sending = table.loc[(table["at_least"] > 0) & (table["share"] > 0)]
    right = int(np.max([2, *sending["at_least"]]))
    bottom = float(np.min([0.1, *sending["share"]]))
    for ax, (_, panel) in zip(axes, table.groupby("pressure", sort=True), strict=True):
        for policy in scene.policies:
            rows = panel[(panel["policy"] == policy) & (panel["at_least"] > 0) & (panel["share"] > 0)]
            if len(rows):
                ax.plot(rows["at_least"], rows["share"], drawstyle="steps-pre", **scene.line(policy))
        _log_log(ax, [2**k for k in range(int(np.log2(right)) + 1)], bottom, 1.3)
        ax.set_xlabel("interrupts per allocation, x")
        note_absent(ax, scene, panel.loc[panel["at_least"] == 1], "share", "none", 150 // len(axes))


def draw_ages(scene: Scene, ax: Axes, table: pd.DataFrame) -> None:
    """Rate of things at least so old, log-log; policies without any are named above."""
    shown = table.loc[(table["at_least"] > 0) & (table["per_1000_accesses"] > 0)]
    for policy in scene.policies:
        rows = shown[shown["policy"] == policy]
        if len(rows):
            ax.plot(rows["at_least"], rows["per_1000_accesses"], **scene.line(policy))
    rates = np.asarray(shown["per_1000_accesses"]) if len(shown) else np.array([0.1, 1.0])
    _log_log(ax, [2**k for k in range(0, 15, 2)], float(rates.min()), 1.6 * float(rates.max()))
    note_absent(ax, scene, table.loc[table["at_least"] == 0], "per_1000_accesses", "none", 50)


def draw_pending(scene: Scene, ax: Axes, table: pd.DataFrame) -> None:
    """Pending frames over events, median and quartiles; policies that never have any are named above."""
    for policy in scene.policies:
        rows = table.loc[table["policy"] == policy]
        if np.max(rows["high"]) > 0:
            ax.fill_between(rows["event"] / 1000, rows["low"], rows["high"], color=scene.styles[policy].color, alpha=0.15, lw=0)
            ax.plot(rows["event"] / 1000, rows["mid"], markevery=max(1, len(rows) // 8), **scene.line(policy))
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    if scene.warmup_events:
        ax.axvspan(0, scene.warmup_events / 1000, color="#F0F0F0", lw=0, zorder=0)
        ax.text(
            scene.warmup_events / 2000,
            0.99,
            "warm-up",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=5.5,
            color="#606060",
        )
    note_absent(ax, scene, table, "high", "none", 50)


def note_absent(ax: Axes, scene: Scene, table: pd.DataFrame, column: str, text: str, width: int) -> None:
    """Name, above the panel, the policies that a logarithmic axis cannot show because they have none."""
    some = {str(policy) for policy, value in zip(table["policy"], table[column], strict=True) if value > 0}
    absent = [p for p in scene.policies if p not in some]
    if absent:
        ax.set_title(textwrap.fill(f"{text}: {', '.join(absent)}", width), fontsize=5.5, color="#505050", loc="left")


def _log_log(ax: Axes, ticks: Sequence[int], low: float, high: float) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(ticks, labels=[str(t) if t < 1024 else f"{t // 1024}k" for t in ticks])
    ax.set_xlim(0.8, ticks[-1] * 1.25)
    first, last = int(np.floor(np.log10(low))), int(np.floor(np.log10(high)))
    ax.set_yticks([10.0**k for k in range(first, last + 1)], labels=[style.decade(k) for k in range(first, last + 1)])
    ax.set_ylim(10.0**first, high)
    ax.minorticks_off()
