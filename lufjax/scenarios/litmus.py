"""Litmus files, all in one batch: which step of each shows which class, and whether that is what the file expects."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lufjax.events import MicroOp, Op, Violation
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy, to_words
from lufjax.scenarios.litmus_file import Litmus, load_litmus
from lufjax.scenarios.timeline import WIDTH, EventView, Reading, table, view
from lufjax.snapshot import snapshot
from lufjax.trace import Trace

IDLE_ROW = (0, int(Op.NOP), 0, 0, 0)
POLICY = FlushPolicy()
"""Never asked: no micro-step has a policy."""
SMALLEST = {"num_cpus": 4, "num_processes": 2, "num_vpns": 4, "num_frames": 8, "num_file_pages": 4, "num_anon": 4}
"""Files that need no more share one compiled program."""


@dataclass(frozen=True)
class LitmusResult:
    """What one file did.

    Attributes:
        found: per step of the file, the classes that it showed.
        mismatches: steps that showed other classes than they are marked with, in words.
        events: the timeline.
    """

    litmus: Litmus
    found: tuple[tuple[str, ...], ...]
    mismatches: tuple[str, ...]
    events: tuple[EventView, ...]

    @property
    def holds(self) -> bool:
        """Whether every step showed exactly what the file says."""
        return not self.mismatches

    @property
    def verdict(self) -> str:
        """The classes that occurred, or ``clean``."""
        return " ".join(kind.name for kind in Violation if any(kind.name in classes for classes in self.found)) or "clean"


def shape_for(files: Sequence[Litmus]) -> MachineShape:
    """One machine that every file fits in; its TLB never evicts."""
    most = {name: max(least, 1 << (max(getattr(file, name) for file in files) - 1).bit_length()) for name, least in SMALLEST.items()}
    roomy = TlbGeometry(most["num_vpns"], most["num_processes"])
    sizes = {"num_vmas": 1, "rmap_slots": 1, "gather_slots": 1, "batch_slots": 1, "pcp_slots": 1, "quarantine_slots": 1}
    return MachineShape(**most, **sizes, l1=roomy, l2=roomy)


def start_of(shape: MachineShape, rows: Sequence[Sequence[int]] = ()) -> Trace:
    """Idle CPUs, nothing mapped; the one VMA allows nothing, so a fault has no effect."""
    nowhere = np.full((shape.num_processes, shape.num_vpns), -1, np.int32)
    return Trace(
        events=np.array(rows, np.int32).reshape(-1, 5), vmas=np.zeros(1, np.int32), page_vma=nowhere, page_backing=nowhere,
        loaded=np.full(shape.num_cpus, -1, np.int32), num_file_pages=shape.num_file_pages, num_anon=shape.num_anon,
    )  # fmt: skip


def shifted(litmus: Litmus, shape: MachineShape) -> list[tuple[int, ...]]:
    """Event rows of a file for a machine that may have more file pages: anonymous backings come after those."""
    more = shape.num_file_pages - litmus.num_file_pages
    return [step.row if not more else _shift(step.row, litmus.num_file_pages, more) for step in litmus.steps]


def _shift(row: tuple[int, ...], files: int, more: int) -> tuple[int, ...]:
    cpu, op, vpn, arg, repeat = row
    if op in (MicroOp.PLACE, MicroOp.WRITE_OBJECT, MicroOp.SNAP) and arg >= files:
        arg += more
    if op in (MicroOp.MAP, MicroOp.RETURN, MicroOp.PERMIT) and repeat >> 2 >= files:
        repeat += more * 4
    return cpu, op, vpn, arg, repeat


def run_litmus(files: Sequence[Litmus], *, backend: str = "auto") -> list[LitmusResult]:
    """Play files side by side, one machine each, one step of every file at a time."""
    from lufjax.engine import Machines, counters_of, violations_of

    shape = shape_for(files)
    params = MachineParams(shape.num_frames, 0, 0, 0, 1, 0, 1, 0, 0, shape.num_frames, POLICY)
    machines = Machines(shape, [params] * len(files), [start_of(shape)] * len(files), backend=backend)
    rows = [shifted(file, shape) for file in files]
    words = to_words(POLICY)

    def read() -> list[Reading]:
        return [Reading(snapshot(shape, host), counters_of(host), violations_of(host)) for host in machines.host()]

    before, views = read(), [[] for _ in files]
    for number in range(max(map(len, rows))):
        machines.step(np.array([own[number] if number < len(own) else IDLE_ROW for own in rows]))
        after = read()
        for lane, file in enumerate(files):
            if number < len(rows[lane]):
                step = file.steps[number]
                views[lane].append(view(number + 1, step.line, step.words, rows[lane][number], before[lane], after[lane], file.num_processes, words))
        before = after
    return [_judge(file, tuple(events)) for file, events in zip(files, views, strict=True)]


def _judge(file: Litmus, events: tuple[EventView, ...]) -> LitmusResult:
    found = tuple(event.violations for event in events)
    wrong = [
        f"line {step.line} ({step.words}): expected {' '.join(step.classes) or 'no class'}, found {' '.join(classes) or 'none'}"
        for step, classes in zip(file.steps, found, strict=True) if step.classes != classes
    ]  # fmt: skip
    return LitmusResult(file, found, tuple(wrong), events)


def as_json(result: LitmusResult) -> dict[str, Any]:
    """A result for programs."""
    flagged = [
        {"line": step.line, "step": step.words, "classes": list(classes)}
        for step, classes in zip(result.litmus.steps, result.found, strict=True) if classes
    ]  # fmt: skip
    return {
        "file": str(result.litmus.path), "title": result.litmus.title, "expected": list(result.litmus.expect), "verdict": result.verdict,
        "holds": result.holds, "flagged": flagged, "mismatches": list(result.mismatches), "events": [asdict(event) for event in result.events],
    }  # fmt: skip


def timeline(result: LitmusResult) -> str:
    """A result for people; the last word is the verdict."""
    head = textwrap.wrap(f"{result.litmus.name}: {result.litmus.title}", WIDTH)
    wrong = [f"does not hold: {line}" for line in result.mismatches]
    end = f"expected {' '.join(result.litmus.expect) or 'clean'} ({'holds' if result.holds else 'does not hold'}); verdict: {result.verdict}"
    return "\n".join([*head, "", *table(result.events, result.litmus.num_processes), "", *wrong, end])


def main(paths: Sequence[Path], as_object: bool) -> int:
    """Print every file. 0: all expectations hold; 1: one does not.

    Raises:
        ValueError: a file is malformed; one line.
    """
    results = run_litmus([load_litmus(path) for path in paths])
    holds = all(result.holds for result in results)
    if as_object:
        print(json.dumps({"holds": holds, "files": [as_json(result) for result in results]}))
        return int(not holds)
    for result in results:
        if len(results) == 1 or not result.holds or result.verdict != "clean":
            print(timeline(result), end="\n\n\n" if len(results) > 1 else "\n")
    if len(results) > 1:
        width = max(len(result.litmus.name) for result in results)
        for result in results:
            print(f"{result.litmus.name:{width}}  {'holds' if result.holds else 'DOES NOT HOLD':13}  {result.verdict}")
    return int(not holds)
