"""Which rules of a policy decided something in the states that a search saw: with another word of the rule, some event ends otherwise there."""

from __future__ import annotations

import numpy as np

from lufjax.policy import CHOICES, RANGES, FlushPolicy
from lufjax.search.expander import Batch
from lufjax.search.successors import Machine

TRIED: dict[str, dict[str | int, int]] = {rule: {word: number for number, word in enumerate(words)} for rule, words in CHOICES.items()}
"""Rule -> word -> number: what a rule is replaced by; a number by the ends of its range. The numbers that are left out are times, which no state
of a search keeps, and ``gen_bits``, with which states have other keys."""
TRIED["flush_ceiling"] = {number: number for number in RANGES["flush_ceiling"]}


def deciding_rules(machine: Machine, policy: FlushPolicy, samples: np.ndarray) -> dict[str, list[str | int]]:
    """Rule -> its other words under which an event in one of the states ends in another state, or in another verdict.

    Of a number the ends of its range are tried; ``gen_bits`` and times are not, nor is ``buddy_merge`` where it is off.

    Args:
        machine: under ``policy``. samples: rows of states, ``int32[n, width]``.
    """
    n = len(machine.alphabet.rows)
    which, entries = np.repeat(np.arange(len(samples)), n), np.tile(np.arange(n), len(samples))
    ours = machine.after(samples, which, entries)
    found: dict[str, list[str | int]] = {rule: [] for rule in TRIED}
    for rule, words in TRIED.items():
        for word, number in words.items():
            other = policy._replace(**{rule: number})
            if other == policy or not machine.can_have(other):
                continue
            if _differs(ours, machine.with_policy(other).after(samples, which, entries)):
                found[rule].append(word)
    return found


def _differs(ours: Batch, other: Batch) -> bool:
    return bool((ours.outcomes != other.outcomes).any() or (ours.keys != other.keys).any())
