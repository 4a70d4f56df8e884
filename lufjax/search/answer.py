"""What ``lufjax explore`` answers: the shortest sequence of each kind of violation as timeline, scenario and litmus file, and what was covered."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lufjax.backends.runners import device_facts, resolve_backend, use_all_cores
from lufjax.events import Op
from lufjax.policy import from_words
from lufjax.provenance import code_digest, environment
from lufjax.scenarios import scenario as scenarios
from lufjax.scenarios.scenario_file import entry_of, load_scenario
from lufjax.search.alphabet import Alphabet
from lufjax.search.as_litmus import write_litmus
from lufjax.search.exhaustive import Coverage, Limits, Result, explore
from lufjax.search.findings import Finding
from lufjax.search.hazards import NAMES, hazard_of, is_bounded
from lufjax.search.options import Options
from lufjax.search.rules import deciding_rules
from lufjax.search.sampling import Sampled, sample
from lufjax.search.storage import Storage
from lufjax.sweeps.run_id import locked

EVERY_SECONDS = 5.0
"""Between lines of progress."""


def main(alphabet: Alphabet, policy: str, words: Mapping[str, Any], options: Options, as_object: bool) -> int:
    """Search, print the answer, and write it. 0: no violation; 1: at least one.

    Raises:
        ValueError: the policy or the machine does not allow the search; one line.
    """
    use_all_cores()
    entry, options = entry_of(policy, words), replace(options, backend=resolve_backend(options.backend))
    directory = options.outputs / f"{alphabet.scenario.name}-{entry.replace(':', '-')}-{_digest(alphabet, entry, options)}"
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        try:
            answer: dict[str, Any] = (_exhaustive if options.mode == "exhaustive" else _random)(alphabet, words, options, directory)
        except ValueError:
            if is_new:
                shutil.rmtree(directory)
            raise
        answer = {"machine": alphabet.scenario.name, "title": alphabet.scenario.title, "policy": entry, "mode": options.mode} | answer
        answer |= {"backend": options.backend, "device": device_facts(options.backend)["kind"]}
        numbered = enumerate(answer["violations"], start=1)
        answer["violations"] = _with_litmus([_written(directory, number, finding, alphabet, entry) for number, finding in numbered], entry)
        answer |= {"environment": environment()}
        (directory / "answer.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer) if as_object else _text(answer, alphabet, entry, words))
    return int(bool(answer["violations"]))


def _digest(alphabet: Alphabet, entry: str, options: Options) -> str:
    """What decides which states are found, and in which order: not where the search ends."""
    facts = [alphabet.scenario.path.read_text(), entry, options.mode, options.symmetry, code_digest()]
    facts += [options.seed, options.events, options.prefix] if options.mode == "random" else []
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:10]


def _exhaustive(alphabet: Alphabet, words: Mapping[str, Any], options: Options, directory: Path) -> dict[str, Any]:
    policy, line, backend = from_words(dict(words)), _Line(), options.backend
    limits = Limits(options.levels, options.states, options.seconds, options.until == "violation")

    def report(c: Coverage, share: float, found: int) -> None:
        speed = c.transitions / max(c.seconds, 1e-9)
        line.show(f"level {c.levels + 1}: {share:4.0%}, {c.states:,} states before it, {speed:,.0f} transitions/s, {found} found")

    storage = Storage(directory)
    result: Result = explore(alphabet, policy, limits, symmetry=options.symmetry, storage=storage, report=report, backend=backend)
    line.end()
    c, rules = result.coverage, deciding_rules(result.machine.native, policy, result.samples)
    if c.exhausted:
        storage.clear()
    return {
        "violations": result.findings, "exhausted": c.exhausted, "stopped": c.stopped, "states": c.states, "transitions": c.transitions,
        "tried": c.tried, "violating_transitions": c.violating, "levels": c.levels, "states_per_level": c.per_level, "seconds": round(c.seconds, 3),
        "transitions_per_second": round(c.transitions / max(c.seconds, 1e-9)), "states_per_second": round(c.states / max(c.seconds, 1e-9)),
        "symmetry": options.symmetry, "renamings": len(result.machine.names),
        "enabled": _by_entry(alphabet, c.used), "op_pairs": _by_pair(alphabet, c.pairs), "deciding_rules": rules,
    }  # fmt: skip


def _random(alphabet: Alphabet, words: Mapping[str, Any], options: Options, directory: Path) -> dict[str, Any]:
    line, began = _Line(), time.monotonic()

    def report(s: Sampled, share: float) -> None:
        left = (time.monotonic() - began) * (1 - share) / max(share, 1e-9)
        speed, violate = s.events / max(s.seconds, 1e-9), f"{s.violating:,} of {s.sequences:,} sequences violate"
        line.show(f"{min(share, 1):4.0%}, {s.events:,} events, {speed:,.0f}/s, {violate}, about {left:.0f} s left")

    s = sample(
        alphabet, from_words(dict(words)), events=options.events, seconds=options.seconds, seed=options.seed, prefix=options.prefix,
        backend=options.backend, report=report,
    )  # fmt: skip
    line.end()
    return {
        "violations": s.findings, "exhausted": False, "events": s.events, "sequences": s.sequences, "violating_sequences": s.violating,
        "seconds": round(s.seconds, 3), "events_per_second": round(s.events / max(s.seconds, 1e-9)), "seed": options.seed,
        "drawn": _by_entry(alphabet, s.used),
    }  # fmt: skip


class _Line:
    """Progress on stderr: one line that is written over on a terminal, one every few seconds elsewhere."""

    def __init__(self) -> None:
        self._shown, self._over, self._width = time.monotonic(), sys.stderr.isatty(), 0

    def show(self, text: str) -> None:
        if time.monotonic() - self._shown < (0.2 if self._over else EVERY_SECONDS):
            return
        self._shown = time.monotonic()
        padded, self._width = f"lufjax: {text}".ljust(self._width), len(text) + 8
        print(padded, end="\r" if self._over else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._over and self._width:
            print(" " * self._width, end="\r", file=sys.stderr, flush=True)


def _by_entry(alphabet: Alphabet, counts: np.ndarray) -> dict[str, int]:
    return dict(zip(alphabet.words, counts.tolist(), strict=True))


def _by_pair(alphabet: Alphabet, pairs: np.ndarray) -> dict[str, int]:
    """Ops of one event and of the next, summed over entries."""
    ops = [Op(int(rows[0, 1])).name for rows in alphabet.rows]
    found: Counter[str] = Counter()
    for a, b in zip(*np.nonzero(pairs), strict=True):
        found[f"{ops[a]} {ops[b]}"] += int(pairs[a, b])
    return dict(sorted(found.items()))


def scenario_text(alphabet: Alphabet, finding: Finding, policy: str) -> str:
    """A scenario file of a sequence that was found."""
    given = yaml.safe_load(alphabet.scenario.path.read_text())
    content = {
        "title": f"{finding.kind} under {policy}, the shortest order of these events on {alphabet.scenario.name}",
        "source": f"lufjax explore policy={policy} machine={alphabet.scenario.name}",
        **{field: given[field] for field in ("machine", "maps") if field in given},
        "events": [given["events"][entry] for entry in finding.entries],
        "expect": {policy: [finding.kind]},
    }
    return yaml.safe_dump(content, sort_keys=False, width=140, default_flow_style=None)


def _written(directory: Path, number: int, finding: Finding, alphabet: Alphabet, policy: str) -> dict[str, Any]:
    """Write a finding and play it: a sequence is only shown if it shows its class there too."""
    path = directory / f"{number}_{finding.kind}.yaml"
    path.write_text(scenario_text(alphabet, finding, policy))
    result = scenarios.run_scenario(path, policy)
    if finding.kind not in result.violations:
        raise RuntimeError(f"{path}: played alone, this order of events does not show {finding.kind}")
    rows = [alphabet.rows[entry] for entry in finding.entries]
    known = {"hazard": hazard_of(finding.kind, rows), "bounded_by_batch": is_bounded(rows)}
    return {"class": finding.kind, **known, "length": len(finding.entries), "events": [alphabet.words[e] for e in finding.entries], "file": str(path)}


def _with_litmus(violations: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Write findings as litmus files too: the path, or why there is none."""
    paths = [Path(violation["file"]) for violation in violations]
    return [
        violation | {"litmus": str(path.with_suffix(".litmus")) if reason is None else None, "litmus_reason": reason}
        for violation, path, reason in zip(violations, paths, write_litmus(paths, policy), strict=True)
    ]


