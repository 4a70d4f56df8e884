"""The page accesses of a shipped recording as one stream, for one TLB."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from lufjax.workloads.recording import read_recording
from lufjax.workloads.replay import TRACES

RECORDINGS = tuple(sorted(path.stem for path in TRACES.glob("*.nc")))
GEOMETRIES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "small": ((4, 2), (16, 3)),
    "default": ((16, 4), (128, 4)),
}
"""Name -> (sets, ways) of both TLB levels."""


@dataclass(frozen=True)
class PageStream:
    """Accesses in recorded order, all threads as one.

    Attributes:
        vpn: ``int64[n]``.
        is_store: ``bool[n]``; the first access of every page is a store, so that no later one changes a dirty bit.
    """

    vpn: np.ndarray
    is_store: np.ndarray

    @property
    def num_vpns(self) -> int:
        return int(self.vpn.max()) + 1

    @property
    def digest(self) -> str:
        """Hash of the stream."""
        return hashlib.sha256(self.packed().tobytes()).hexdigest()

    def packed(self) -> np.ndarray:
        """``uint32[n]`` little endian, vpn * 2 + is_store."""
        return (self.vpn * 2 + self.is_store).astype("<u4")


@cache
def page_stream(recording: str) -> PageStream:
    """The stream of a recording that comes with lufjax."""
    rows = read_recording(TRACES / f"{recording}.nc").rows
    vpn, is_store = rows[:, 2], rows[:, 1] == 1
    is_store[np.unique(vpn, return_index=True)[1]] = True
    return PageStream(vpn, is_store)
