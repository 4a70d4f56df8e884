"""What reviewers called a violation: the known objection that a finding is an instance of, told from its events (docs/SCENARIOS.md, objections)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lufjax.events import OP, VPN, Op

NAMES = {
    "H1": "munmap, then another mapping or none at the address",
    "H2": "another mapping over the address (MAP_FIXED)",
    "H3": "write(2) to the file",
    "H4": "the file changes without a local write",
    "H5": "a store through another mapping of the page",
    "H7": "a store to the same page after a refault, or after it migrated",
    "H8": "mprotect, then a store",
    "H11": "the process ended",
    "H12": "the frame has another owner",
    "H14": "an allocation from atomic context sends a shootdown",
    "H17": "a fault has installed its PTE and not yet flushed",
    "H21": "an allocation has taken its frame off and not yet flushed",
}
"""Objection -> what it is; numbers as in the reviews' table of docs/SCENARIOS.md."""


def hazard_of(kind: str, rows: Sequence[np.ndarray]) -> str:
    """The objection that a shortest sequence shows; empty for none of the list.

    Args:
        kind: violation class. rows: event rows of each entry; the last one violates.
    """
    events = np.concatenate(rows)
    ops, page = [Op(int(op)) for op in events[:, OP]], int(events[-1, VPN])
    if kind == "ATOMIC_FLUSH":
        return "H14"
    if kind == "REUSE":
        return "H21" if Op.TAKE_OFF in ops else "H12"
    if Op.FAULT_INSTALL in ops and Op.FAULT_FINISH not in ops:
        return "H17"
    if kind == "MAPPING":
        if Op.EXIT in ops:
            return "H11"
        return "H2" if Op.MMAP in ops and Op.MUNMAP not in ops else "H1" if {Op.MUNMAP, Op.MADVISE_DONTNEED} & set(ops) else ""
    if kind != "OLD_VALUE":
        return ""
    if Op.MPROTECT in ops:
        return "H8"
    changes = [i for i, op in enumerate(ops) if op in (Op.FILE_WRITE, Op.REMOTE_WRITE, Op.TRUNCATE, Op.STORE)]
    if not changes:
        return ""
    last = changes[-1]
    return {Op.FILE_WRITE: "H3", Op.STORE: "H7" if int(events[last, VPN]) == page else "H5"}.get(ops[last], "H4")


def is_bounded(rows: Sequence[np.ndarray]) -> bool:
    """Whether the batch of reclaim had not been flushed (or deferred) yet: a kernel that flushes at its end closes this window by itself."""
    ops = np.concatenate(rows)[:, OP]
    return bool((ops == Op.RECLAIM).any() and not (ops == Op.RECLAIM_FLUSH).any())