def _text(answer: dict[str, Any], alphabet: Alphabet, policy: str, words: Mapping[str, Any]) -> str:
    sizes = ", ".join(
        f"{value} {name.removeprefix('num_').replace('_', ' ')}" for name, value in alphabet.scenario.sizes.items() if name != "num_anon"
    )
    lines = [f"{answer['machine']}: {answer['title']}", f"policy: {policy}; {sizes}; {len(alphabet.rows)} events", ""]
    for number, finding in enumerate(answer["violations"], start=1):
        result = scenarios.play(load_scenario(finding["file"]), policy, words)
        known = f": {finding['hazard']}, {NAMES[finding['hazard']]}" if finding["hazard"] else ""
        window = "; before the batch was flushed" if finding["bounded_by_batch"] else ""
        lines += [f"{number}. {finding['class']} after {finding['length']} events{known}{window}", "", *scenarios.events_table(result), ""]
        litmus = f"lufjax litmus {finding['litmus']}" if finding["litmus"] else f"not as litmus: {finding['litmus_reason']}"
        lines += [f"   lufjax scenario {finding['file']} policy={policy}", f"   {litmus}", ""]
    lines += [scenarios.LEGEND, ""] if answer["violations"] else []
    return "\n".join(lines + (_covered(answer, alphabet) if answer["mode"] == "exhaustive" else _sampled(answer)))


