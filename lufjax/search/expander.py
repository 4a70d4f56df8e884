"""What applies entries to states for a search, and makes the keys of what follows: what it is given, what it gives back, and which there are.

On the cores of a CPU it is :mod:`lufjax.search.compiled`, on devices :mod:`lufjax.search.on_xla` and :mod:`lufjax.search.on_cuda`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
from jax import Array

from lufjax import counters
from lufjax.params import MachineShape
from lufjax.search.symmetry import Renaming, key_in_names
from lufjax.state import MachineState

DISABLED = -1
"""Outcome of an event that is not enabled; else the classes that it violates, as bits."""
DISABLED_AT = list(counters.SCALARS).index("events_disabled")
BAD_PHASE, BAD_KEY, STRAYED = 1 << 30, 1 << 29, 1 << 28
"""Bits of ``faults``, beside those of the fault word."""


class Compiled(NamedTuple):
    """What a program is compiled for.

    Attributes:
        shape: sizes of the machine. kernels: groups of phases that its entries can reach. arrays: name, shape and dtype of each array of its state,
            of its parameters and its trace. names: renamings, of which the smallest key is that of a state. rename, whole_tags, fast_frames: see
            :func:`lufjax.search.keys.key_of`.
    """

    shape: MachineShape
    kernels: tuple[str, ...]
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    names: tuple[Renaming, ...]
    rename: bool
    whole_tags: bool
    fast_frames: int

    def key_functions(self) -> list[Callable[[MachineState], Array]]:
        """The key of one machine in each of the names."""
        named = {"rename": self.rename, "whole_tags": self.whole_tags, "fast_frames": self.fast_frames}
        return [partial(key_in_names, self.shape, names, named) for names in self.names]

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each array of a state, in their order."""
        return {name: prod(size) for name, size, _ in self.arrays if name in MachineState._fields}

    @property
    def offsets(self) -> dict[str, int]:
        """Where each array of a state begins among the elements."""
        return dict(zip(self.sizes, accumulate([0, *self.sizes.values()]), strict=False))


@dataclass(frozen=True)
class Task:
    """The machine of a search.

    Attributes:
        compiled: what its program depends on. start: ``int32[elements]``, the state before any event. steps: event rows of an entry.
        events: ``int32[entries, longest sequence, 4]``, packed rows of each entry again and again. lengths: ``int32[entries]``, rows that are events.
    """

    compiled: Compiled
    start: np.ndarray
    steps: int
    events: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, eq=False)
class Form:
    """What rows and keys hold of a state.

    Attributes:
        index: ``int32[width]``, elements that are in a row; the others are those of the start. columns: ``int32[key width]``, values of a whole key
            that are in a key. fixed, reads: ``int32[elements]``, masks, 0 or -1: elements that have to be as at the start, and those that a key
            depends on.
    """

    index: np.ndarray
    columns: np.ndarray
    fixed: np.ndarray
    reads: np.ndarray


@dataclass(frozen=True)
class Batch:
    """What one entry each did to ``n`` states, and ``k`` of the states after those that were enabled and violated nothing.

    Attributes:
        pairs: ``int64[entries + 1, entries]``, enabled entries by the entry that reached the state, counted from 1, 0 for none.
        outcomes: ``int32[n]``, DISABLED, or the classes that were violated as bits. faults: of all, together.
        kept: ``int32[k]``, numbers of the ``k`` below ``n``. take: from numbers below ``k`` to rows, ``int32[., width]``. keys: ``uint64[k, words]``.
    """

    pairs: np.ndarray
    outcomes: np.ndarray
    faults: int
    kept: np.ndarray
    take: Callable[[np.ndarray], np.ndarray]
    keys: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """``int32[k, width]``."""
        return self.take(np.arange(len(self.kept)))

    def violates(self, kind: int) -> np.ndarray:
        """``bool[n]``: whether the class was violated."""
        return (self.outcomes != DISABLED) & ((self.outcomes >> kind & 1) > 0)


class Expander(Protocol):
    """A device. ``lanes``: entries of a batch at most."""

    lanes: int

    def expand(
        self, form: Form, params: np.ndarray, rows: np.ndarray, last: np.ndarray, which: np.ndarray, entries: np.ndarray, *, every: bool
    ) -> Batch:  # fmt: skip
        """Apply ``entries[i]`` to ``rows[which[i]]``.

        Args:
            params: of the machine. rows: ``int32[states, width]``. last: ``int32[states]``, the entry that reached each, -1 for none.
                which, entries: ``int32[n]``. every: keep also states of which the key shows no change.
        """
        ...

    def play(self, params: np.ndarray, events: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Whole sequences from the start.

        Args:
            events: ``int32[n, length, 4]``, packed rows; XLA compiles for each ``n`` and ``length``.
            index: ``int32[k]``, elements that are asked for.

        Returns:
            ``int32[n, k]``, of the states at the ends.
        """
        ...


def expander_of(backend: str, task: Task) -> Expander | None:
    """The device of a backend; None for ``native``.

    Raises:
        ValueError: there is none.
    """
    if backend == "xla":
        from lufjax.search.on_xla import XlaExpander

        return XlaExpander(task)
    if backend == "cuda":
        from lufjax.search.on_cuda import CudaExpander

        return CudaExpander(task)
    return None


def words_of(key_width: int) -> int:
    """64-bit words that hold a key."""
    return -(-key_width // 8)


def as_words(values: np.ndarray) -> np.ndarray:
    """``uint8[n, width]`` -> ``uint64[n, words]``, filled up with zeros; words compare as the values do, one after the other."""
    n, width = values.shape
    padded = np.zeros((n, 8 * words_of(width)), np.uint8)
    padded[:, :width] = values
    return padded.view(">u8").astype(np.uint64)


def as_values(keys: np.ndarray, width: int) -> np.ndarray:
    """Inverse of :func:`as_words`."""
    return keys.astype(">u8").view(np.uint8)[:, :width]


def count_pairs(num_entries: int, last: np.ndarray, which: np.ndarray, entries: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """``pairs`` of a batch."""
    place = (last[which] + 1) * num_entries + entries
    return np.bincount(place[outcomes != DISABLED], minlength=(num_entries + 1) * num_entries).reshape(num_entries + 1, num_entries)
