"""What follows a batch of states, as one XLA program: events run as in :mod:`lufjax.backends.rollout`, keys are vmapped over states."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lufjax import counters
from lufjax import state as st
from lufjax.backends import code_cache, rollout
from lufjax.backends.runners import LANES, ceil_power, jit_over_lanes, slots_for
from lufjax.params import MachineParams
from lufjax.phases import Phase
from lufjax.policy import FlushPolicy
from lufjax.search.expander import BAD_KEY, BAD_PHASE, DISABLED, DISABLED_AT, STRAYED, Batch, Compiled, Form, Task, as_words, count_pairs
from lufjax.search.keys import LARGEST, SMALLEST
from lufjax.state import MachineState

LANES_OF = {"cpu": 1024}
"""Entries that one device has in memory at a time, by platform."""
MOST_LANES = 32768
"""On platforms that are not named."""


class XlaExpander:
    """:class:`lufjax.search.expander.Expander` whose lanes are shared out to JAX's devices."""

    def __init__(self, task: Task, num_devices: int | None = None) -> None:
        code_cache.keep_xla_programs()
        devices = tuple(jax.devices()[:num_devices])
        per_device = LANES_OF.get(devices[0].platform, MOST_LANES)
        self.lanes, self._devices, self._task = len(devices) * per_device, len(devices), task
        self._mesh = mesh = Mesh(np.array(devices), (LANES,))
        self._everywhere, self._shared_out = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(LANES))
        self._program = program_for(task.compiled, per_device, mesh)
        self._place = jax.jit(_placed, out_shardings=self._shared_out)
        self._take = jax.jit(lambda rows, numbers, index: rows[numbers][:, index], out_shardings=self._shared_out)
        self._shared = [self._put(np.asarray(values, np.int32)) for values in (task.start, task.events, task.lengths)]

    def expand(
        self, form: Form, params: np.ndarray, rows: np.ndarray, last: np.ndarray, which: np.ndarray, entries: np.ndarray, *, every: bool
    ) -> Batch:  # fmt: skip
        """See the protocol."""
        n, index, (start, events, lengths) = len(which), self._put(form.index), self._shared
        before = self._place(start, index, self._put(_filled(rows, ceil_power(len(rows)))), self._lanes(which))
        given = self._lanes(entries), self._lanes(np.full(n, self._task.steps))
        after, *found = self._program(before, *given, self._put(params), self._put(form.fixed), self._put(form.reads), start, events, lengths)
        outcomes, faults, is_changed, keys = (np.asarray(values)[:n] for values in found)
        kept = np.flatnonzero((outcomes == 0) & (is_changed | every))

        def take(numbers: np.ndarray) -> np.ndarray:
            padded = _filled(kept[numbers], max(self._devices, ceil_power(len(numbers))))
            return np.asarray(self._take(after, jax.device_put(padded, self._shared_out), index))[: len(numbers)]

        pairs = count_pairs(len(self._task.lengths), last, which, entries, outcomes)
        own = as_words(keys[kept][:, form.columns])
        return Batch(pairs, outcomes, int(np.bitwise_or.reduce(faults, initial=0)), kept.astype(np.int32), take, own)

    def play(self, params: np.ndarray, events: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See the protocol."""
        n = -(-len(events) // self._devices) * self._devices
        program = player_for(self._task.compiled, n // self._devices, self._mesh)
        given = jax.device_put(_filled(events, n), self._shared_out), self._put(params), self._shared[0], self._put(index)
        return np.asarray(program(*given))[: len(events)]

    def _put(self, values: np.ndarray) -> Array:
        return jax.device_put(values, self._everywhere)

    def _lanes(self, values: np.ndarray) -> Array:
        return jax.device_put(_filled(values, self.lanes), self._shared_out)


def _placed(start: Array, index: Array, rows: Array, which: Array) -> Array:
    """All elements of the states in rows, for each lane."""
    whole = jnp.broadcast_to(start, (len(rows), len(start))).at[:, index].set(rows)
    return whole[which]


def _filled(values: np.ndarray, length: int) -> np.ndarray:
    """``int32[length, ...]``, with zeros after the values."""
    found = np.zeros((length, *values.shape[1:]), np.int32)
    found[: len(values)] = values
    return found


@lru_cache(maxsize=8)
def program_for(compiled: Compiled, lanes: int, mesh: Mesh) -> Callable[..., list[Array]]:
    """``(before, entries, steps, params, fixed, reads, start, events, lengths) -> (after, outcomes, faults, changed, keys)``, the first three and
    results by lane; ``changed``: whether a key may have; ``keys``: ``uint8[lanes, values]``, all values."""
    return jit_over_lanes(partial(_successors, compiled, slots_for(lanes)), mesh, "lllssssss")


@lru_cache(maxsize=8)
def player_for(compiled: Compiled, lanes: int, mesh: Mesh) -> Callable[..., Array]:
    """``(events, params, start, index) -> rows``, the first one and the result by lane."""
    return jit_over_lanes(partial(_played, compiled, slots_for(lanes)), mesh, "lsss")


def _played(compiled: Compiled, slots: int, events: Array, params: Array, start: Array, index: Array) -> Array:
    n, length, _ = events.shape
    state = _state_of(compiled, jnp.broadcast_to(start, (n, len(start))))
    lanes, stops = jnp.arange(n, dtype=jnp.int32), jnp.full(n, length, jnp.int32)
    return _rows_of(rollout.advance(compiled.shape, compiled.kernels, slots, _machine_params(params, n), state, events, lanes, stops))[:, index]


def _successors(
    compiled: Compiled, slots: int, before: Array, entries: Array, steps: Array, params: Array, fixed: Array, reads: Array, start: Array,
    events: Array, lengths: Array,
) -> list[Array]:  # fmt: skip
    offsets, n = compiled.offsets, len(before)
    def scalars(rows: Array, name: str) -> Array:
        bank, column = st.BANK_OF[name]
        return rows[:, offsets[bank] + column]

    stops = scalars(before, "cursor") + steps
    state = rollout.advance(compiled.shape, compiled.kernels, slots, _machine_params(params, n), _state_of(compiled, before), events, entries, stops)
    after = _rows_of(state)

    kinds = slice(offsets["violations"], offsets["violations"] + 2 * counters.NUM_CLASSES)
    is_new = (after[:, kinds] != before[:, kinds]).reshape(n, counters.NUM_CLASSES, 2).any(-1)
    violated = (is_new.astype(jnp.int32) << jnp.arange(counters.NUM_CLASSES)).sum(1)
    refused = (after - before)[:, offsets["counters"] + DISABLED_AT]
    outcomes = jnp.where(refused < lengths[entries], violated, DISABLED)

    phase = scalars(after, "phase")
    has_ended = ((phase == Phase.FETCH) | (phase == Phase.BACKGROUND)) & (scalars(after, "cursor") >= stops)
    keys, fits = jax.vmap(partial(_smallest_key, compiled))(state)
    has_strayed = ((after ^ start) & fixed).any(1)
    faults = scalars(after, "fault") | jnp.where(has_ended, 0, BAD_PHASE)
    faults |= jnp.where(outcomes == 0, jnp.where(fits, 0, BAD_KEY) | jnp.where(has_strayed, STRAYED, 0), 0)
    return [after, outcomes, jnp.where(steps > 0, faults, 0), ((after ^ before) & reads).any(1), keys]


def _machine_params(params: Array, num_lanes: int) -> MachineParams:
    """The same for all lanes."""
    own = len(MachineParams._fields) - 1
    fields = [jnp.broadcast_to(value, num_lanes) for value in params]
    return MachineParams(*fields[:own], policy=FlushPolicy(*fields[own:]))


def _rows_of(state: MachineState) -> Array:
    """``int32[lanes, elements]``."""
    return jnp.concatenate([lax.bitcast_convert_type(leaf, jnp.int32).reshape(len(leaf), -1) for leaf in state], axis=1)


def _state_of(compiled: Compiled, rows: Array) -> MachineState:
    """States of rows."""
    fields = {}
    for name, size, dtype in compiled.arrays:
        if name in MachineState._fields:
            first = compiled.offsets[name]
            own = rows[:, first : first + compiled.sizes[name]].reshape(-1, *size)
            fields[name] = lax.bitcast_convert_type(own, np.dtype(dtype))
    return MachineState(**fields)


def _smallest_key(compiled: Compiled, s: MachineState) -> tuple[Array, Array]:
    """``uint8[values]`` of one machine in those names that make it smallest, and whether all values fit in any."""
    smallest, *others = [key(s) for key in compiled.key_functions()]
    fits = jnp.all(jnp.array([(key >= SMALLEST).all() & (key <= LARGEST).all() for key in (smallest, *others)]))
    for key in others:
        place = jnp.argmax(key != smallest)
        smallest = jnp.where(key[place] < smallest[place], key, smallest)
    return (smallest - SMALLEST).astype(jnp.uint8), fits
