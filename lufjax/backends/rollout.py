"""Many machines through many events.

The lanes of a block wait in phases. The phase that most lanes wait for runs next, on ``slots`` of them at a time: their lane numbers are
gathered, the kernel (written for one machine) is vmapped over them, and its writes are scattered back. Cost follows what happens, not
what could happen; lanes only share the order in which phases run, so results do not depend on the block.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lufjax import state as st
from lufjax.events import MicroOp, Op
from lufjax.params import MachineParams, MachineShape
from lufjax.phases import (  # fmt: skip
    GROUPS,
    Phase,
    alloc,
    atomic,
    debt,
    fault,
    fetch,
    finish,
    flush,
    fork,
    half,
    invalidate,
    lazyfree,
    mapping,
    micro,
    migrate,
    move,
    other,
    process,
    reclaim,
    take,
)
from lufjax.phases.draft import Draft, Target, split_writes
from lufjax.state import MachineState

KERNELS: dict[str, Callable[[Draft, Array], None]] = {
    "fetch": fetch.fetch,
    "store": fetch.store,
    "stale": fetch.stale,
    "fault": fault.fault,
    "cow": fault.cow,
    "install": fault.install,
    "hook": fault.hook,
    "alloc": alloc.alloc,
    "pcp": alloc.pcp,
    "reclaim": reclaim.reclaim,
    "unmap": reclaim.unmap,
    "drain": reclaim.drain,
    "flush": flush.flush,
    "invlpg": flush.invlpg,
    "mapping": mapping.mapping,
    "edit": mapping.edit,
    "fixed": mapping.fixed,
    "map": mapping.map_page,
    "finish": finish.finish,
    "schedule": other.schedule,
    "other": other.other,
    "half": half.half,
    "take": take.take,
    "micro": micro.micro,
    "atomic": atomic.atomic,
    "forced": debt.forced_flush,
    "invalidate": invalidate.invalidate,
    "withdraw": invalidate.withdraw,
    "lazyfree": lazyfree.lazyfree,
    "mark": lazyfree.mark,
    "mremap": move.mremap,
    "fork": fork.fork,
    "process": process.process,
    "slow": migrate.slow,
    "migrate": migrate.migrate,
    "slow_target": migrate.slow_target,
    "moved": migrate.moved,
    "migrated": migrate.migrated,
    "complete": other.complete,
    "release": finish.release,
}
"""Group -> its kernel, in the order of the walk of one event."""

_OF_FAULTS = {Op.FAULT_INSTALL, Op.FAULT_FINISH}
_OF_FILES = {Op.REMOTE_WRITE, Op.TRUNCATE}
_OF_ALLOCATIONS = {Op.TAKE_OFF, Op.DISCHARGE}
_HALVES = _OF_FAULTS | _OF_ALLOCATIONS

_GATHERED = {Op.MUNMAP, Op.MPROTECT, Op.MADVISE_DONTNEED, Op.MADVISE_FREE, Op.EXIT, Op.MREMAP, Op.FORK}
_OF_MAPPINGS = {Op.MADVISE_FREE, Op.EXIT, Op.MREMAP, Op.FORK}
"""Mapping calls that arrive in ``other``."""

_OPTIONAL = {
    "mapping": {Op.MMAP, *_GATHERED},
    "edit": {Op.MMAP, *_GATHERED},
    "fixed": {Op.MMAP},
    "map": {Op.MMAP},
    "finish": {Op.GATHER_FINISH},
    "schedule": {Op.SWITCH, Op.TICK},
    "complete": {
        Op.TICK, Op.RECLAIM, Op.RECLAIM_FLUSH, Op.FREE_FOREIGN, Op.FAULT_FINISH, Op.MADVISE_FREE, Op.MREMAP, Op.FORK, Op.MIGRATE, *_OF_FILES,
    },
    "other": {
        Op.FILE_WRITE, Op.RECLAIM, Op.RECLAIM_FLUSH, Op.ALLOC_FOREIGN, Op.FREE_FOREIGN, Op.ALLOC_ATOMIC, Op.MIGRATE, *_HALVES, *_OF_FILES,
        *_OF_MAPPINGS, *MicroOp,
    },
    "half": _OF_FAULTS,
    "take": _OF_ALLOCATIONS,
    "micro": set(MicroOp),
    "atomic": {Op.ALLOC_ATOMIC},
    "invalidate": _OF_FILES,
    "withdraw": _OF_FILES,
    "lazyfree": {Op.MADVISE_FREE},
    "mark": {Op.MADVISE_FREE},
    "mremap": {Op.MREMAP},
    "fork": {Op.FORK},
    "process": {Op.EXIT},
    "migrate": {Op.MIGRATE},
    "moved": {Op.MIGRATE},
    "migrated": {Op.MIGRATE},
    "release": {Op.MUNMAP, Op.MADVISE_DONTNEED},
}


_OF_TIERS = {"slow", "slow_target", "moved", "migrated"}
"""Groups that a machine with a slow tier can reach, whatever the operations."""


def program_for(ops: Set[int], *, has_slow: bool = False) -> tuple[str, ...]:
    """Groups that a set of operations can reach, on machines of which some have a slow tier or none has; only these are compiled."""
    return tuple(
        name for name in KERNELS if (has_slow and name in _OF_TIERS) or (_OPTIONAL[name] & ops if name in _OPTIONAL else name not in _OF_TIERS)
    )


def run_phase(
    group: str, shape: MachineShape, params: MachineParams, state: MachineState, events: Array, trace_index: Array, lanes: Array
) -> MachineState:  # fmt: skip
    """Run one group's kernel on ``lanes`` (``int32[slots]``, distinct; lanes outside the block are no-ops)."""
    num_lanes = trace_index.shape[0]
    targets: list[Target] = []

    def kernel(lane: Array) -> list[tuple[list[Array], Array, Array]]:
        lane_params = jax.tree.map(lambda leaf: leaf.at[lane].get(mode="clip"), params)
        trace = trace_index.at[lane].get(mode="clip")

        def read(array: str, index: tuple[Any, ...]) -> Array:
            source, first = (events, trace) if array == "events" else (getattr(state, array), lane)
            return source.at[(first, *index)].get(mode="clip")

        draft = Draft(shape, lane_params, read, lambda array: getattr(state, array).dtype)
        KERNELS[group](draft, lane < num_lanes)
        targets[:], traced = split_writes(draft.finish())
        return traced

    fields, written = state._asdict(), jax.vmap(kernel)(lanes)
    for (array, is_add, index), (dynamic, value, enabled) in zip(targets, written, strict=True):
        fields[array] = _apply(fields[array], is_add, index, dynamic, value, enabled, lanes)
    return MachineState(**fields)


