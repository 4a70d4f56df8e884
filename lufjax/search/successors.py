"""States of a search and what follows each: rows of all the arrays of one machine, a batch of events at a time, and their keys.

Rows are advanced by the kernels that every other run uses: natively in place (``native``), or unpacked on JAX's devices (``xla``).
"""

from __future__ import annotations

import ctypes
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from lufjax import counters
from lufjax import state as st
from lufjax.backends import native, rollout
from lufjax.faults import ADVICE
from lufjax.params import MachineShape, has_slow
from lufjax.policy import FlushPolicy
from lufjax.search.alphabet import Alphabet
from lufjax.search.compiled import BAD_KEY, BAD_PHASE, DISABLED, FREE, STRAYED, KeyProgram, SearchProgram, compile_keys, compile_search, words_of
from lufjax.search.keys import LARGEST, SMALLEST, key_of
from lufjax.search.symmetry import Renaming, renamed, renamings
from lufjax.state import MachineState, init_state

EVENTS_DISABLED = list(counters.SCALARS).index("events_disabled")
STATISTICS = ("violations", "first", "received", "histograms", "counters")
"""Arrays that nothing is decided by: of the states of a search only the difference that an event makes to them is looked at."""
WIDE = 12
"""Bits of generations that no search wraps: 2048 of them would have to pass while a frame is free."""


