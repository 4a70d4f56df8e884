"""Which rules of a policy decided something in the states that a search saw: with another word of the rule, some event ends otherwise there."""

from __future__ import annotations

import numpy as np

from lufjax.policy import CHOICES, FlushPolicy
from lufjax.search.successors import Batch, Machine


def deciding_rules(machine: Machine, policy: FlushPolicy, samples: np.ndarray) -> dict[str, list[str]]:
    """Rule -> its other words under which an event in one of the states ends in another state, or in another verdict.

    Rules that are numbers are not tried, nor is ``buddy_merge`` where it is off.

    Args:
        machine: under ``policy``. samples: rows of states, ``int32[n, width]``.
    """
    n = len(machine.alphabet.rows)
    which, entries = np.repeat(np.arange(len(samples)), n), np.tile(np.arange(n), len(samples))
    ours = machine.after(samples, which, entries)
    found: dict[str, list[str]] = {}
    for rule, words in CHOICES.items():
        others = [number for number in range(len(words)) if number != int(getattr(policy, rule))]
        others = [number for number in others if machine.can_have(policy._replace(**{rule: number}))]
        theirs = (machine.with_policy(policy._replace(**{rule: number})).after(samples, which, entries) for number in others)
        found[rule] = [words[number] for number, batch in zip(others, theirs, strict=True) if _differs(ours, batch)]
    return found


def _differs(ours: Batch, other: Batch) -> bool:
    return bool((ours.outcomes != other.outcomes).any() or (ours.keys != other.keys).any())
