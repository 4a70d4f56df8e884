"""A set of pages kept as sorted, disjoint ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np


class PageRanges:
    """Sorted disjoint ranges ``[start, end)`` of page numbers; ranges that touch stay apart."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add a range; what it overlaps is replaced."""
        self.remove(start, end)
        at = bisect_left(self.starts, start)
        self.starts.insert(at, start)
        self.ends.insert(at, end)

    def remove(self, start: int, end: int) -> None:
        """Remove a range, cutting those that stick out of it."""
        first, last = bisect_right(self.ends, start), bisect_left(self.starts, end)
        if first >= last:
            return
        rest = [(self.starts[first], start), (end, self.ends[last - 1])]
        rest = [(low, high) for low, high in rest if low < high]
        self.starts[first:last] = [low for low, _ in rest]
        self.ends[first:last] = [high for _, high in rest]

    def contains(self, pages: np.ndarray) -> np.ndarray:
        """Return ``bool[n]``: which pages are in the set."""
        if not self.starts:
            return np.zeros(pages.size, dtype=bool)
        at = np.searchsorted(np.array(self.starts), pages, side="right") - 1
        return (at >= 0) & (pages < np.array(self.ends)[np.maximum(at, 0)])

    def neighbours(self, start: int, end: int) -> tuple[int, int]:
        """Return the end of the last range before ``start`` and the start of the first one from ``end`` on (far away if none)."""
        before, after = bisect_right(self.ends, start), bisect_left(self.starts, end)
        return (self.ends[before - 1] if before else 0, self.starts[after] if after < len(self.starts) else 1 << 60)
