"""Lanes in the memory of a GPU: begin them, run them, read what they counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from lufjax import state as st
from lufjax.backends.gpu.device import Device, Launch
from lufjax.backends.gpu.program import BLOCK, WARP, source_of
from lufjax.backends.gpu.rows import COUNTING, SCALARS, TAKEN, RowLayout, layout_of, pack_params
from lufjax.params import MachineParams, MachineShape
from lufjax.state import MachineState

COPIERS = 256
"""Threads that copy one lane."""
SHARE = 0.9
"""Of the free memory that lanes may take."""


@dataclass(frozen=True)
class Lanes:
    """``rows``: ``int32[lanes, width]`` on the device, changed in place."""

    rows: Any


@dataclass(frozen=True)
class GpuProgram:
    """The program of a shape on a device; its methods are what a ``Runner`` needs."""

    device: Device
    layout: RowLayout
    launch: Launch

    def lanes_that_fit(self, num_lanes: int) -> int:
        """Lanes of a block: all, or equal parts that fit in memory.

        Raises:
            ValueError: not even one fits.
        """
        free, each = int(self.device.free_bytes() * SHARE), 4 * (self.layout.width + self.layout.taken)
        if free < each:
            raise ValueError(f"backend=cuda: a lane takes {each >> 20} MiB, and {self.device.name} has {free >> 20} MiB for lanes")
        return -(-num_lanes // -(-num_lanes // (free // each)))

    def start(self, params: MachineParams, state: MachineState, which: np.ndarray) -> Lanes:
        """Lanes with parameters of their own (leaves ``int32[lanes]``); each starts as one of the states of the host, ``which`` says as which."""
        put, rows = self.device.put, self.device.empty((len(which), self.layout.width))
        self.begin(rows, put(self.layout.pack(state)), put(which.astype(np.int32)), put(pack_params(params)))
        return Lanes(rows)

    def begin(self, rows: Any, initial: Any, which: Any, params: Any) -> None:
        """Write ``rows``: copies of those of ``initial`` that ``which`` says, each with its row of ``params``. All are on the device."""
        self.launch("start_lanes", len(rows), COPIERS, rows, initial, which, params)

    def run(self, params: MachineParams, lanes: Lanes, events: Any, trace_index: np.ndarray, stop: np.ndarray) -> Lanes:
        """Run every lane to its stop. ``params`` are in the rows since they began."""
        self.advance(lanes.rows, events, self.device.put(trace_index), self.device.put(stop))
        return lanes

    def advance(self, rows: Any, events: Any, trace_index: Any, stop: Any) -> None:
        """:meth:`run` with all on the device."""
        num_lanes, stride = len(rows), np.int64(prod(events.shape[1:]))
        threads = self._threads(num_lanes)
        self.launch("run_lanes", -(-num_lanes // threads), threads, rows, events, trace_index, stride, stop, np.int32(num_lanes))

    def take(self, lanes: Lanes) -> tuple[Lanes, dict[str, np.ndarray]]:
        """What was counted, and the scalars that are read with it, by name on the host; what counts begins again at 0."""
        taken = self.device.empty((len(lanes.rows), self.layout.taken))
        self.launch("take_lanes", len(lanes.rows), COPIERS, lanes.rows, taken)
        arrays = self.layout.unpack(self.device.get(taken), TAKEN)
        scalars = {name: arrays[bank][:, column] for name in SCALARS for bank, column in [st.BANK_OF[name]]}
        return lanes, {name: arrays[name] for name in (*COUNTING, "first")} | scalars

    def _threads(self, num_lanes: int) -> int:
        """Lanes of a thread block: few lanes are spread over all multiprocessors."""
        share = -(-num_lanes // self.device.num_processors)
        return min(BLOCK, max(WARP, 1 << (share - 1).bit_length()))


@lru_cache(maxsize=32)
def load(device: Device, shape: MachineShape, program: tuple[str, ...]) -> GpuProgram:
    """The program of a shape; loaded once in a process."""
    return GpuProgram(device, layout_of(shape), device.load(source_of(shape, program)))
