"""Machines stepped by hand, one event at a time: scenarios and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lufjax import counters as names
from lufjax import state as st
from lufjax.backends import rollout
from lufjax.backends.runners import make_runner, resolve_backend, use_all_cores
from lufjax.event_check import check_rows
from lufjax.faults import EngineFault
from lufjax.params import MachineParams, MachineShape
from lufjax.snapshot import snapshot
from lufjax.state import MachineState, init_state
from lufjax.trace import Trace


class Machines:
    """A few machines of one shape, stepped by hand, one event each at a time: natively where ``simulate`` would use ``cuda``."""

    def __init__(self, shape: MachineShape, params: Sequence[MachineParams], traces: Sequence[Trace], *, backend: str = "auto") -> None:
        use_all_cores()
        self.shape, self.num_lanes = shape, len(params)
        self._is_native = (chosen := resolve_backend(backend)) != "xla"
        self._runner = make_runner("native" if self._is_native else chosen, shape, tuple(rollout.KERNELS), self.num_lanes, self.num_lanes, 1)
        states = [init_state(shape, p, trace) for p, trace in zip(params, traces, strict=True)]
        pad = range(self.num_lanes, self._runner.block)
        self._lanes = np.array([*range(self.num_lanes), *(0 for _ in pad)], np.int32)
        self.state: MachineState = jax.tree.map(lambda *leaves: self._runner.put(np.stack(leaves)[self._lanes]), *states)
        self._history = np.zeros((self.num_lanes, 0, 4), np.int32)
        self._params = jax.tree.map(lambda *leaves: self._runner.put(np.array(leaves, np.int32)[self._lanes]), *params)

    def step(self, rows: np.ndarray) -> None:
        """Execute one event per machine, ``int[num_machines, 5]``.

        Raises:
            EngineFault: a machine faulted.
        """
        rows = np.asarray(rows)
        check_rows(self.shape, rows)
        cursor = np.array(st.scalar(self.state, "cursor"))
        row = rollout.pack_events(rows[:, None, :])
        # Native code reads row ``cursor``; XLA clips to the only row, and is not compiled again for a longer trace.
        self._history = np.concatenate([self._history, row], axis=1) if self._is_native else row
        events, stop = self._runner.put_shared(self._history), self._runner.put(cursor + 1)
        self.state = self._runner.run(self._params, self.state, events, self._runner.put(self._lanes), stop)
        fault = np.array(st.scalar(self.state, "fault"))
        if fault.any():
            lane = int(np.argmax(fault != 0))
            raise EngineFault(int(fault[lane]), lane, int(st.scalar(self.state, "cursor")[lane]))

    def host(self) -> list[MachineState]:
        """The states as NumPy arrays, one per machine."""
        host = jax.tree.map(np.array, jax.device_get(self.state))
        return [jax.tree.map(lambda leaf, i=lane: leaf[i], host) for lane in range(self.num_lanes)]


class Machine:
    """One machine, stepped by hand: scenarios and tests."""

    def __init__(self, shape: MachineShape, params: MachineParams, trace: Trace) -> None:
        self._machines = Machines(shape, [params], [trace])

    def step(self, row: Sequence[int]) -> None:
        """Execute one event row (cpu, op, vpn, arg, repeat)."""
        self._machines.step(np.asarray([row], np.int64))

    def snapshot(self) -> dict[str, Any]:
        """The whole state in the canonical form of :func:`lufjax.snapshot.snapshot`."""
        return snapshot(self._machines.shape, self._machines.host()[0])

    def counters(self) -> dict[str, Any]:
        """Counters and gauges as ints, histograms and ``received`` as lists."""
        return counters_of(self._machines.host()[0])

    def violations(self) -> dict[str, Any]:
        """``loads``, ``stores`` by class, and ``first`` (now, cpu, process, vpn) of each class."""
        return violations_of(self._machines.host()[0])


def counters_of(state: MachineState) -> dict[str, Any]:
    """Counters of one lane on the host."""
    counted: dict[str, Any] = {name: int(value) for name, value in zip(names.SCALARS, state.counters, strict=True)}
    counted |= {"events": int(st.scalar(state, "cursor"))} | {name: int(st.scalar(state, name)) for name in names.GAUGES}
    counted |= {name: row.tolist() for name, row in zip(names.HISTOGRAMS, state.histograms, strict=True)}
    return counted | {"received": state.received.tolist()}


def violations_of(state: MachineState) -> dict[str, Any]:
    """Violations of one lane on the host."""
    return {"loads": state.violations[:, 0].tolist(), "stores": state.violations[:, 1].tolist(), "first": state.first.tolist()}
