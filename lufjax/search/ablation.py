"""Every rule of a policy replaced alone: which word of it lets something through that the policy does not, and in how few events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lufjax.policy import RANGES, from_words
from lufjax.scenarios.scenario_file import entry_of
from lufjax.search.alphabet import Alphabet
from lufjax.search.exhaustive import Limits, Result, explore
from lufjax.search.hazards import NAMES, hazard_of
from lufjax.search.rules import TRIED, deciding_rules
from lufjax.search.successors import Machine

TIMED = {("gather_flush", "ticks"), ("mask_on_switch", "keep")}
"""Words that an exhaustive search cannot follow."""
NARROW = {"gen_bits": RANGES["gen_bits"][:1]}
"""Numbers that are replaced by the smallest one only, and looked for on every machine."""
OPEN, NEVER = "decides, no violation", "decides nothing"


@dataclass(frozen=True)
class Ablation:
    """One rule with one other word.

    Attributes:
        outcome: violation class, or ``OPEN``: it decided something but nothing was let through, or ``NEVER``: it decided nothing on any machine.
        hazard: the objection that the finding shows. machine: where. events: the shortest sequence, in words.
        states: distinct states that were covered, over all machines.
    """

    rule: str
    word: str | int
    outcome: str
    hazard: str
    machine: str
    events: tuple[str, ...]
    states: int


def ablate(alphabets: Sequence[Alphabet], words: Mapping[str, Any], states: int) -> tuple[dict[str, Result], list[Ablation]]:
    """Search every machine under the policy, then under the policy with each word of each rule replaced.

    Args:
        alphabets: the machines. words: the policy, by word. states: where each search ends.

    Returns:
        What the policy itself shows on each machine, and the ablations in the order of the rules.

    Raises:
        ValueError: the policy depends on time.
    """
    policy, limits = from_words(dict(words)), Limits(states=states)
    machines, base, deciding = dict[str, Machine](), dict[str, Result](), dict[str, dict[str, list[str | int]]]()
    for alphabet in alphabets:
        name = alphabet.scenario.name
        machines[name] = Machine(alphabet, policy, limits.levels, symmetry=True).with_policy(policy)
        base[name] = explore(alphabet, policy, limits, machine=machines[name])
        deciding[name] = deciding_rules(machines[name], policy, base[name].samples)
        print(f"lufjax: the policy itself on {name}, machine {len(base)} of {len(alphabets)}", file=sys.stderr, flush=True)
    found = []
    for rule, choices in (TRIED | NARROW).items():
        for word in choices:
            if word == words[rule] or (rule, word) in TIMED:
                continue
            other, used, decides = from_words({**words, rule: word}), machines, list(alphabets)
            if next(iter(machines.values())).can_have(other):
                decides = [a for a in alphabets if word in deciding[a.scenario.name][rule]]
            else:
                used = {a.scenario.name: Machine(a, other, limits.levels, symmetry=True) for a in alphabets}
            found.append(_one(rule, word, decides, other, used, base, states))
            print(f"lufjax: {rule}={word}: {found[-1].outcome}", file=sys.stderr, flush=True)
    return base, found


def _one(
    rule: str, word: str | int, alphabets: Sequence[Alphabet], policy: Any, machines: Mapping[str, Machine], base: Mapping[str, Result], states: int
) -> Ablation:  # fmt: skip
    """The shortest new violation over the machines where the rule decides something, to the depth of the policy's own search."""
    covered, best = 0, None
    for alphabet in alphabets:
        name = alphabet.scenario.name
        known = {(f.kind, hazard_of(f.kind, [alphabet.rows[e] for e in f.entries])) for f in base[name].findings}
        limits = Limits(levels=max(1, base[name].coverage.levels), states=states, until_violation=not known)
        result = explore(alphabet, policy, limits, machine=machines[name])
        covered += result.coverage.states
        for finding in result.findings:
            hazard = hazard_of(finding.kind, [alphabet.rows[e] for e in finding.entries])
            if (finding.kind, hazard) not in known and (best is None or len(finding.entries) < len(best[0].entries)):
                best = finding, hazard, alphabet
    if best is None:
        return Ablation(rule, word, OPEN if alphabets else NEVER, "", "", (), covered)
    finding, hazard, alphabet = best
    return Ablation(rule, word, finding.kind, hazard, alphabet.scenario.name, tuple(alphabet.words[e] for e in finding.entries), covered)


def main(alphabets: Sequence[Alphabet], policy: str, words: Mapping[str, Any], states: int, as_object: bool) -> int:
    """Print the table of ablations.

    Raises:
        ValueError: the policy depends on time.
    """
    began = time.monotonic()
    base, ablations = ablate(alphabets, words, states)
    shown = {name: sorted({f.kind for f in result.findings}) for name, result in base.items()}
    if as_object:
        facts = {"policy": entry_of(policy, words), "seconds": round(time.monotonic() - began, 1), "states_limit": states, "base": shown}
        print(json.dumps(facts | {"ablations": [vars(a) for a in ablations]}))
        return 0
    print(_text(entry_of(policy, words), base, words, ablations))
    return 0


def _text(policy: str, base: Mapping[str, Result], words: Mapping[str, Any], ablations: Sequence[Ablation]) -> str:
    lines = [f"policy: {policy}", "", "the policy itself:"]
    for name, result in base.items():
        c, kinds = result.coverage, ", ".join(sorted({f.kind for f in result.findings})) or "no violation"
        lines.append(f"  {name}: {kinds}; {c.states:,} states, " + ("exhausted" if c.exhausted else f"up to {c.levels} events"))
    lines += ["", "one rule replaced:"]
    rows = [("rule", "instead of", "outcome", "events", "on", "objection")]
    rows += [
        (f"{a.rule}={a.word}", str(words[a.rule]), a.outcome, str(len(a.events) or ""), a.machine, f"{a.hazard} {NAMES.get(a.hazard, '')}".strip())
        for a in ablations
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *(f"{a.rule}={a.word}: {'; '.join(a.events)}" for a in ablations if a.events)])