def _apply(target: Array, is_add: bool, index: tuple[Any, ...], dynamic: list[Array], value: Array, enabled: Array, lanes: Array) -> Array:
    """Scatter one write of every slot. Vector indices (``[slots, n]``) put ``n`` elements per lane."""
    rank = max([1] + [d.ndim for d in dynamic])
    enabled = jnp.broadcast_to(enabled.reshape(enabled.shape + (1,) * (rank - enabled.ndim)), _leading(lanes, dynamic, rank))
    lane = jnp.where(enabled, lanes.reshape((-1,) + (1,) * (rank - 1)), target.shape[0])
    expanded = iter([d.reshape(d.shape + (1,) * (rank - d.ndim)) for d in dynamic])
    full = (lane, *(i if isinstance(i, slice) else next(expanded) for i in index))
    window = jax.eval_shape(lambda t: t[full], target).shape
    value = jnp.broadcast_to(value.reshape(value.shape + (1,) * (len(window) - value.ndim)) if value.ndim < len(window) else value, window)
    update = target.at[full].add if is_add else target.at[full].set
    return update(value, mode="drop", unique_indices=True)


def _leading(lanes: Array, dynamic: list[Array], rank: int) -> tuple[int, ...]:
    return np.broadcast_shapes((lanes.shape[0],) + (1,) * (rank - 1), *(d.shape + (1,) * (rank - d.ndim) for d in dynamic))


def advance(
    shape: MachineShape, program: tuple[str, ...], slots: int, params: MachineParams, state: MachineState, events: Array, trace_index: Array,
    stop: Array,
) -> MachineState:  # fmt: skip
    """Run every lane of a block to its event ``stop``.

    Args:
        program: groups that may be needed (:func:`program_for`).
        slots: lanes that one phase runs on at a time.
        params, state: leaves with a leading lane axis.
        events: ``int32[num_traces, num_events, 4]`` packed rows (:func:`pack_events`).
        trace_index, stop: ``int32[num_lanes]``.
    """
    num_lanes = trace_index.shape[0]
    group_of = np.full(max(Phase) + 1, len(program), np.int32)
    for index, name in enumerate(program):
        for code in GROUPS[name]:
            group_of[code] = index
    table = jnp.asarray(group_of)
    groups = jnp.arange(len(program), dtype=jnp.int32)

    def choose(state: MachineState) -> tuple[Array, Array]:
        phase, cursor = st.scalar(state, "phase"), st.scalar(state, "cursor")
        is_done = ((phase == Phase.FETCH) | (phase == Phase.BACKGROUND)) & (cursor >= stop)
        group = jnp.where(is_done, len(program), table[phase])
        counts = (group[:, None] == groups).sum(0, dtype=jnp.int32)
        choice = jnp.where(counts.sum() == 0, len(program), jnp.argmax(counts).astype(jnp.int32))
        (lanes,) = jnp.nonzero(group == choice, size=slots, fill_value=num_lanes)
        return choice, lanes.astype(jnp.int32)

    def visit(index: int, carry: tuple[MachineState, Array, Array]) -> tuple[MachineState, Array, Array]:
        state, _, lanes = carry
        state = run_phase(program[index], shape, params, state, events, trace_index, lanes)
        return state, *choose(state)

    def sweep(carry: tuple[MachineState, Array, Array]) -> tuple[MachineState, Array, Array]:
        for index in range(len(program)):
            carry = lax.while_loop(lambda c, i=index: c[1] == i, partial(visit, index), carry)
        return carry

    state, _, _ = lax.while_loop(lambda c: c[1] < len(program), sweep, (state, *choose(state)))
    return state


def pack_events(events: np.ndarray) -> np.ndarray:
    """Rows ``(cpu, op, vpn, arg, repeat)`` -> ``int32[..., 4]`` (op + 256 cpu, vpn, arg, repeat); ``arg`` of an access is 0."""
    packed = np.empty((*events.shape[:-1], 4), np.int32)
    cpu, op, vpn, arg, repeat = np.ascontiguousarray(np.moveaxis(events, -1, 0))
    packed[..., 0], packed[..., 1], packed[..., 3] = op + cpu * 256, vpn, repeat
    packed[..., 2] = arg * ((op != Op.LOAD) & (op != Op.STORE))
    return packed


assert set(KERNELS) == set(GROUPS)
