"""States of a search and what follows each: rows of all the arrays of one machine, a batch of events at a time, and their keys.

Rows are advanced by the kernels that every other run uses: natively in place, or on a device (:mod:`lufjax.search.expander`).
"""

from __future__ import annotations

import ctypes
from copy import copy
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lufjax import state as st
from lufjax.backends import native, rollout
from lufjax.backends.runners import num_cores
from lufjax.counters import NUM_CLASSES
from lufjax.faults import ADVICE
from lufjax.params import has_slow
from lufjax.phases import Phase
from lufjax.policy import FlushPolicy
from lufjax.search.alphabet import Alphabet
from lufjax.search.compiled import FREE, FormProgram, SearchProgram, compile_form, compile_search
from lufjax.search.expander import (
    BAD_KEY,
    BAD_PHASE,
    DISABLED_AT,
    STRAYED,
    Batch,
    Compiled,
    Expander,
    Form,
    Task,
    as_values,
    as_words,
    expander_of,
    words_of,
)
from lufjax.search.hashing import Seen, nothing_seen
from lufjax.search.keys import LARGEST, SMALLEST
from lufjax.search.symmetry import Renaming, renamings
from lufjax.state import MachineState, init_state

STATISTICS = ("violations", "first", "received", "histograms", "counters")
"""Arrays that nothing is decided by: of the states of a search only the difference that an event makes to them is looked at."""
NATIVE_BATCH = 8192
"""Successors that one core has in memory at a time."""
NATIVE_SEQUENCES = 256
"""Sequences that one core has in memory at a time."""
PLAYED_BYTES = 2**28
"""Events of the sequences that a device has in memory at a time."""
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


class Room(NamedTuple):
    """Memory for the rows (``int32[n, width]``) and keys (``uint64[n, words]``) of a batch."""

    rows: np.ndarray
    keys: np.ndarray


