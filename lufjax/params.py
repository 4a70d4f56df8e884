"""What is compiled in (``MachineShape``) and what is swept inside one compiled program (``MachineParams``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lufjax.policy import FlushPolicy


@dataclass(frozen=True)
class TlbGeometry:
    """One TLB level of one CPU: ``sets`` x ``ways`` entries.

    Attributes:
        index: ``linear`` (vpn mod sets) or ``xor`` (low bits XOR the next ones; sets must be a power of two).
        replacement: ``lru``, ``plru`` (tree, ways a power of two) or ``ring12`` (three rings of tree-PLRU(4)).
    """

    sets: int
    ways: int
    index: str = "linear"
    replacement: str = "lru"


@dataclass(frozen=True)
class MachineShape:
    """Static sizes of a lane (docs/MODEL.md section 1). Hashable: one shape, one compiled program."""

    num_cpus: int
    num_processes: int
    num_vpns: int
    num_frames: int
    num_vmas: int
    num_file_pages: int
    num_anon: int
    l1: TlbGeometry = TlbGeometry(16, 4)
    l2: TlbGeometry = TlbGeometry(128, 4)
    rmap_slots: int = 4
    gather_slots: int = 128
    batch_slots: int = 32
    pcp_slots: int = 64
    quarantine_slots: int = 64

    @property
    def num_backings(self) -> int:
        """File pages, then the anonymous pool."""
        return self.num_file_pages + self.num_anon


class MachineParams(NamedTuple):
    """Traced numbers of a lane; ``int32`` scalars. Frames are counted in pages; those below ``fast_frames`` are the fast tier."""

    frames_in_use: Any
    wmark_min: Any
    wmark_low: Any
    wmark_high: Any
    pcp_batch: Any
    pcp_high: Any
    reclaim_batch: Any
    kswapd_cpu: Any
    load_mode: Any
    fast_frames: Any
    policy: FlushPolicy


def has_slow(params: MachineParams) -> bool:
    """Whether any of these machines has a slow tier."""
    return bool((np.asarray(params.fast_frames) < np.asarray(params.frames_in_use)).any())