class Strayed(Exception):
    """An element of a state that keys hold to be fixed is not as at the start."""


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
        rows: ``int32[k, width]``. keys: ``uint64[k, words]``. pairs: ``int64[entries + 1, entries]``, enabled entries by the entry that reached the
            state, counted from 1, 0 for none.
    """

    pairs: np.ndarray
    outcomes: np.ndarray
    kept: np.ndarray
    rows: np.ndarray
    keys: np.ndarray

    def violates(self, kind: int) -> np.ndarray:
        """``bool[n]``: whether the class was violated."""
        return (self.outcomes != DISABLED) & ((self.outcomes >> kind & 1) > 0)


class Room(NamedTuple):
    """Memory for the rows (``int32[n, width]``) and keys (``uint64[n, words]``) of a batch."""

    rows: np.ndarray
    keys: np.ndarray


def _key_named(shape: MachineShape, names: Renaming, named: dict[str, Any], s: MachineState) -> Array:
    """The key of a machine in other names."""
    return key_of(shape, renamed(shape, s, names), **named)


def _bytes_of(keys: np.ndarray, width: int) -> np.ndarray:
    """The values of keys, above the smallest: ``uint8[n, width]``; words compare as their bytes do, one after the other."""
    return keys.astype(">u8").view(np.uint8)[:, :width]


def _words_of(values: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_bytes_of`."""
    n, width = values.shape
    padded = np.zeros((n, 8 * words_of(width)), np.uint8)
    padded[:, :width] = values
    return padded.view(">u8").astype(np.uint64)


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
        width = int(self._offsets[-1])
        self._whole_start = np.concatenate([np.asarray(leaf).view(np.int32).ravel() for leaf in start])
        self._steps = alphabet.rows_per_entry
        self._lengths = np.array([len(rows) for rows in alphabet.rows], np.int32)
        padded = [np.concatenate([rows, np.zeros((self._steps - len(rows), 5), np.int32)]) for rows in alphabet.rows]
        self._events = rollout.pack_events(np.stack([np.tile(rows, (depth, 1)) for rows in padded]))
        ops = {int(op) for rows in alphabet.rows for op in np.unique(rows[:, 1])}
        self._kernels = rollout.program_for(ops, has_slow=has_slow(params))
        self.names = renamings(alphabet)[: None if symmetry else 1]
        self._whole_tags, self._pairs = tags_wrap(policy), has_pairs(policy)
        self._rename = symmetry and not self._pairs
        self._compiled: list[KeyProgram] = []
        self._general, self._variants = self, dict[bytes, list[KeyProgram]]()
        self._varies, self._index = np.ones(width, bool), np.arange(width, dtype=np.int32)
        self._fast_frames = params.fast_frames
        self._params = np.array([*params[:-1], *params.policy], np.int32)

    @property
    def _keys(self) -> KeyProgram:
        """Compiled when a key is first asked for, for all machines that were made from one."""
        if not self._compiled:
            shape, named = self.shape, {"rename": self._rename, "whole_tags": self._whole_tags, "fast_frames": self._fast_frames}
            functions = [partial(_key_named, shape, own, named) for own in self.names]
            fixed = None if self._varies.all() else np.where(self._varies, FREE, self._whole_start).astype(np.int32)
            self._compiled.append(compile_keys(functions, self._arrays, fixed, (shape, tuple(self.names), sorted(named.items()))))
        return self._compiled[0]

    @cached_property
    def _program(self) -> SearchProgram:
        arrays = tuple((name, size, np.dtype(dtype).str) for name, (size, dtype) in self._arrays.items())
        return compile_search(self.shape, self._kernels, arrays)

    @property
    def key_width(self) -> int:
        """Bytes of a key."""
        return len(self._keys.columns)

    def with_varying(self, varies: np.ndarray) -> Machine:
        """The same machine with shorter keys and rows, which hold as long as all elements of states but these are as at the start.

        Args:
            varies: ``bool[elements]``.
        """
        statistics = np.zeros(len(varies), bool)
        for name in STATISTICS:
            statistics[self.column(name)] = True
        other = copy(self)
        other._varies, other._index = varies | statistics, np.flatnonzero(varies & ~statistics).astype(np.int32)
        other._compiled = self._variants.setdefault(other._varies.tobytes(), [])
        return other

    def arrays_of(self, elements: np.ndarray) -> np.ndarray:
        """``bool[elements]``: the arrays of a state that have one of these elements, whole."""
        whole = np.zeros_like(elements)
        for name in MachineState._fields:
            whole[self.column(name)] = elements[self.column(name)].any()
        return whole

    @property
    def varies(self) -> np.ndarray:
        """``bool[elements]``: what is not held to be as at the start."""
        return self._varies

    @property
    def width(self) -> int:
        """Elements of a state that are in a row."""
        return len(self._index)

    @property
    def start(self) -> np.ndarray:
        """``int32[1, width]``, the state before any event."""
        return self._whole_start[None, self._index]

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """``int32[n, elements]``: all elements of the states in ``rows``; statistics as at the start, if rows are without them."""
        found = np.repeat(self._whole_start[None], len(rows), axis=0)
        found[:, self._index] = rows
        return found

    def rows_of(self, whole: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`whole`.

        Raises:
            Strayed: an element that is held to be fixed is not as at the start.
        """
        if (whole != self._whole_start)[:, ~self._varies].any():
            raise Strayed
        return whole[:, self._index]

    def keys_from(self, other: Machine, keys: np.ndarray) -> np.ndarray:
        """Keys of this machine, from those that another gave that differs in what varies only.

        An element that does not vary there is as at the start; one that does not vary here has to be so in all these states.
        """
        general = self._general
        start = dict(zip(general._keys.columns.tolist(), _bytes_of(general.keys(general.start), general.key_width)[0].tolist(), strict=True))
        places = {column: place for place, column in enumerate(other._keys.columns.tolist())}
        theirs = _bytes_of(keys, other.key_width)
        ours = np.empty((len(keys), self.key_width), np.uint8)
        for place, column in enumerate(self._keys.columns.tolist()):
            ours[:, place] = theirs[:, places[column]] if column in places else start[column]
        return _words_of(ours)

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
        return self._after(rows, np.arange(len(rows)), np.zeros(len(rows)), 0, True, self.room(len(rows))).keys

    def room(self, n: int) -> Room:
        """Memory for what follows ``n`` entries."""
        return Room(np.empty((n, self.width), np.int32), np.empty((n, words_of(self.key_width)), np.uint64))

    def after(
        self, rows: np.ndarray, which: np.ndarray, entries: np.ndarray, *, last: np.ndarray | None = None, every: bool = True,
        room: Room | None = None,
    ) -> Batch:  # fmt: skip
        """What ``entries[i]`` does to ``rows[which[i]]``. May run on any thread.

        Args:
            last: the entry that reached each state, -1 for none.
            every: keep also states of which the key shows no change.
            room: where rows and keys of the batch are written, for at least as many entries; None for new memory, which takes longer.

        Raises:
            Strayed: an element that is held to be fixed is not.
            ValueError: the machine is too small for an event.
            RuntimeError: a value of a key does not fit a byte.
        """
        return self._after(rows, which, entries, self._steps, every, room or self.room(len(which)), last)

    def _after(
        self, rows: np.ndarray, which: np.ndarray, entries: np.ndarray, steps: int, every: bool, room: Room, last: np.ndarray | None = None
    ) -> Batch:
        n, program, words, functions = len(which), self._keys, words_of(self.key_width), self._keys.functions
        last = np.full(len(rows), -1) if last is None else last
        rows, last, which, entries = (np.ascontiguousarray(array, np.int32) for array in (rows, last, which, entries))
        fixed, reads = (np.negative(mask, dtype=np.int32) for mask in (~self._varies, program.reads))
        out, keys = room.rows, room.keys
        kept, outcomes, faults = np.empty(n, np.int32), np.empty(n, np.int32), np.zeros(1, np.int32)
        pairs = np.zeros((len(self._lengths) + 1, len(self._lengths)), np.int64)
        given = (*(array.ctypes.data for array in (rows, last, which, entries)), n, self._params.ctypes.data, self._events.ctypes.data)
        masks = (*(array.ctypes.data for array in (self._whole_start, fixed, reads, self._index)), self.width, every)
        results = (array.ctypes.data for array in (out, kept, keys, outcomes, pairs, faults))
        stride = int(np.prod(self._events.shape[1:]))
        count = self._program.successors(
            *given, stride, self._lengths.ctypes.data, steps, len(self._lengths), functions.ctypes.data, len(functions), words, *masks, *results
        )
        self._refuse(int(faults[0]))
        return Batch(pairs, outcomes, kept[:count], out[:count], keys[:count])

    def _refuse(self, faults: int) -> None:
        if faults & BAD_PHASE:
            raise RuntimeError("an event met a phase that is not compiled in")
        if faults & BAD_KEY:
            raise RuntimeError(f"a value of a key is outside {SMALLEST} to {LARGEST}")
        if faults & STRAYED:
            raise Strayed
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
        rows = np.repeat(self._whole_start[None], n, axis=0)
        stops = np.full(n, length * self._steps, np.int32)
        first, which = rows.ctypes.data, np.arange(n, dtype=np.int32)
        bases = [first + 4 * int(offset) for offset in self._offsets[:-1]] + [self._params.ctypes.data, events.ctypes.data]
        strides = [rows.shape[1]] * len(MachineState._fields) + [0, 0]
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
