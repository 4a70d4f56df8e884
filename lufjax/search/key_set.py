"""A set of keys that compares whole keys: a hash finds the place, never the answer. Keys lie in a file when one is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lufjax.search.expander import words_of
from lufjax.search.hashing import Seen, compile_add

START = 1 << 16
SPARSE = 3
"""Slots for each key at least."""


class KeySet:
    """Keys, numbered in the order in which they were first added.

    Memory: 24 to 48 bytes a key, and the keys themselves, which the operating system writes out where ``path`` names a file.

    Attributes:
        seen: the set as it is, for a thread that looks keys up while this one adds more.

    Args:
        width: bytes of a key, which is handed over as ``uint64[words]``, the last filled up with zeros. path: file for the keys.
    """

    def __init__(self, width: int, path: Path | None = None) -> None:
        self.words, self.count, self._path = words_of(width), 0, path
        self._factors = np.random.default_rng(0).integers(1, 2**63, self.words, np.uint64) * np.uint64(2) + np.uint64(1)
        self._keys = self._store(START)
        self._slots = np.zeros(4 * START, np.uint64)
        self._compiled = compile_add()
        self._see()

    def _store(self, capacity: int) -> np.ndarray:
        if self._path is not None:
            return np.memmap(self._path, np.uint64, "r+" if self._path.exists() else "w+", shape=(capacity, self.words))
        grown = np.zeros((capacity, self.words), np.uint64)
        grown[: self.count] = self._keys[: self.count] if self.count else 0
        return grown

    def keys(self) -> np.ndarray:
        """``uint64[count, words]``."""
        return self._keys[: self.count]

    def _see(self) -> None:
        self.seen = Seen(self._slots, self._keys, self.count, self._factors)

    def restore(self, count: int) -> None:
        """Take the first ``count`` keys of the file as added."""
        self.count = count
        self._keys = self._store(max(START, 1 << max(0, (count - 1).bit_length())))
        self._rehash(max(4 * START, 4 << max(0, (count - 1).bit_length())))
        self._see()

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Add ``uint64[n, words]``; returns the rows that were not there before, of equal ones the first, in the order of their numbers."""
        while self.count + len(keys) > len(self._keys):
            self._keys = self._store(2 * len(self._keys))
        while SPARSE * (self.count + len(keys)) > len(self._slots):
            self._rehash(2 * len(self._slots))
        new = self._add(keys, self.count)
        self.count += len(new)
        self._see()
        return new

    def converted(self, count: int, width: int, convert: Callable[[np.ndarray], np.ndarray], path: Path | None) -> KeySet:
        """The first ``count`` keys in another form, under the same numbers; ``convert`` keeps different keys different."""
        other = KeySet(width, path)
        for first in range(0, count, START):
            other.add(convert(self._keys[first : min(first + START, count)]))
        if other.count != count:
            raise RuntimeError("keys that differed are equal in another form")
        return other

    def _add(self, keys: np.ndarray, count: int) -> np.ndarray:
        n = len(keys)
        hashes, new = np.empty(n, np.uint64), np.empty(n, np.int64)
        slots, own, rows, factors, *out = (array.ctypes.data for array in (self._slots, self._keys, keys, self._factors, hashes, new))
        return new[: self._compiled[1](slots, len(self._slots) - 1, own, count, self.words, n, rows, factors, *out)]

    def _rehash(self, size: int) -> None:
        """Another number of slots."""
        self._slots = np.zeros(size, np.uint64)
        for first in range(0, self.count, START):
            self._add(self._keys[first : min(first + START, self.count)], first)
