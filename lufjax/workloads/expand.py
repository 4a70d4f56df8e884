"""Range calls as page events: the one place where munmap, mprotect, madvise and mmap of many pages become rows.

Rows here are ``int32[n, 4]``: op, vpn, arg, repeat; the CPU is added when CPUs are interleaved. A gathered call of more
than ``GATHER_SLOTS`` pages becomes several calls, each with its own GATHER_FINISH; page tables are freed by the last one.
Fields that an op does not use are 0.
"""

from __future__ import annotations

import numpy as np

from lufjax.events import ANON, FIRST_PAGE, Op

GATHER_SLOTS = 128
"""Pages of one gathered call; ``MachineShape.gather_slots`` may not be smaller."""

IntArray = np.ndarray | int


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """Return ``0 .. lengths[0]-1, 0 .. lengths[1]-1, ..`` as one array."""
    lengths = np.asarray(lengths, dtype=np.int64)
    total = int(lengths.sum())
    first = np.cumsum(lengths) - lengths
    return np.arange(total, dtype=np.int64) - np.repeat(first, lengths)


def rows_of(op: IntArray, vpn: IntArray = 0, arg: IntArray = 0, repeat: IntArray = 0) -> np.ndarray:
    """Stack columns (broadcast against each other) into rows ``int32[n, 4]``."""
    columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(column, dtype=np.int32)) for column in (op, vpn, arg, repeat)))
    return np.stack(columns, axis=1)


def access_rows(store: np.ndarray, vpn: IntArray, repeat: IntArray = 1) -> np.ndarray:
    """Return LOAD rows, STORE where ``store`` is true."""
    return rows_of(np.where(store, int(Op.STORE), int(Op.LOAD)), vpn, 0, repeat)


def mmap_calls(first_vpn: IntArray, num_pages: np.ndarray, vma: IntArray, backing: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """Expand MMAP calls.

    Args:
        first_vpn, num_pages: ``int[num_calls]`` ranges.
        vma: VMA id of each call.
        backing: first file page of each call (the following pages follow), or ``ANON``.

    Returns:
        rows, and for each row the number of its call. The first page of a call carries ``FIRST_PAGE``.
    """
    first_vpn, num_pages, vma, backing = (np.atleast_1d(np.asarray(x, dtype=np.int64)) for x in (first_vpn, num_pages, vma, backing))
    first_vpn, num_pages, vma, backing = np.broadcast_arrays(first_vpn, num_pages, vma, backing)
    call = np.repeat(np.arange(num_pages.size), num_pages)
    page = ragged_arange(num_pages)
    arg = np.where(backing[call] == ANON, ANON, backing[call] + page)
    return rows_of(int(Op.MMAP), first_vpn[call] + page, arg, vma[call] + FIRST_PAGE * (page == 0)), call


def gather_calls(
    op: Op, first_vpn: IntArray, num_pages: np.ndarray, *, new_vma: IntArray = 0, free_tables: IntArray = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Expand MUNMAP, MPROTECT or MADVISE_DONTNEED calls, each with its GATHER_FINISH (several if it is split).

    Args:
        op: kind of all calls.
        first_vpn, num_pages: ``int[num_calls]`` ranges, each at least one page.
        new_vma: MPROTECT: the VMA id the pages move to.
        free_tables: 1 where the call frees page tables.

    Returns:
        rows, and for each row the number of its call.
    """
    first_vpn, num_pages, new_vma, free_tables = (
        np.atleast_1d(np.asarray(x, dtype=np.int64)) for x in (first_vpn, num_pages, new_vma, free_tables)
    )
    first_vpn, num_pages, new_vma, free_tables = np.broadcast_arrays(first_vpn, num_pages, new_vma, free_tables)
    num_rows = num_pages + -(-num_pages // GATHER_SLOTS)
    call = np.repeat(np.arange(num_pages.size), num_rows)
    row = ragged_arange(num_rows)
    is_last = row == num_rows[call] - 1
    is_finish = is_last | (row % (GATHER_SLOTS + 1) == GATHER_SLOTS)
    page = row - row // (GATHER_SLOTS + 1)
    page_arg = new_vma[call] if op is Op.MPROTECT else np.zeros_like(call)
    return rows_of(
        np.where(is_finish, int(Op.GATHER_FINISH), int(op)),
        np.where(is_finish, 0, first_vpn[call] + page),
        np.where(is_finish, free_tables[call] * is_last, page_arg),
    ), call


def gather_pages(op: Op, vpns: np.ndarray, new_vma: IntArray, free_tables: int) -> np.ndarray:
    """Expand one call on pages that need not be neighbours; each part spans at most ``GATHER_SLOTS`` vpns. Otherwise as :func:`gather_calls`."""
    pages = rows_of(int(op), vpns, new_vma)
    after, low, high = [], int(vpns[0]), int(vpns[0])
    for index, vpn in enumerate(vpns.tolist()):
        low, high = min(low, vpn), max(high, vpn)
        if high - low >= GATHER_SLOTS:
            after.append(index)
            low = high = vpn
    finishes = rows_of(int(Op.GATHER_FINISH), np.zeros(len(after) + 1, dtype=np.int32))
    finishes[-1, 2] = free_tables
    return np.insert(pages, [*after, pages.shape[0]], finishes, axis=0)


def in_order(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merge parts (rows, number of the turn): turn after turn, within a turn part after part."""
    turn = np.concatenate([part[1] for part in parts])
    order = np.argsort(turn, kind="stable")
    return np.concatenate([part[0] for part in parts])[order], turn[order]
