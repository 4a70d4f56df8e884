"""Every scenario under every policy, in one batch: which violation classes each shows, as text and as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lufjax.events import Op, Violation
from lufjax.params import MachineParams
from lufjax.policy import FlushPolicy, from_words
from lufjax.presets import policy_words
from lufjax.scenarios.scenario_file import Scenario

SHORT = {"REUSE": "REU", "MAPPING": "MAP", "PERMISSION": "PER", "LOST_STORE": "LOST", "OLD_VALUE": "OLD", "ATOMIC_FLUSH": "ATOM"}
"""What a cell of the table has room for."""


@dataclass(frozen=True)
class Cell:
    """One scenario under one policy: the classes that occurred, and those that its file expects."""

    scenario: str
    policy: str
    classes: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether exactly the expected classes occurred."""
        return self.classes == self.expected


def policies_of(scenario: Scenario, presets: Sequence[str]) -> list[str]:
    """The presets, and the policies with replaced rules that the file lists."""
    return [*presets, *(entry for entry in scenario.expect if "+" in entry and entry.partition("+")[0] in presets)]


def run_matrix(scenarios: Sequence[Scenario], presets: Sequence[str]) -> list[Cell]:
    """Play every scenario under every preset and under every policy that its file lists; scenarios of one shape share a batch.

    Raises:
        ValueError: a scenario expects nothing of a policy.
    """
    found: dict[tuple[int, str], tuple[str, ...]] = {}
    for shape in dict.fromkeys(scenario.shape for scenario in scenarios):
        lanes = [(i, policy) for i, s in enumerate(scenarios) if s.shape == shape for policy in policies_of(s, presets)]
        for lane, classes in zip(lanes, _play(scenarios, lanes), strict=True):
            found[lane] = classes
    return [
        Cell(s.name, policy, found[i, policy], s.expected(policy)) for i, s in enumerate(scenarios) for policy in policies_of(s, presets)
    ]  # fmt: skip


def _play(scenarios: Sequence[Scenario], lanes: Sequence[tuple[int, str]]) -> list[tuple[str, ...]]:
    counted = violations_after(scenarios, lanes, every_event=False)[:, -1].sum(-1)
    return [tuple(kind.name for kind in Violation if row[kind]) for row in counted]


def violations_after(scenarios: Sequence[Scenario], lanes: Sequence[tuple[int, str]], *, every_event: bool) -> np.ndarray:
    """Violations at the end, or after every event, ``int64[lanes, points, classes, 2]``; lanes are scenarios of one shape under policies."""
    from lufjax.engine import simulate

    which = sorted({scenario for scenario, _ in lanes})
    longest = max(scenarios[i].trace.num_events for i in which)
    traces = [_padded(scenarios[i], longest) for i in which]
    records = [scenarios[i].machine_params(from_words(policy_words(policy))) for i, policy in lanes]
    own = len(MachineParams._fields) - 1
    params = MachineParams(
        *(np.array([record[field] for record in records], np.int32) for field in range(own)),
        policy=FlushPolicy(*(np.array(leaf, np.int32) for leaf in zip(*(record.policy for record in records), strict=True))),
    )
    index = np.array([which.index(i) for i, _ in lanes], np.int32)
    points = list(range(1, longest + 1)) if every_event else [longest]
    return simulate(scenarios[which[0]].shape, params, traces, index, sample_points=points).violations


def _padded(scenario: Scenario, length: int) -> Any:
    """The trace with NOPs at its end, which judge nothing."""
    rows = scenario.trace.events
    more = np.full((length - len(rows), rows.shape[1]), (0, Op.NOP, 0, 0, 0), rows.dtype)
    return replace(scenario.trace, events=np.concatenate([rows, more]))


def table(cells: Sequence[Cell], presets: Sequence[str]) -> str:
    """Scenarios down, presets across; then the policies with replaced rules, and what differs from what the files expect."""
    names = list(dict.fromkeys(cell.scenario for cell in cells))
    by = {(cell.scenario, cell.policy): cell for cell in cells}
    rows = [["scenario", *presets]] + [[name, *(_mark(by[name, preset]) for preset in presets)] for name in names]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = [f"{cell.scenario} under {cell.policy}: {_mark(cell)}" for cell in cells if "+" in cell.policy]
    wrong = [
        f"NOT AS EXPECTED: {cell.scenario} under {cell.policy}: expected {_words(cell.expected)}, found {_words(cell.classes)}"
        for cell in cells if not cell.holds
    ]  # fmt: skip
    legend = f"ok: clean; {', '.join(f'{short}: {kind}' for kind, short in SHORT.items())}"
    held = sum(cell.holds for cell in cells)
    return "\n".join([*lines, "", *more, "", legend, *wrong, f"{held} of {len(cells)} verdicts are as the files expect"])


def _words(classes: tuple[str, ...]) -> str:
    return " ".join(classes) or "clean"


def _mark(cell: Cell) -> str:
    return "+".join(SHORT[kind] for kind in cell.classes) or "ok"


def draw(cells: Sequence[Cell], presets: Sequence[str], path: Path) -> None:
    """The verdicts of the presets as a grid: empty is clean, filled names the classes; a frame marks one that is not as expected."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    from lufjax.results.style import figure_style

    names = list(dict.fromkeys(cell.scenario for cell in cells))
    shown = [cell for cell in cells if cell.policy in presets]
    with figure_style():
        fig, ax = plt.subplots(figsize=(1.6 + 0.62 * len(presets), 0.9 + 0.3 * len(names)), layout="constrained")
        for cell in shown:
            x, y = presets.index(cell.policy), names.index(cell.scenario)
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#D55E00" if cell.classes else "#EAF4EE", edgecolor="white", lw=1.5))
            if cell.classes:
                ax.text(x, y, _mark(cell).replace("+", "\n"), ha="center", va="center", fontsize=6, color="white", fontweight="bold")
            if not cell.holds:
                ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="black", lw=1.5))
        ax.set_xlim(-0.5, len(presets) - 0.5)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xticks(range(len(presets)), labels=list(presets), rotation=40, ha="left")
        ax.xaxis.tick_top()
        ax.set_yticks(range(len(names)), labels=names)
        ax.tick_params(length=0)
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path)
        plt.close(fig)


def main(scenarios: Sequence[Scenario], presets: Sequence[str], figure: Path | None, as_object: bool) -> int:
    """Print the matrix, and draw it where asked. 0: every verdict is as its file expects; 1: one is not."""
    cells = run_matrix(scenarios, presets)
    if figure is not None:
        draw(cells, presets, figure)
    holds = all(cell.holds for cell in cells)
    if as_object:
        listed = [
            {"scenario": c.scenario, "policy": c.policy, "classes": list(c.classes), "expected": list(c.expected), "holds": c.holds} for c in cells
        ]
        print(json.dumps({"holds": holds, "cells": listed}))
    else:
        print(table(cells, presets))
        if figure is not None:
            print(figure)
    return int(not holds)


assert set(SHORT) == {kind.name for kind in Violation}
