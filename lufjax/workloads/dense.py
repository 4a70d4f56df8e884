"""Sparse 64-bit addresses to dense vpns.

*Regions* are ranges of addresses that overlapping mappings covered (the heap is one). Of a region stay the blocks of
``2 ** index_bits`` aligned pages that were touched, cut off before its first and after its last touched page; they lie side by
side, so a VMA stays contiguous. Regions are packed, largest first, at the lowest free vpns with the low bits of the address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lufjax.events import Op
from lufjax.workloads.lackey_calls import Call


@dataclass(frozen=True)
class TimedCall:
    """A call and the number of runs before it; negative: before the recording begins."""

    position: int
    thread: int
    call: Call


@dataclass(frozen=True)
class PageTable:
    """Which vpn each kept page has.

    Attributes:
        pages, vpns: ``int64[n]`` recorded page numbers, ascending, and their vpns.
        touched: ``bool[n]`` whether the recording accesses the page.
        num_vpns: vpns in use, holes included.
    """

    pages: np.ndarray
    vpns: np.ndarray
    touched: np.ndarray
    num_vpns: int

    def vpn_of(self, pages: np.ndarray) -> np.ndarray:
        """Return the vpns of kept pages."""
        return self.vpns[np.searchsorted(self.pages, pages)]

    def between(self, start: int, end: int) -> np.ndarray:
        """Return the indices of the kept pages in ``[start, end)``."""
        return np.arange(*np.searchsorted(self.pages, [start, end]))


def choose_vpns(calls: Sequence[TimedCall], touched: np.ndarray, initial: np.ndarray, index_bits: int) -> PageTable:
    """Choose a vpn for every touched page and for the pages kept with it.

    Args:
        calls: the recorded calls.
        touched: ``int64[n]`` page numbers that the recording accesses, ascending.
        initial: those of them mapped before anything is known.
        index_bits: low bits of the page number that its vpn keeps.
    """
    block = 1 << index_bits
    kept = [_kept_pages(touched, start, end, block) for start, end in _regions(calls, initial, block)]
    kept = [region for region in kept if region.size]
    is_used = np.zeros(sum(region.size + 2 * block for region in kept), dtype=bool)
    vpns = {}
    for region in sorted(kept, key=lambda region: (-region.size, int(region[0]))):
        vpns[int(region[0])] = _lowest_free(is_used, region.size, int(region[0]) % block, block)
        is_used[vpns[int(region[0])] :][: region.size] = True
    kept.sort(key=lambda region: int(region[0]))
    pages = np.concatenate(kept)
    return PageTable(
        pages,
        np.concatenate([vpns[int(region[0])] + np.arange(region.size) for region in kept]),
        np.isin(pages, touched),
        int(np.flatnonzero(is_used)[-1]) + 1,
    )


def _regions(calls: Sequence[TimedCall], initial: np.ndarray, block: int) -> list[tuple[int, int]]:
    """Return disjoint ``[start, end)``: overlapping mappings merged; untracked pages merged if less than a block apart."""
    ranges = {(timed.call.grows, timed.call.end) for timed in calls if timed.call.op == Op.MMAP}
    for cluster in np.split(initial, np.flatnonzero(np.diff(initial) >= block) + 1) if initial.size else []:
        ranges.add((int(cluster[0]), int(cluster[-1]) + 1))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _kept_pages(touched: np.ndarray, start: int, end: int, block: int) -> np.ndarray:
    """Return the pages of a region that get a vpn: the touched blocks, from the first to the last touched page."""
    own = touched[slice(*np.searchsorted(touched, [start, end]))]
    pages = (np.unique(own // block)[:, None] * block + np.arange(block)).ravel()
    return pages[(pages >= own[0]) & (pages <= own[-1])] if own.size else own


def _lowest_free(is_used: np.ndarray, size: int, remainder: int, block: int) -> int:
    used_before = np.concatenate([[0], np.cumsum(is_used)])
    position = np.arange(remainder, is_used.size - size + 1, block)
    return int(position[np.flatnonzero(used_before[position + size] == used_before[position])[0]])
