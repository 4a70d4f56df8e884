"""States of a search and what follows each: rows of all the arrays of one machine, a batch of events at a time, and their keys.

Rows are advanced by the kernels that every other run uses: natively in place (``native``), or unpacked on JAX's devices (``xla``).
"""

from __future__ import annotations

import ctypes
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from lufjax import counters, native, rollout
from lufjax import state as st
from lufjax.faults import ADVICE
from lufjax.policy import FlushPolicy
from lufjax.search.alphabet import Alphabet
from lufjax.search.keys import LARGEST, SMALLEST, key_of
from lufjax.search.symmetry import renamed, renamings
from lufjax.state import MachineState, init_state

DISABLED = list(counters.SCALARS).index("events_disabled")
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
    """States after one entry each. n: how many.

    Attributes:
        rows: ``int32[n, width]``. enabled: ``bool[n]``. violations: ``int32[n, classes]``, new ones by class.
        keys: ``uint8[n, key_width]``; only those of enabled states without a new violation mean anything.
    """

    rows: np.ndarray
    enabled: np.ndarray
    violations: np.ndarray
    keys: np.ndarray


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
        self._lengths = np.array([len(rows) for rows in alphabet.rows])
        padded = [np.concatenate([rows, np.zeros((self._steps - len(rows), 5), np.int32)]) for rows in alphabet.rows]
        self._events = rollout.pack_events(np.stack([np.tile(rows, (depth, 1)) for rows in padded]))
        ops = {int(op) for rows in alphabet.rows for op in np.unique(rows[:, 1])}
        self._program = native.compile_for(self.shape, rollout.program_for(ops, has_slow=params.fast_frames < params.frames_in_use))
        self.names = renamings(alphabet)[: None if symmetry else 1]
        self._whole_tags, self._pairs = tags_wrap(policy), has_pairs(policy)
        self._rename = symmetry and not self._pairs
        self._compiled: list[tuple[native.NativeProgram, int]] = []
        self._fast_frames = params.fast_frames
        self._params = np.array([*params[:-1], *params.policy], np.int32)

    @property
    def _keys(self) -> list[tuple[native.NativeProgram, int]]:
        """One program for each renaming; compiled when a key is first asked for, for all machines that were made from one."""
        if not self._compiled:
            shape, named = self.shape, {"rename": self._rename, "whole_tags": self._whole_tags, "fast_frames": self._fast_frames}
            keys = [lambda s, own=own: key_of(shape, renamed(shape, s, own), **named) for own in self.names]
            self._compiled.extend(native.compile_map(key, self._arrays) for key in keys)
        return self._compiled

    @property
    def key_width(self) -> int:
        """Bytes of a key."""
        return self._keys[0][1]

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
        """``uint8[n, key_width]``: the smallest key of a state in any names.

        Raises:
            RuntimeError: a value does not fit a byte.
        """
        found = self._keys_named(self._keys[0][0], rows)
        for program, _ in self._keys[1:]:
            other = self._keys_named(program, rows)
            differs = other != found
            first = differs.argmax(1)
            lanes = np.arange(len(rows))
            smaller = other[lanes, first] < found[lanes, first]
            found = np.where(smaller[:, None], other, found)
        return found

    def _keys_named(self, program: native.NativeProgram, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.key_width), np.int32)
        bases, strides = self._pointers(rows, [(out, self.key_width)])
        program.run(ctypes.addressof(bases), ctypes.addressof(strides), 0, len(rows))
        if len(out) and (out.min() < SMALLEST or out.max() > LARGEST):
            raise RuntimeError(f"a value of a key is outside {SMALLEST} to {LARGEST}")
        return (out - SMALLEST).astype(np.uint8)

    def after(self, rows: np.ndarray, entries: np.ndarray) -> Batch:
        """States after ``entries[i]`` from ``rows[i]``; the rows are changed in place.

        Raises:
            ValueError: the machine is too small for an event.
        """
        counted, flow = self.column("counters").start + DISABLED, self.column("flow").start
        kinds = self.column("violations")
        disabled, violations = rows[:, counted].copy(), rows[:, kinds].copy()
        stops = rows[:, flow + st.BANK_OF["cursor"][1]] + np.int32(self._steps)
        self._run(rows, self._events, np.ascontiguousarray(entries, np.int32), stops)
        enabled = rows[:, counted] - disabled < self._lengths[entries]
        new = (rows[:, kinds] - violations).reshape(len(rows), -1, 2).sum(2)
        return Batch(rows, enabled, new, self.keys(rows))

    def _run(self, rows: np.ndarray, events: np.ndarray, which: np.ndarray, stops: np.ndarray) -> None:
        """Advance rows in place, row ``i`` through ``events[which[i]]``."""
        bases, strides = self._pointers(rows, [(self._params, 0), (events, 0)])
        where, stride = (ctypes.addressof(bases), ctypes.addressof(strides)), int(np.prod(events.shape[1:]))
        if self._program.run(*where, which.ctypes.data, stride, stops.ctypes.data, 0, len(rows)):
            raise RuntimeError("an event met a phase that is not compiled in")
        fault = rows[:, self.column("flow").start + st.BANK_OF["fault"][1]]
        if fault.any():
            advice = "; ".join(text for bit, text in ADVICE.items() if int(np.bitwise_or.reduce(fault)) & bit)
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
        self._run(rows, events, np.arange(n, dtype=np.int32), stops)
        kinds, firsts = rows[:, self.column("violations")].reshape(n, -1, 2).sum(2), rows[:, self.column("first")].reshape(n, -1, 4)
        first = np.where(kinds > 0, (firsts[:, :, 0].astype(np.int64) - 1) // self._steps, -1)
        disabled = rows[:, self.column("counters").start + DISABLED]
        played = np.where(first < 0, length, first + 1).min(1)
        given = np.where(entries >= 0, self._lengths[entries], 0).sum(1) - disabled
        return given * played // length, first

    def _pointers(self, rows: np.ndarray, more: list[tuple[np.ndarray, int]]) -> tuple[Any, Any]:
        first = rows.ctypes.data
        bases = [first + 4 * int(offset) for offset in self._offsets[:-1]] + [array.ctypes.data for array, _ in more]
        strides = [self.width] * len(MachineState._fields) + [stride for _, stride in more]
        return (ctypes.c_void_p * len(bases))(*bases), (ctypes.c_int64 * len(strides))(*strides)
