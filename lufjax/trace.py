"""A trace: the initial mappings and the event rows that drive one machine. Policy-independent by construction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lufjax.events import OP


@dataclass(frozen=True)
class Trace:
    """Events and initial state for one machine.

    Attributes:
        events: ``int32[num_events, 5]`` rows (cpu, op, vpn, arg, repeat), see :mod:`lufjax.events`.
        vmas: ``int32[num_vmas]`` VMA flags by id (:class:`lufjax.events.VmaFlag`).
        page_vma: ``int32[num_processes, num_vpns]`` VMA id of each page mapped at the start, -1 where nothing is mapped.
        page_backing: ``int32[num_processes, num_vpns]`` file page, or ``ANON`` (-1) for an anonymous page; ignored where unmapped.
        loaded: ``int32[num_cpus]`` the process each CPU starts with, or ``IDLE`` (-1).
        num_file_pages: file pages are backings ``0 .. num_file_pages - 1``.
        num_anon: anonymous backings the trace can need at once.
        attrs: name, seed and other facts for the record; flat, JSON-serialisable.
    """

    events: np.ndarray
    vmas: np.ndarray
    page_vma: np.ndarray
    page_backing: np.ndarray
    loaded: np.ndarray
    num_file_pages: int
    num_anon: int
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def ops(self) -> frozenset[int]:
        """Operations of its events."""
        return frozenset(np.flatnonzero(np.bincount(self.events[:, OP])).tolist())

    @property
    def num_events(self) -> int:
        return int(self.events.shape[0])

    @property
    def num_cpus(self) -> int:
        return int(self.loaded.shape[0])

    @property
    def num_processes(self) -> int:
        return int(self.page_vma.shape[0])

    @property
    def num_vpns(self) -> int:
        return int(self.page_vma.shape[1])


EMPTY_TRACE = Trace(
    events=np.zeros((0, 5), np.int32), vmas=np.zeros(1, np.int32), page_vma=np.full((1, 1), -1, np.int32),
    page_backing=np.full((1, 1), -1, np.int32), loaded=np.zeros(1, np.int32), num_file_pages=0, num_anon=0,
)  # fmt: skip
"""A trace of nothing, for sizes that do not depend on one."""


def ops_of(traces: Iterable[Trace]) -> frozenset[int]:
    """Operations of the events of several traces."""
    return frozenset().union(*(trace.ops for trace in traces))
