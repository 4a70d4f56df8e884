"""States of a search and what follows each: rows of all the arrays of one machine, a batch of events at a time, and their keys.

Rows are advanced by the kernels that every other run uses: natively in place (``native``), or unpacked on JAX's devices (``xla``).
"""

from __future__ import annotations

import ctypes
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from jax import Array

from lufjax import counters, native, rollout
from lufjax import state as st
from lufjax.faults import ADVICE
from lufjax.params import MachineShape
from lufjax.policy import FlushPolicy
from lufjax.search.alphabet import Alphabet
from lufjax.search.compiled import BAD_KEY, BAD_PHASE, DISABLED, SearchProgram, compile_key, compile_search, words_of
from lufjax.search.keys import LARGEST, SMALLEST, key_of
from lufjax.search.symmetry import Renaming, renamed, renamings
from lufjax.state import MachineState, init_state

EVENTS_DISABLED = list(counters.SCALARS).index("events_disabled")
WIDE = 12
"""Bits of generations that no search wraps: 2048 of them would have to pass while a frame is free."""


def tags_wrap(policy: FlushPolicy) -> bool:
    """Whether generations are so narrow that a search may see their numbers wrap; then states keep them whole."""
    return int(policy.gen_bits) < WIDE


def has_pairs(policy: FlushPolicy) -> bool:
    """Whether frames have buddies, so that their numbers matter."""
    return bool(policy.buddy_merge)


@dataclass(frozen=True)
class Batch:
    """What one entry each did to ``n`` states, and the ``k`` states after those that were enabled and violated nothing.

    Attributes:
        outcomes: ``int32[n]``, DISABLED, or the classes that were violated as bits. kept: ``int32[k]``, numbers of the ``k`` below ``n``.
        rows: ``int32[k, width]``. keys: ``uint64[k, words]``.
    """

    outcomes: np.ndarray
    kept: np.ndarray
    rows: np.ndarray
    keys: np.ndarray

    @property
    def enabled(self) -> np.ndarray:
        """``bool[n]``."""
        return self.outcomes != DISABLED

    def violates(self, kind: int) -> np.ndarray:
        """``bool[n]``: whether the class was violated."""
        return self.enabled & ((self.outcomes >> kind & 1) > 0)


def _key_named(shape: MachineShape, names: Renaming, named: dict[str, Any], s: MachineState) -> Array:
    """The key of a machine in other names."""
    return key_of(shape, renamed(shape, s, names), **named)


