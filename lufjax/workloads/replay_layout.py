"""Where the copies of a recording lie: what threads of one process share, and the vpns of what each copy has for itself."""

from __future__ import annotations

import numpy as np

from lufjax.events import ANON, Op, VmaFlag
from lufjax.workloads.expand import ragged_arange
from lufjax.workloads.recording import Recording


def shared_pages(recording: Recording) -> np.ndarray:
    """Return ``bool[num_vpns]``: pages of file mappings without WRITE that are there from start to end.

    A VMA counts as a whole: no call of the recording names it or touches one of its pages.
    """
    calls, vma = recording.calls, recording.initial_vma
    is_shared = (recording.vmas & (VmaFlag.WRITE | VmaFlag.ANON)) == 0
    is_shared[vma[(vma >= 0) & (recording.initial_backing == ANON)]] = False
    touched = vma[_called_vpns(recording)]
    is_shared[touched[touched >= 0]] = False
    is_shared[calls["vma"][calls["op"] == Op.MMAP]] = False
    is_shared[calls["value"][calls["op"] == Op.MPROTECT]] = False
    return (vma >= 0) & is_shared[vma]


def vpns_of_threads(recording: Recording, is_shared: np.ndarray, copies: int) -> tuple[np.ndarray, int]:
    """Lay out the copies in one process.

    The first copy keeps the recorded vpns. Of the others only blocks of 2^index_bits pages that hold pages of their own are
    laid out, side by side, so low bits and neighbours stay.

    Returns:
        ``int64[copies, num_vpns]`` the vpn of each recorded vpn, and the number of vpns.
    """
    block = 1 << recording.number("index_bits")
    vpn = np.arange(recording.number("num_vpns"))
    is_own = ~is_shared & (recording.initial_vma >= 0)
    is_own[_called_vpns(recording)] = True
    own_blocks = np.unique(vpn[is_own] // block)
    span, own_span = (int(vpn[-1]) // block + 1) * block, own_blocks.size * block
    moved = span + np.searchsorted(own_blocks, vpn // block) * block + vpn % block
    copy = np.arange(copies)[:, None]
    return np.where(is_shared | (copy == 0), vpn, moved + (copy - 1) * own_span), span + (copies - 1) * own_span


def most_mappers(events: np.ndarray, page_vma: np.ndarray, page_backing: np.ndarray, process: np.ndarray, num_file_pages: int) -> int:
    """Return the most pages that map one file page at the same time; ``process`` is that of each CPU. At least 1."""
    backing = np.where(page_vma >= 0, page_backing, ANON)
    count = np.bincount(backing[backing != ANON], minlength=num_file_pages)
    most = max(1, int(count.max(initial=0)))
    rows = events[np.isin(events[:, 1], [int(Op.MMAP), int(Op.MUNMAP)])]
    for owner, op, vpn, arg in zip(process[rows[:, 0]].tolist(), *rows[:, 1:4].T.tolist(), strict=True):
        old, new = backing[owner, vpn], arg if op == Op.MMAP else ANON
        backing[owner, vpn] = new
        if old != ANON:
            count[old] -= 1
        if new != ANON:
            count[new] += 1
            most = max(most, int(count[new]))
    return most


def _called_vpns(recording: Recording) -> np.ndarray:
    calls = recording.calls
    return np.repeat(calls["vpn"], calls["num_pages"]) + ragged_arange(calls["num_pages"])
