"""Make a violating sequence shorter and plainer: drop entries, then play entries on other CPUs and pages; all candidates of a round in one batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lufjax.events import Violation
from lufjax.search.successors import Machine

NOTHING = -1
"""An entry that is left out."""


def shrink(machine: Machine, kind: str, entries: tuple[int, ...]) -> tuple[int, ...]:
    """A subsequence that still ends in a violation of the class, from which no entry can be left out, with as few different entries as found.

    Args:
        entries: ends in a violation of class ``kind``.
    """
    block = max(1, len(entries) // 2)
    while True:
        shorter = _first_that_shows(machine, kind, _dropped(entries, block))
        if shorter is not None:
            entries = shorter
            block = max(1, min(block, len(entries) // 2))
        elif block > 1:
            block //= 2
        else:
            break
    while True:
        plainer = _first_that_shows(machine, kind, _merged(machine, entries))
        if plainer is None:
            return entries
        entries = plainer


def _dropped(entries: tuple[int, ...], block: int) -> Iterator[tuple[int, ...]]:
    """Candidates without a run of entries; the last entry stays."""
    for first in range(0, len(entries) - 1, block):
        yield entries[:first] + entries[min(first + block, len(entries) - 1) :]


def _merged(machine: Machine, entries: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Candidates in which everything that one CPU or page did is done by a lower one, where the alphabet has such entries."""
    number = {rows.tobytes(): entry for entry, rows in enumerate(machine.alphabet.rows)}
    for column in (0, 2):
        used = sorted({int(row[column]) for entry in entries for row in machine.alphabet.rows[entry]})
        for high in used:
            for low in range(high):
                moved = [_moved(machine.alphabet.rows[entry], column, high, low) for entry in entries]
                if all(rows.tobytes() in number for rows in moved):
                    yield tuple(number[rows.tobytes()] for rows in moved)


def _moved(rows: np.ndarray, column: int, high: int, low: int) -> np.ndarray:
    out = rows.copy()
    out[rows[:, column] == high, column] = low
    return out


def _first_that_shows(machine: Machine, kind: str, candidates: Iterator[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The first candidate that shows the class, up to the entry that shows it."""
    listed = list(candidates)
    if not listed:
        return None
    longest = max(map(len, listed))
    padded = np.array([entries + (NOTHING,) * (longest - len(entries)) for entries in listed], np.int64)
    _, first = machine.play(padded)
    shows = np.flatnonzero(first[:, Violation[kind]] >= 0)
    return None if not len(shows) else listed[shows[0]][: first[shows[0], Violation[kind]] + 1]
