"""A set of keys that compares whole keys: a hash finds the place, never the answer. Keys lie in a file when one is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

EMPTY = -1
START = 1 << 16
SPARSE = 3
"""Slots for each key at least."""


class KeySet:
    """Byte rows, numbered in the order in which they were first added.

    Memory: 24 to 48 bytes a key, and the keys themselves, which the operating system writes out where ``path`` names a file.

    Args:
        width: bytes of a key. path: file for the keys.
    """

    def __init__(self, width: int, path: Path | None = None) -> None:
        self.width, self.count, self._path = width, 0, path
        self._words = -(-width // 8)
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, 2**63, self._words, np.uint64) * np.uint64(2) + np.uint64(1)
        self._keys = self._store(START)
        self._slots, self._marks = np.full(4 * START, EMPTY, np.int32), np.zeros(4 * START, np.uint32)

    def _store(self, capacity: int) -> np.ndarray:
        if self._path is not None:
            return np.memmap(self._path, np.uint64, "r+" if self._path.exists() else "w+", shape=(capacity, self._words))
        grown = np.zeros((capacity, self._words), np.uint64)
        grown[: self.count] = self._keys[: self.count] if self.count else 0
        return grown

    def keys(self) -> np.ndarray:
        """``uint8[count, width]``."""
        return self._keys[: self.count].view(np.uint8).reshape(self.count, -1)[:, : self.width]

    def restore(self, count: int) -> None:
        """Take the first ``count`` keys of the file as added."""
        self.count = count
        self._keys = self._store(max(START, 1 << max(0, (count - 1).bit_length())))
        self._rehash(max(4 * START, 4 << max(0, (count - 1).bit_length())))

    def prepare(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`add` needs of ``uint8[n, width]``: words and hashes. May run on any thread."""
        padded = np.zeros((len(keys), 8 * self._words), np.uint8)
        padded[:, : self.width] = keys
        words = padded.view(np.uint64)
        return words, self._hash(words)

    def add(self, words: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Add prepared keys; returns the rows that were not there before, of equal ones the first, in the order of their numbers."""
        while self.count + len(words) > len(self._keys):
            self._keys = self._store(2 * len(self._keys))
        if SPARSE * (self.count + len(words)) > len(self._slots):
            self._rehash(2 * len(self._slots))
        return self._place(words, hashes)

    def _hash(self, words: np.ndarray) -> np.ndarray:
        mixed = (words * self._factors).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        return mixed ^ (mixed >> np.uint64(29))

    def _place(self, words: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Linear probing, all rows at once: of the rows that meet the same empty slot the first takes it, the others look again."""
        size = len(self._slots) - 1
        place, mark = (hashes & np.uint64(size)).astype(np.int64), (hashes >> np.uint64(32)).astype(np.uint32)
        pending, added = np.arange(len(words)), [np.zeros(0, np.int64)]
        while len(pending):
            slot = place[pending]
            number = self._slots[slot]
            is_empty = number == EMPTY
            takers, at = pending[is_empty], slot[is_empty]
            self._slots[at[::-1]] = -2 - takers[::-1]
            has_won = self._slots[at] == -2 - takers
            winners, at = takers[has_won], at[has_won]
            numbers = np.arange(self.count, self.count + len(winners))
            self._slots[at], self._marks[at], self._keys[numbers] = numbers, mark[winners], words[winners]
            self.count += len(winners)
            added.append(winners)
            moves = ~is_empty
            moves[moves] = self._marks[slot[moves]] != mark[pending[moves]]
            twins = np.flatnonzero(~is_empty & ~moves)
            moves[twins[(self._keys[number[twins]] != words[pending[twins]]).any(axis=1)]] = True
            looks_again = is_empty.copy()
            looks_again[np.flatnonzero(is_empty)[has_won]] = False
            place[pending[moves]] = (slot[moves] + 1) & size
            pending = pending[moves | looks_again]
        return np.concatenate(added)

    def _rehash(self, size: int) -> None:
        """Another number of slots."""
        self._slots, self._marks = np.full(size, EMPTY, np.int32), np.zeros(size, np.uint32)
        for first in range(0, self.count, START):
            rows = np.arange(first, min(first + START, self.count))
            hashes = self._hash(self._keys[rows])
            self._reinsert(rows, hashes)

    def _reinsert(self, numbers: np.ndarray, hashes: np.ndarray) -> None:
        size = len(self._slots) - 1
        place = (hashes & np.uint64(size)).astype(np.int64)
        mark = (hashes >> np.uint64(32)).astype(np.uint32)
        pending = np.arange(len(numbers))
        while len(pending):
            slot = place[pending]
            empty = self._slots[slot] == EMPTY
            takers, at = pending[empty], slot[empty]
            self._slots[at] = numbers[takers]
            won = self._slots[at] == numbers[takers]
            self._marks[at[won]] = mark[takers[won]]
            lost = np.ones(len(pending), bool)
            lost[np.flatnonzero(empty)[won]] = False
            pending = pending[lost]
            place[pending] = (place[pending] + 1) & size