class Machine:
    """One machine under one policy, as a function from states and entries to states.

    Args:
        alphabet: machine and entries. policy: its rules. depth: longest sequence that will be asked for. symmetry: states that differ in names only
            have one key. backend: what events run on, ``native``, ``xla`` or ``cuda``.

    Raises:
        ValueError: there is no such device.
    """

    def __init__(self, alphabet: Alphabet, policy: FlushPolicy, depth: int, *, symmetry: bool, backend: str = "native") -> None:
        self.alphabet, self.shape, self.depth = alphabet, alphabet.shape, depth
        params = alphabet.scenario.machine_params(policy)
        start = init_state(self.shape, params, alphabet.trace)
        self._whole_start = np.concatenate([np.asarray(leaf).view(np.int32).ravel() for leaf in start])
        self._steps = alphabet.rows_per_entry
        self._lengths = np.array([len(rows) for rows in alphabet.rows], np.int32)
        padded = [np.concatenate([rows, np.zeros((self._steps - len(rows), 5), np.int32)]) for rows in alphabet.rows]
        self._events = rollout.pack_events(np.stack([np.tile(rows, (depth, 1)) for rows in padded]))
        ops = {int(op) for rows in alphabet.rows for op in np.unique(rows[:, 1])}
        self._pairs = has_pairs(policy)
        self.compiled = Compiled(
            self.shape, rollout.program_for(ops, has_slow=has_slow(params)),
            tuple((name, size, np.dtype(dtype).str) for name, (size, dtype) in native.lane_arrays(start).items()),
            tuple(renamings(alphabet)[: None if symmetry else 1]), symmetry and not self._pairs, tags_wrap(policy), params.fast_frames,
        )  # fmt: skip
        width = len(self._whole_start)
        self._compiled: list[FormProgram] = []
        self._general, self._variants = self, dict[bytes, list[FormProgram]]()
        self._varies, self._index = np.ones(width, bool), np.arange(width, dtype=np.int32)
        self._params = np.array([*params[:-1], *params.policy], np.int32)
        self._device = expander_of(backend, Task(self.compiled, self._whole_start, self._steps, self._events, self._lengths))

    @property
    def names(self) -> tuple[Renaming, ...]:
        """Renamings that leave the machine as it is, the identity first."""
        return self.compiled.names

    @property
    def batch(self) -> int:
        """Entries that are best applied together."""
        return NATIVE_BATCH if self._device is None else self._device.lanes

    def sequences(self, length: int) -> int:
        """Sequences of so many entries that are best played together; of powers of two the largest."""
        if self._device is None:
            return NATIVE_SEQUENCES
        return 1 << (min(self._device.lanes, PLAYED_BYTES // (16 * self._steps * length)).bit_length() - 1)

    @property
    def native(self) -> Machine:
        """The same machine on the cores of the CPU."""
        other = copy(self)
        other._device = None
        return other

    @property
    def workers(self) -> int:
        """Threads that should call :meth:`after` at a time."""
        return num_cores() if self._device is None else 1

    @property
    def _code(self) -> FormProgram:
        """Compiled when a key is first asked for, for all machines that were made from one."""
        if not self._compiled:
            fixed = None if self._varies.all() else np.where(self._varies, FREE, self._whole_start).astype(np.int32)
            self._compiled.append(compile_form(self.compiled, fixed, self._index))
        return self._compiled[0]

    @cached_property
    def _form(self) -> Form:
        program = self._code
        fixed, reads = (np.negative(mask, dtype=np.int32) for mask in (~self._varies, program.reads))
        return Form(self._index, program.columns, fixed, reads)

    @cached_property
    def _program(self) -> SearchProgram:
        return compile_search(self.shape, self.compiled.kernels, self.compiled.arrays)

    @property
    def key_width(self) -> int:
        """Bytes of a key."""
        return len(self._code.columns)

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
        other.__dict__.pop("_form", None)
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
        start = dict(zip(general._code.columns.tolist(), as_values(general.keys(general.start), general.key_width)[0].tolist(), strict=True))
        places = {column: place for place, column in enumerate(other._code.columns.tolist())}
        theirs = as_values(keys, other.key_width)
        ours = np.empty((len(keys), self.key_width), np.uint8)
        for place, column in enumerate(self._code.columns.tolist()):
            ours[:, place] = theirs[:, places[column]] if column in places else start[column]
        return as_words(ours)

    def can_have(self, policy: FlushPolicy) -> bool:
        """Whether the states of this machine under other rules have the same keys."""
        return tags_wrap(policy) == self.compiled.whole_tags and has_pairs(policy) <= self._pairs

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
        first = self.compiled.offsets[name]
        return slice(first, first + self.compiled.sizes[name])

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """``uint64[n, words]``: the smallest key of each state in any names.

        Raises:
            RuntimeError: a value does not fit a byte.
        """
        n, rows = len(rows), np.ascontiguousarray(rows, np.int32)
        return self._after(rows, np.full(n, -1, np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.int32), 0, True, self.room(n)).keys

    def room(self, n: int) -> Room:
        """Memory for what follows ``n`` entries."""
        return Room(np.empty((n, self.width), np.int32), np.empty((n, words_of(self.key_width)), np.uint64))

    def after(
        self, rows: np.ndarray, which: np.ndarray, entries: np.ndarray, *, last: np.ndarray | None = None, every: bool = True,
        room: Room | None = None, seen: Seen | None = None,
    ) -> Batch:  # fmt: skip
        """What ``entries[i]`` does to ``rows[which[i]]``. May run on any thread.

        Args:
            last: the entry that reached each state, -1 for none.
            every: keep also states of which the key shows no change.
            seen: keys of which no states are wanted; a device hands them out all the same.
            room: where rows and keys of the batch are written, for at least as many entries; None for new memory, which takes longer. A device
                needs none.

        Raises:
            Strayed: an element that is held to be fixed is not.
            ValueError: the machine is too small for an event.
            RuntimeError: a value of a key does not fit a byte.
        """
        last = np.full(len(rows), -1) if last is None else last
        rows, last, which, entries = (np.ascontiguousarray(array, np.int32) for array in (rows, last, which, entries))
        if self._device is None or not len(which):
            return self._after(rows, last, which, entries, self._steps, every, room or self.room(len(which)), seen)
        return self._after_on(self._device, rows, last, which, entries, every)

    def _after_on(
        self, device: Expander, rows: np.ndarray, last: np.ndarray, which: np.ndarray, entries: np.ndarray, every: bool
    ) -> Batch:  # fmt: skip
        """As many at a time as the device takes."""
        if len(which) <= device.lanes:
            batch = device.expand(self._form, self._params, rows, last, which, entries, every=every)
            self._refuse(batch.faults)
            return batch
        parts = []
        for first in range(0, len(which), device.lanes):
            own = slice(first, first + device.lanes)
            states, numbers = np.unique(which[own], return_inverse=True)
            parts.append(self._after_on(device, rows[states], last[states], numbers.astype(np.int32), entries[own], every))
        kept = np.concatenate([part.kept + number * device.lanes for number, part in enumerate(parts)])
        begins = np.cumsum([0, *(len(part.kept) for part in parts)])

        def take(numbers: np.ndarray) -> np.ndarray:
            of = np.searchsorted(begins[1:], numbers, "right")
            taken = np.empty((len(numbers), self.width), np.int32)
            for number, part in enumerate(parts):
                taken[of == number] = part.take(numbers[of == number] - begins[number])
            return taken

        outcomes, keys = (np.concatenate([getattr(part, name) for part in parts]) for name in ("outcomes", "keys"))
        return Batch(np.sum([part.pairs for part in parts], axis=0), outcomes, 0, kept, take, keys)

    def _after(
        self, rows: np.ndarray, last: np.ndarray, which: np.ndarray, entries: np.ndarray, steps: int, every: bool, room: Room,
        seen: Seen | None = None,
    ) -> Batch:  # fmt: skip
        n, words = len(which), words_of(self.key_width)
        out, keys, seen = room.rows, room.keys, seen or nothing_seen(words)
        kept, outcomes, faults = np.empty(n, np.int32), np.empty(n, np.int32), np.zeros(1, np.int32)
        pairs = np.zeros((len(self._lengths) + 1, len(self._lengths)), np.int64)
        given = (*(array.ctypes.data for array in (rows, last, which, entries)), n, self._params.ctypes.data, self._events.ctypes.data)
        own = (self._lengths.ctypes.data, steps, len(self._lengths), self._whole_start.ctypes.data, every)
        known = (seen.slots.ctypes.data, len(seen.slots) - 1, seen.keys.ctypes.data, seen.count, seen.factors.ctypes.data)
        results = (array.ctypes.data for array in (out, kept, keys, outcomes, pairs, faults))
        stride = int(np.prod(self._events.shape[1:]))
        count = self._code.successors(self._program.run_lane, *given, stride, *own, *known, *results)
        self._refuse(int(faults[0]))
        return Batch(pairs, outcomes, 0, kept[:count], out[:count].__getitem__, keys[:count])

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
        index = np.concatenate([self._elements(name) for name in ("violations", "first", "fault", "phase", "cursor", "events_disabled")])
        ends = self._play_natively(events, index) if self._device is None else self._device.play(self._params, events, index)
        kinds, firsts, scalars = np.split(ends, [2 * NUM_CLASSES, 6 * NUM_CLASSES], axis=1)
        faults, phase, cursor, disabled = scalars.T
        has_ended = np.isin(phase, (Phase.FETCH, Phase.BACKGROUND)) & (cursor >= events.shape[1])
        self._refuse(int(np.bitwise_or.reduce(faults)) | (0 if has_ended.all() else BAD_PHASE))
        first = np.where(kinds.reshape(n, -1, 2).sum(2) > 0, (firsts[:, ::4].astype(np.int64) - 1) // self._steps, -1)
        played = np.where(first < 0, length, first + 1).min(1)
        given = np.where(entries >= 0, self._lengths[entries], 0).sum(1) - disabled
        return given * played // length, first

    def _elements(self, name: str) -> np.ndarray:
        """Elements of an array of the state, or the one of a scalar."""
        if name in MachineState._fields:
            return np.arange(self.column(name).start, self.column(name).stop, dtype=np.int32)
        bank, column = ("counters", DISABLED_AT) if name == "events_disabled" else st.BANK_OF[name]
        return np.array([self.column(bank).start + column], np.int32)

    def _play_natively(self, events: np.ndarray, index: np.ndarray) -> np.ndarray:
        n, length, _ = events.shape
        rows, which, stops = np.repeat(self._whole_start[None], n, axis=0), np.arange(n, dtype=np.int32), np.full(n, length, np.int32)
        first = rows.ctypes.data
        bases = [first + 4 * offset for offset in self.compiled.offsets.values()] + [self._params.ctypes.data, events.ctypes.data]
        strides = [rows.shape[1]] * len(MachineState._fields) + [0, 0]
        where = (ctypes.c_void_p * len(bases))(*bases), (ctypes.c_int64 * len(strides))(*strides)
        program = native.compile_for(self.shape, self.compiled.kernels)
        program.run(*map(ctypes.addressof, where), which.ctypes.data, 4 * length, stops.ctypes.data, 0, n)
        return rows[:, index]