class Machine:
    """One machine under one policy, as a function from states and entries to states.

    Args:
        alphabet: machine and entries. policy: its rules. depth: longest sequence that will be asked for. symmetry: states that differ in names only
            have one key.
    """

    def __init__(self, alphabet: Alphabet, policy: FlushPolicy, depth: int, *, symmetry: bool) -> None:
        self.alphabet, self.shape = alphabet, alphabet.shape
        params = alphabet.scenario.machine_params(policy)
        start = init_state(self.shape, params, alphabet.trace)
        self._arrays = native.lane_arrays(start)
        sizes = [int(np.prod(self._arrays[name][0], dtype=int)) for name in MachineState._fields]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.width = int(self._offsets[-1])
        self.start = np.concatenate([np.asarray(leaf).view(np.int32).ravel() for leaf in start])[None]
        self._steps = alphabet.rows_per_entry
        self._lengths = np.array([len(rows) for rows in alphabet.rows], np.int32)
        padded = [np.concatenate([rows, np.zeros((self._steps - len(rows), 5), np.int32)]) for rows in alphabet.rows]
        self._events = rollout.pack_events(np.stack([np.tile(rows, (depth, 1)) for rows in padded]))
        ops = {int(op) for rows in alphabet.rows for op in np.unique(rows[:, 1])}
        self._kernels = rollout.program_for(ops, has_slow=params.fast_frames < params.frames_in_use)
        self.names = renamings(alphabet)[: None if symmetry else 1]
        self._whole_tags, self._pairs = tags_wrap(policy), has_pairs(policy)
        self._rename = symmetry and not self._pairs
        self._compiled: list[tuple[Any, int, int]] = []
        self._fast_frames = params.fast_frames
        self._params = np.array([*params[:-1], *params.policy], np.int32)

    @property
    def _keys(self) -> list[tuple[Any, int, int]]:
        """One function for each renaming; compiled when a key is first asked for, for all machines that were made from one."""
        if not self._compiled:
            shape, named = self.shape, {"rename": self._rename, "whole_tags": self._whole_tags, "fast_frames": self._fast_frames}
            for own in self.names:
                key = partial(_key_named, shape, own, named)
                self._compiled.append(compile_key(key, self._arrays, (shape, own, sorted(named.items()))))
        return self._compiled

    @cached_property
    def _program(self) -> SearchProgram:
        arrays = tuple((name, size, np.dtype(dtype).str) for name, (size, dtype) in self._arrays.items())
        return compile_search(self.shape, self._kernels, arrays, words_of(self.key_width))

    @property
    def key_width(self) -> int:
        """Bytes of a key."""
        return self._keys[0][2]

    def can_have(self, policy: FlushPolicy) -> bool:
        """Whether the states of this machine under other rules have the same keys."""
        return tags_wrap(policy) == self._whole_tags and has_pairs(policy) <= self._pairs

    def with_policy(self, policy: FlushPolicy) -> Machine:
        """The same machine under other rules; nothing is compiled again.

        Raises:
            ValueError: the other rules need another key.
        """
        if not self.can_have(policy):
            raise ValueError("policy.gen_bits, policy.buddy_merge: need another key")
        other = copy(self)
        params = self.alphabet.scenario.machine_params(policy)
        other._params = np.array([*params[:-1], *params.policy], np.int32)
        return other

    def column(self, name: str) -> slice:
        """Where an array of the state lies in a row."""
        index = MachineState._fields.index(name)
        return slice(int(self._offsets[index]), int(self._offsets[index + 1]))

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """``uint64[n, words]``: the smallest key of each state in any names.

        Raises:
            RuntimeError: a value does not fit a byte.
        """
        return self._after(rows, np.arange(len(rows)), np.zeros(len(rows)), 0).keys

    def after(self, rows: np.ndarray, which: np.ndarray, entries: np.ndarray) -> Batch:
        """What ``entries[i]`` does to ``rows[which[i]]``. May run on any thread.

        Raises:
            ValueError: the machine is too small for an event.
            RuntimeError: a value of a key does not fit a byte.
        """
        return self._after(rows, which, entries, self._steps)

    def _after(self, rows: np.ndarray, which: np.ndarray, entries: np.ndarray, steps: int) -> Batch:
        n, words, functions = len(which), words_of(self.key_width), np.array([address for _, address, _ in self._keys], np.uint64)
        rows, which, entries = np.ascontiguousarray(rows), np.ascontiguousarray(which, np.int32), np.ascontiguousarray(entries, np.int32)
        out, keys = np.empty((n, self.width), np.int32), np.empty((n, words), np.uint64)
        kept, outcomes, faults = np.empty(n, np.int32), np.empty(n, np.int32), np.zeros(1, np.int32)
        given = (*(array.ctypes.data for array in (rows, which, entries)), n, self._params.ctypes.data, self._events.ctypes.data)
        results = (array.ctypes.data for array in (out, kept, keys, outcomes, faults))
        stride = int(np.prod(self._events.shape[1:]))
        count = self._program.successors(*given, stride, self._lengths.ctypes.data, steps, functions.ctypes.data, len(functions), *results)
        self._refuse(int(faults[0]))
        return Batch(outcomes, kept[:count], out[:count], keys[:count])

    def _refuse(self, faults: int) -> None:
        if faults & BAD_PHASE:
            raise RuntimeError("an event met a phase that is not compiled in")
        if faults & BAD_KEY:
            raise RuntimeError(f"a value of a key is outside {SMALLEST} to {LARGEST}")
        if faults:
            advice = "; ".join(text for bit, text in ADVICE.items() if faults & bit)
            raise ValueError(f"{self.alphabet.scenario.path}: {advice}")

    def play(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole sequences from the start.

        Args:
            entries: ``int64[n, length]``; -1 leaves an entry out.

        Returns:
            ``int64[n]``: enabled event rows up to the first violation; ``int64[n, classes]``: the entry that first violated, by class, -1 for none.
        """
        n, length = entries.shape
        padded = np.concatenate([self._events[:, : self._steps], np.zeros((1, self._steps, 4), np.int32)])
        events = padded[entries].reshape(n, length * self._steps, 4)
        rows = np.repeat(self.start, n, axis=0)
        stops = np.full(n, length * self._steps, np.int32)
        first, which = rows.ctypes.data, np.arange(n, dtype=np.int32)
        bases = [first + 4 * int(offset) for offset in self._offsets[:-1]] + [self._params.ctypes.data, events.ctypes.data]
        strides = [self.width] * len(MachineState._fields) + [0, 0]
        where = (ctypes.c_void_p * len(bases))(*bases), (ctypes.c_int64 * len(strides))(*strides)
        program = native.compile_for(self.shape, self._kernels)
        bad = program.run(*map(ctypes.addressof, where), which.ctypes.data, 4 * length * self._steps, stops.ctypes.data, 0, n)
        faults = np.bitwise_or.reduce(rows[:, self.column("flow").start + st.BANK_OF["fault"][1]])
        self._refuse(int(faults) | (BAD_PHASE if bad else 0))
        kinds, firsts = rows[:, self.column("violations")].reshape(n, -1, 2).sum(2), rows[:, self.column("first")].reshape(n, -1, 4)
        first = np.where(kinds > 0, (firsts[:, :, 0].astype(np.int64) - 1) // self._steps, -1)
        disabled = rows[:, self.column("counters").start + EVENTS_DISABLED]
        played = np.where(first < 0, length, first + 1).min(1)
        given = np.where(entries >= 0, self._lengths[entries], 0).sum(1) - disabled
        return given * played // length, first
