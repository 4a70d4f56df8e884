"""Playing a scenario file: one machine, a short list of events, and whether it shows what the file expects of a policy."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lufjax.events import Violation
from lufjax.faults import EngineFault
from lufjax.params import MachineParams, MachineShape
from lufjax.policy import from_words
from lufjax.presets import policy_words
from lufjax.scenarios.scenario_file import DEFAULT, Scenario, entry_of, load_scenario
from lufjax.scenarios.timeline import WIDTH, EventView, Reading, table, view
from lufjax.trace import Trace

CLEAN = "clean"
PAYERS = ("reclaim", "mapping", "fault", "alloc")
LEGEND = """\
page table: the page of the event and pages that it changed: vpn -> frame, permission.  IPIs: flushes run on other CPUs.
stale TLB entries: cpu: vpn->frame; (stores): stale for stores only.  debt: f0 owes 0-1: CPUs 0-1 have to flush before
frame 0 is handed out; U, D, G: CPUs to flush now, deferred, committed; flag, marker, pending: seen by mapping calls."""

Build = Callable[[MachineShape, MachineParams, Trace], Any]


@dataclass(frozen=True)
class ScenarioResult:
    """What one policy did in one scenario.

    Attributes:
        policy: preset, with the rules replaced as ``preset+rule:value``.
        violations: class -> number of accesses, only those that occurred.
        expected: classes that the file expects.
        holds: whether exactly the expected classes occurred.
        ipis: flush functions run for other CPUs, by who paid.
        events: the timeline.
    """

    scenario: Scenario
    policy: str
    violations: dict[str, int]
    expected: tuple[str, ...]
    holds: bool
    ipis: dict[str, int]
    events: tuple[EventView, ...]

    @property
    def verdict(self) -> str:
        """The classes that occurred, or ``clean``."""
        return verdict_of(tuple(self.violations))


def verdict_of(classes: tuple[str, ...]) -> str:
    """Classes as people read them."""
    return ", ".join(classes) or CLEAN


def run_scenario(path: str | Path, policy: str, overrides: Mapping[str, Any] | None = None) -> ScenarioResult:
    """Play a scenario file under a policy preset (``luf_v10``, ``luf_v10+absorb:off``), single rules replaced by ``overrides``.

    Raises:
        ValueError: the file or the policy is wrong; one line.
    """
    return play(load_scenario(path), policy, policy_words(policy, overrides))


def play(scenario: Scenario, policy: str, words: Mapping[str, Any], build: Build | None = None) -> ScenarioResult:
    """Play a scenario that was read under a full record of rules.

    Args:
        scenario: the file.
        policy: preset that ``words`` come from; decides what is expected.
        words: every rule by word.
        build: makes the machine; the engine's by default.

    Raises:
        ValueError: the machine is too small for an event; names the entry of the file.
    """
    entry = entry_of(policy, words)
    expected = scenario.expected(entry)
    played = list(steps(scenario, words, build))
    last = played[-1][2]
    counted = {kind.name: last.violations["loads"][kind] + last.violations["stores"][kind] for kind in Violation}
    violations = {name: count for name, count in counted.items() if count}
    return ScenarioResult(
        scenario=scenario, policy=entry, violations=violations, expected=expected, holds=tuple(violations) == expected,
        ipis={payer: last.counters[f"ipi_{payer}"] for payer in PAYERS}, events=tuple(event for event, _, _ in played),
    )  # fmt: skip


def steps(scenario: Scenario, words: Mapping[str, Any], build: Build | None = None) -> Iterator[tuple[EventView, Reading, Reading]]:
    """Each event in order, with the machine before and after it.

    Raises:
        ValueError: the machine is too small for an event; names the entry of the file.
    """
    if build is None:
        from lufjax.engine import Machine

        build = Machine
    machine = build(scenario.shape, scenario.machine_params(from_words(dict(words))), scenario.trace)
    before = _read(machine)
    rows = zip(scenario.trace.events.tolist(), scenario.entries, scenario.words, strict=True)
    for number, (row, line, event) in enumerate(rows, start=1):
        try:
            machine.step(row)
        except EngineFault as fault:
            raise ValueError(f"{scenario.path}: events entry {line} ({event}): {fault}") from fault
        after = _read(machine)
        yield view(number, line, event, row, before, after, scenario.sizes["num_processes"], words), before, after
        before = after


def _read(machine: Any) -> Reading:
    return Reading(machine.snapshot(), machine.counters(), machine.violations())


def as_json(result: ScenarioResult) -> dict[str, Any]:
    """A result for programs."""
    return {
        "scenario": result.scenario.name,
        "title": result.scenario.title,
        "policy": result.policy,
        "violations": result.violations,
        "expected": list(result.expected),
        "holds": result.holds,
        "ipis": result.ipis,
        "events": [asdict(event) for event in result.events],
    }


def timeline(result: ScenarioResult) -> str:
    """A result for people; the last word is the verdict."""
    scenario = result.scenario
    head = [
        *textwrap.wrap(f"{scenario.name}: {scenario.title}", WIDTH),
        *textwrap.wrap(f"source: {scenario.source}", WIDTH),
        f"policy: {result.policy}",
        "",
    ]
    holds = "holds" if result.holds else "does not hold"
    end = f"expected {verdict_of(result.expected)} ({holds}); verdict: {result.verdict}"
    return "\n".join([*head, *events_table(result), "", LEGEND, "", end])


def events_table(result: ScenarioResult) -> list[str]:
    """The timeline of a result, line by line."""
    return table(result.events, result.scenario.sizes["num_processes"])


def summary(results: list[ScenarioResult]) -> str:
    """One line per policy: verdict, expectation, and who paid for the interrupts."""
    rows = [("policy", "verdict", "expected", "holds", *(f"IPIs {payer}" for payer in PAYERS))]
    for r in results:
        ipis = (str(r.ipis[payer]) for payer in PAYERS)
        rows.append((r.policy, r.verdict, verdict_of(r.expected), "yes" if r.holds else "NO", *ipis))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main(path: Path, words: Mapping[str, Any] | None, name: str | None, as_object: bool) -> int:
    """Print a scenario under one policy, or under those that its file lists. 0: what the file expects holds; 1: it does not.

    Raises:
        ValueError: the file is wrong; one line.
    """
    scenario = load_scenario(path)
    if name is not None and words is not None:
        result = play(scenario, name, words)
        print(json.dumps(as_json(result)) if as_object else timeline(result))
        return int(not result.holds)
    listed = [entry for entry in scenario.expect if entry != DEFAULT]
    if not listed:
        raise ValueError(f"{path}: expect: lists no policy; name one, as in policy=linux")
    results = []
    for entry in listed:
        results.append(play(scenario, entry, policy_words(entry)))
        if not as_object:
            print(timeline(results[-1]), end="\n\n\n")
            sys.stdout.flush()
    holds = all(result.holds for result in results)
    if as_object:
        print(json.dumps({"scenario": scenario.name, "title": scenario.title, "holds": holds, "policies": [as_json(r) for r in results]}))
    else:
        print(summary(results))
    return int(not holds)
