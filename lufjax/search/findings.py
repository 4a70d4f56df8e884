"""What a search found: of each violation class the shortest sequence, and one for every smaller or different set of events that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from lufjax.search.alphabet import Alphabet
from lufjax.search.storage import Storage
from lufjax.search.symmetry import Renaming, renamed_rows


@dataclass(frozen=True)
class Finding:
    """A violation class and a shortest sequence of entries (from 0) that ends in it."""

    kind: str
    entries: tuple[int, ...]


def _kinds_of(alphabet: Alphabet) -> np.ndarray:
    """``int64[entries]``: entries that differ in their CPU only have the same number.

    Raises:
        ValueError: more than 63 of them.
    """
    words = [text.partition(": ")[2] for text in alphabet.words]
    names = list(dict.fromkeys(words))
    if len(names) > 63:
        raise ValueError(f"{alphabet.scenario.path}: events: {len(names)} different ones; allowed are up to 63")
    return np.array([names.index(word) for word in words], np.int64)


class Findings:
    """Collects findings. Two of a class are told apart by the set of events in them, whatever the CPUs; supersets of a set are dropped.

    Args:
        renamings: names that do not matter: sets that are equal after one of these are the same.

    Attributes:
        found: (class, set as bits) -> (state, entry) in the order found.
    """

    def __init__(self, alphabet: Alphabet, renamings: Sequence[Renaming]) -> None:
        kinds = _kinds_of(alphabet)
        self._bit = np.int64(1) << kinds
        number = {rows.tobytes(): kind for rows, kind in zip(alphabet.rows, kinds.tolist(), strict=True)}
        self._images = [
            dict(zip(kinds.tolist(), (number[renamed_rows(rows, r).tobytes()] for rows in alphabet.rows), strict=True)) for r in renamings
        ]
        self._sets = np.zeros(1, np.int64)
        self._more: list[np.ndarray] = []
        self.found: dict[tuple[str, int], tuple[int, int]] = {}

    def copy(self) -> Findings:
        """What was found so far, apart from what will be."""
        other = copy(self)
        other.found, other._more = dict(self.found), list(self._more)
        return other

    def follow(self, states: np.ndarray, entries: np.ndarray) -> None:
        """New states, numbered in this order, and how each was reached."""
        events = self._set_of(states) | self._bit[entries]
        self._more.append(events)

    def _set_of(self, states: np.ndarray) -> np.ndarray:
        if np.max(states, initial=-1) >= len(self._sets):
            self._sets, self._more = np.concatenate([self._sets, *self._more]), []
        return self._sets[states]

    def consider(self, kind: str, states: np.ndarray, entries: np.ndarray, shows: np.ndarray) -> None:
        """Transitions by ``entries[i]`` from ``states[i]``; those with ``shows[i]`` show a violation of this class."""
        states, entries = states[shows], entries[shows]
        events = self._set_of(states) | self._bit[entries]
        for index in np.sort(np.unique(events, return_index=True)[1]):
            own = int(events[index])
            if all(kind != other or known & ~image for other, known in self.found for image in self._images_of(own)):
                self.found[kind, own] = (int(states[index]), int(entries[index]))

    def _images_of(self, events: int) -> list[int]:
        kinds = [kind for kind in self._images[0] if events >> kind & 1]
        return [sum({1 << image[kind] for kind in kinds}) for image in self._images]

    def shortest(self, storage: Storage) -> list[Finding]:
        """The findings, shortest first."""
        every = [Finding(kind, (*storage.path(state), entry)) for (kind, _), (state, entry) in self.found.items()]
        return sorted(every, key=lambda finding: len(finding.entries))

    def as_facts(self) -> list[list[Any]]:
        """For a checkpoint."""
        return [[kind, events, *where] for (kind, events), where in self.found.items()]

    def restore(self, facts: list[list[Any]], states: np.ndarray, entries: np.ndarray, per_level: list[int]) -> None:
        """Inverse of :meth:`as_facts`, with how every state but the first was reached, and how many each level has."""
        self.found = {(kind, events): (state, entry) for kind, events, state, entry in facts}
        sets, first = np.zeros(len(states) + 1, np.int64), 0
        for size in per_level:
            own = slice(first, first + size)
            sets[1:][own] = sets[states[own]] | self._bit[entries[own]]
            first += size
        self._sets, self._more = sets, []
