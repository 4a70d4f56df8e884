"""How much memory the machine touches: counted from the jaxprs of the phase kernels, weighted with how often each of them runs.

A kernel's reads and writes are known before it runs, so its work is a constant. Predicated writes count as if all of them were enabled, and
reads as if all were used: XLA does move all of them; native code branches around some, so for it the count is an upper bound.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import llvmlite.ir as ir
import numpy as np
from jax.extend.core import Literal

from lufjax.backends import native, rollout
from lufjax.backends.operations import I64
from lufjax.engine import program_for
from lufjax.params import MachineParams, MachineShape
from lufjax.state import MachineState, init_state
from lufjax.trace import Trace, ops_of

ELEMENT = 4
"""Bytes; every array of a machine is of 32-bit integers."""
SECTOR = 32
"""Bytes that a GPU moves at least, however few of them are wanted."""


@dataclass(frozen=True)
class Work:
    """What one visit of a kernel touches in one machine, its parameters and its trace.

    Attributes:
        gathers, scatters: reads of an array at computed places, and writes; one of each may move many elements.
        read, written: bytes. An addition reads what it writes.
        sectors: pieces of 32 bytes in which they lie, each place beginning one.
    """

    gathers: int
    scatters: int
    read: int
    written: int
    sectors: int

    @property
    def touched(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


def kernel_work(group: str, shape: MachineShape) -> Work:
    """The work of a phase kernel on machines of this shape."""
    arrays = native.arrays_of(shape)
    closed, targets = native.trace_kernel(group, shape, arrays)
    read, outs, written = list(reads(closed.jaxpr)), iter(closed.out_avals), []
    for array, is_add, index in targets:
        dynamic = [next(outs).shape for part in index if part is None]
        next(outs)
        places = prod(np.broadcast_shapes(next(outs).shape, *dynamic))
        sizes = arrays[array][0]
        kept = [len(range(*part.indices(n))) for part, n in zip(index, sizes, strict=False) if part is not None]
        written.append((places, prod((*kept, *sizes[len(index) :]))))
        read += written[-1:] * is_add
    read_bytes, written_bytes = (ELEMENT * sum(places * run for places, run in moved) for moved in (read, written))
    sectors = sum(places * -(-run * ELEMENT // SECTOR) for places, run in [*read, *written])
    return Work(len(read), len(written), read_bytes, written_bytes, sectors)


def reads(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """Places, and elements at each, of every read whose value is used."""
    wanted = _variables(jaxpr.outvars)
    for eqn in reversed(jaxpr.eqns):
        if not wanted.intersection(eqn.outvars):
            continue
        wanted |= _variables(eqn.invars)
        if eqn.primitive.name == "read":
            places = prod(np.broadcast_shapes(*(atom.aval.shape for atom in eqn.invars)))
            yield places, prod(eqn.outvars[0].aval.shape) // places
        elif "jaxpr" in eqn.params and eqn.primitive.name != "reduce":
            yield from reads(eqn.params["jaxpr"].jaxpr)


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def start(shape: MachineShape, params: MachineParams, traces: Sequence[Trace], trace_index: np.ndarray) -> MachineState:
    """The initial states of lanes, with a lane axis."""
    lanes = [init_state(shape, jax.tree.map(lambda leaf, lane=lane: int(leaf[lane]), params), traces[t]) for lane, t in enumerate(trace_index)]
    return MachineState(*(np.stack(leaves) for leaves in zip(*lanes, strict=True)))


def count_visits(
    shape: MachineShape, params: MachineParams, traces: Sequence[Trace], trace_index: np.ndarray, num_events: int
) -> dict[str, float]:  # fmt: skip
    """Visits of each kernel for each event, over all lanes, from native code that counts them. Arguments as of ``engine.simulate``."""
    program, arrays = program_for(params, ops_of(traces)), native.arrays_of(shape)

    def build() -> ir.Module:
        module = native.build_run_lanes(shape, program, arrays)
        for group in program:
            place = ir.GlobalVariable(module, I64, f"visits_{group}")
            place.initializer = I64(0)  # type: ignore[assignment]
            b = ir.IRBuilder(module.get_global(f"kernel_{group}").entry_basic_block)
            b.position_at_start(b.block)
            b.store(b.add(b.load(place), I64(1)), place)
        return module

    engine, run = native.machine_code(build, ("visits", shape, program, tuple(arrays.items())), run_lanes=native.RUN_LANES)
    counts = {group: ctypes.c_int64.from_address(engine.get_global_value_address(f"visits_{group}")) for group in program}
    for count in counts.values():
        count.value = 0
    events = np.ascontiguousarray(rollout.pack_events(np.stack([trace.events for trace in traces])))
    where, stop = np.asarray(trace_index, np.int32), np.full(len(trace_index), num_events, np.int32)
    native.run_block(native.NativeProgram(engine, run), params, start(shape, params, traces, trace_index), events, where, stop)
    return {group: count.value / (num_events * len(where)) for group, count in counts.items()}
