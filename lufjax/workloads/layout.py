"""What is mapped at the start: VMAs and pages of each process, and the trace made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lufjax.events import ANON, FIRST_PAGE, VmaFlag
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import GATHER_SLOTS
from lufjax.workloads.interleave import Script, insert_ticks, interleave, rows_between_ticks
from lufjax.workloads.options import Option

READ_ONLY_FILE = VmaFlag.READ | VmaFlag.SHARED
"""``mmap(PROT_READ, MAP_SHARED)`` of a descriptor opened read-only: it can never become writable."""
ANON_MEMORY = VmaFlag.READ | VmaFlag.WRITE | VmaFlag.MAYWRITE | VmaFlag.ANON
READ_ONLY_ANON = VmaFlag.READ | VmaFlag.MAYWRITE | VmaFlag.ANON


@dataclass(frozen=True)
class Workload:
    """A way to make traces.

    Attributes:
        about: one line.
        options: every option it has.
        build: (checked options, num_cpus, draws, num_events) -> trace.
    """

    about: str
    options: Mapping[str, Option]
    build: Callable[[Mapping[str, Any], int, Draws, int], Trace]


class Layout:
    """VMAs, initial mappings and free address ranges of every process, handed out from vpn 0 upwards."""

    def __init__(self, num_processes: int) -> None:
        self._flags: list[int] = []
        self._next_vpn = [0] * num_processes
        self._mapped: list[tuple[int, int, int, int, int]] = []
        self._initial_anon = 0

    def vma(self, flags: VmaFlag) -> int:
        """Make a VMA id."""
        if len(self._flags) == FIRST_PAGE:
            raise ValueError(f"a trace can name {FIRST_PAGE} VMA ids, this workload needs more")
        self._flags.append(int(flags))
        return len(self._flags) - 1

    def reserve(self, process: int, num_pages: int) -> int:
        """Return the first vpn of a range that is not mapped at the start."""
        first = self._next_vpn[process]
        self._next_vpn[process] = first + num_pages
        return first

    def place(self, process: int, num_pages: int, vma: int, backing: int = ANON) -> int:
        """Map a range at the start: file pages from ``backing`` on, or anonymous memory. Return its first vpn."""
        first = self.reserve(process, num_pages)
        self._mapped.append((process, first, num_pages, vma, backing))
        self._initial_anon += num_pages if backing == ANON else 0
        return first

    def trace(
        self, events: np.ndarray, loaded: np.ndarray, *, num_file_pages: int = 0, more_anon: int = 0, rmap_slots: int = 1
    ) -> Trace:
        """Make the trace.

        Args:
            events: ``int32[num_events, 5]``.
            loaded: process of each CPU at the start, or ``IDLE``.
            num_file_pages: file pages there are.
            more_anon: anonymous backings needed at once beyond those of the initial mappings.
            rmap_slots: PTEs that can map one page at the same time.
        """
        num_vpns = max(self._next_vpn)
        page_vma = np.full((len(self._next_vpn), num_vpns), -1, dtype=np.int32)
        page_backing = np.full_like(page_vma, ANON)
        for process, first, num_pages, vma, backing in self._mapped:
            page_vma[process, first : first + num_pages] = vma
            if backing != ANON:
                page_backing[process, first : first + num_pages] = np.arange(backing, backing + num_pages)
        return Trace(
            events=np.ascontiguousarray(events, dtype=np.int32),
            vmas=np.array(self._flags, dtype=np.int32),
            page_vma=page_vma,
            page_backing=page_backing,
            loaded=np.asarray(loaded, dtype=np.int32),
            num_file_pages=num_file_pages,
            num_anon=self._initial_anon + more_anon,
            attrs={"rmap_slots": rmap_slots, "gather_slots": GATHER_SLOTS},
        )


def run_scripts(
    scripts: list[Script], draws: Draws, *, num_events: int, num_cpus: int, tick_period: int, skew: int
) -> np.ndarray:
    """Interleave scripts and insert ticks: ``int32[num_events, 5]``."""
    num_rows = rows_between_ticks(num_events, tick_period, num_cpus)
    return insert_ticks(interleave(scripts, draws, num_rows=num_rows, skew=skew), num_events, tick_period, num_cpus)
