"""A lane as one row of ``int32``: where its arrays are on the device, and how states and counters get there and back.

Which lanes share a warp changes from visit to visit, and what a kernel reads depends on data, so neighbouring threads seldom read
neighbouring elements; what one thread reads, a row of an array or a bank of scalars, lies together instead. Every array begins at a
*sector*, the 32 bytes that a GPU moves at least.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from lufjax import counters
from lufjax import state as st
from lufjax.backends.native import NUM_PARAMS, arrays_of
from lufjax.backends.operations import I32
from lufjax.params import MachineParams, MachineShape
from lufjax.state import MachineState

SECTOR = 8
"""Elements."""
LINE = 32
"""Elements of a cache line; a row is a multiple of it."""
COUNTING = ("counters", "histograms", "received", "violations")
"""What is read and set to 0 at a sample point; it is first in a row."""
SCALARS = (*counters.GAUGES, "fault", "cursor")
"""Scalars that are read with it."""
TAKEN = (*COUNTING, "first", *sorted({st.BANK_OF[name][0] for name in SCALARS}))
"""Arrays that are read at a sample point, in their order in a row."""
LARGEST_ROW = 2**29
"""Elements: offsets in bytes are numbers of 32 bits."""


@dataclass(frozen=True)
class RowLayout:
    """Sizes and offsets in elements.

    Attributes:
        arrays: shape and dtype of each array of a lane, of its parameters (the last of a row) and of its trace (elsewhere).
        offsets: where each array begins. width: of a row. counting, taken: of the beginning that holds ``COUNTING``, ``TAKEN``.
    """

    arrays: dict[str, tuple[tuple[int, ...], Any]]
    offsets: dict[str, int]
    width: int
    counting: int
    taken: int

    def pack(self, state: MachineState) -> np.ndarray:
        """States with a leading lane axis -> ``int32[lanes, width]``; parameters are left out."""
        rows = np.zeros((len(state.counters), self.width), np.int32)
        for name, values in state._asdict().items():
            flat = np.asarray(values).reshape(len(rows), -1)
            rows[:, self.offsets[name] : self.offsets[name] + flat.shape[1]] = flat.view(np.int32)
        return rows

    def unpack(self, rows: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Arrays by name from rows, or from their beginnings, ``int32[lanes, width or less]``."""
        found = {}
        for name in names:
            (size, dtype), first = self.arrays[name], self.offsets[name]
            found[name] = rows[:, first : first + prod(size)].view(dtype).reshape(len(rows), *size)
        return found


@lru_cache(maxsize=32)
def layout_of(shape: MachineShape) -> RowLayout:
    """The row of a shape.

    Raises:
        ValueError: a lane is too large for offsets of 32 bits.
    """
    arrays = arrays_of(shape)
    often = [*TAKEN, *(bank for bank in st.BANKS if bank not in TAKEN), "masks"]
    names = [*often, *(name for name in MachineState._fields if name not in often), "params"]
    sizes = [-(-prod(arrays[name][0]) // SECTOR) * SECTOR for name in names]
    offsets = dict(zip(names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    width = -(-sum(sizes) // LINE) * LINE
    if width >= LARGEST_ROW:
        raise ValueError(f"backend=cuda: a lane of this machine takes {4 * width >> 20} MiB; allowed are less than {4 * LARGEST_ROW >> 20}")
    return RowLayout(arrays, offsets, width, offsets["first"], sum(sizes[: len(TAKEN)]))


def pack_params(params: MachineParams) -> np.ndarray:
    """Leaves ``int32[lanes]`` -> ``int32[lanes, NUM_PARAMS]``."""
    packed = np.ascontiguousarray(np.stack([np.asarray(leaf, np.int32) for leaf in [*params[:-1], *params.policy]], -1))
    assert packed.shape[1] == NUM_PARAMS
    return packed


@dataclass(frozen=True)
class LaneRow:
    """Memory of one lane for the translation: its row, and its trace."""

    row: Any
    events: Any
    offsets: dict[str, int]
    index = I32

    def pointer(self, builder: Any, array: str) -> Any:
        """The address of an array."""
        return self.events if array == "events" else builder.gep(self.row, [I32(self.offsets[array])], inbounds=True)