def _covered(a: dict[str, Any], alphabet: Alphabet) -> list[str]:
    never = [words for words, count in a["enabled"].items() if not count]
    decided = [rule for rule, words in a["deciding_rules"].items() if words]
    idle = [rule for rule, words in a["deciding_rules"].items() if not words]
    length = "of any length" if a["exhausted"] else f"of up to {a['levels']} events"
    names = f"frames{' and ' + str(a['renamings']) + ' renamings of CPUs and pages' if a['renamings'] > 1 else ''}" if a["symmetry"] else "none"
    return [
        f"covered: {a['states']:,} states, {a['transitions']:,} transitions in {a['seconds']:.1f} s ({a['transitions_per_second']:,}/s); "
        f"every order {length}"
        + ("; every reachable state" if a["exhausted"] else f"; stopped by {a['stopped']}, not exhausted"),
        f"names that do not matter: {names}",
        f"events that were never enabled: {', '.join(never) or 'none'}",
        f"pairs of ops, one after the other: {len(a['op_pairs'])} of {len({Op(int(rows[0, 1])) for rows in alphabet.rows}) ** 2}",
        f"rules that decided something: {', '.join(decided) or 'none'}",
        f"rules that decided nothing here, so that nothing was learnt about them: {', '.join(idle) or 'none'}",
        f"answer: {_verdict(a)}" + ("" if a["violations"] else f" in any order {length} of these events, on this machine"),
    ]  # fmt: skip


def _sampled(a: dict[str, Any]) -> list[str]:
    return [
        f"covered: {a['events']:,} random events in {a['sequences']:,} sequences from seed {a['seed']}, "
        f"{a['seconds']:.1f} s ({a['events_per_second']:,}/s); "
        f"{a['violating_sequences']:,} sequences violate",
        f"answer: {_verdict(a)}" + ("" if a["violations"] else " in these sequences"),
    ]  # fmt: skip


def _verdict(a: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(finding["class"] for finding in a["violations"])) or "no violation"
