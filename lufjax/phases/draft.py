"""One machine in one phase: what the kernel reads, and the writes that it leaves behind.

All reads see the state as it was when the phase began; the writes are applied together afterwards, for many machines at once. Reading an
array after writing it is refused while tracing, because it would read the old value (and make XLA copy the array). Scalars, CPU sets and
counters are local: they may be read and set at will.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from lufjax import counters as names
from lufjax import state as st
from lufjax.events import Payer, VmaFlag
from lufjax.kernels import cpumask
from lufjax.kernels.rows import log2_bucket
from lufjax.params import MachineParams, MachineShape
from lufjax.phases import Phase

COUNTER = {name: column for column, name in enumerate(names.SCALARS)}
HISTOGRAM = {name: row for row, name in enumerate(names.HISTOGRAMS)}
Index = tuple[Any, ...]


class Write(NamedTuple):
    """One write: ``array[lane, *index] = value`` (or ``+=``) where ``enabled``. ``index`` holds arrays and static slices."""

    array: str
    is_add: bool
    index: Index
    value: Array
    enabled: Array


Target = tuple[str, bool, tuple[slice | None, ...]]
"""What a write addresses, without its values: array, whether it adds, and the index with None for each dynamic part."""


def split_writes(writes: list[Write]) -> tuple[list[Target], list[tuple[list[Array], Array, Array]]]:
    """The static half of writes, and the traced half: dynamic indices, value, enabled."""
    targets: list[Target] = [(w.array, w.is_add, tuple(i if isinstance(i, slice) else None for i in w.index)) for w in writes]
    return targets, [([jnp.asarray(i, jnp.int32) for i in w.index if not isinstance(i, slice)], w.value, w.enabled) for w in writes]


class Scalars:
    """The scalars of a machine by name; a bank is read when one of its scalars is first used, and written back if one was set."""

    def __init__(self, read: Callable[[str], Array]) -> None:
        self._read: Callable[[str], Array]
        self._values: dict[str, Array]
        self._dirty: list[str]
        object.__setattr__(self, "_read", read)
        object.__setattr__(self, "_values", {})
        object.__setattr__(self, "_dirty", [])

    def _load(self, bank: str) -> None:
        if st.BANKS[bank][0] not in self._values:
            row = self._read(bank)
            self._values.update({name: row[column] for column, name in enumerate(st.BANKS[bank])})

    def __getattr__(self, name: str) -> Array:
        self._load(st.BANK_OF[name][0])
        return self._values[name]

    def __setattr__(self, name: str, value: Array) -> None:
        bank = st.BANK_OF[name][0]
        self._load(bank)
        self._values[name] = value.astype(jnp.int32)
        if bank not in self._dirty:
            self._dirty.append(bank)

    def rows(self) -> dict[str, Array]:
        """The banks to write back."""
        return {bank: jnp.stack([self._values[name] for name in st.BANKS[bank]]) for bank in self._dirty}


class Draft:
    """One machine in one phase.

    Attributes:
        shape: static sizes. p: traced parameters. rules: policy record.
        read: how an array of this machine is read; "events" is the trace that drives it. dtype_of: dtype of an array.
        r: scalars (``state.BANKS``). The CPU sets ``state.MASKS`` are attributes of their own names.
        now: number of the event in flight. c, op, v, arg, repeat: its row. m: the process loaded on ``c`` (0 if none).
    """

    def __init__(
        self, shape: MachineShape, params: MachineParams, read: Callable[[str, Index], Array], dtype_of: Callable[[str], Any],
        split: Callable[[Array], Array] = lambda condition: condition,
    ) -> None:  # fmt: skip
        self.shape, self.p, self.rules = shape, params, params.policy
        self._read, self._dtype_of, self.split = read, dtype_of, split
        self._writes: list[Write] = []
        self._written: set[str] = set()
        self._counts: dict[str, Array] = {}
        self._masks: dict[str, Array] = {}
        self.words = st.num_words(shape.num_cpus)
        self.r = Scalars(self.get)
        row = self.get("events", self.r.cursor)
        self.now = self.r.cursor + 1
        self.op, self.c = row[0] & 255, row[0] >> 8
        self.v, self.arg, self.repeat = row[1], row[2], row[3]
        self.cpu_row = self.get("cpu", self.c)
        self.loaded = self.cpu_row[st.LOADED]
        self.m = jnp.maximum(self.loaded, 0)
        self.pid = self.m * shape.num_vpns + self.v

    def __getattr__(self, name: str) -> Array:
        if name not in st.MASKS:
            raise AttributeError(name)
        if name not in self._masks:
            self._masks[name] = self.get("masks", st.MASKS.index(name))
        return self._masks[name]

    def set_mask(self, name: str, value: Array, enabled: Array) -> None:
        """Set a CPU set."""
        self._masks[name] = jnp.where(enabled, value, getattr(self, name))
        self._written.add(name)

    def get(self, array: str, *index: Any) -> Array:
        """Read ``array[index]`` of this machine; an index outside reads the nearest element (only what is then not used)."""
        if array in self._written:
            raise AssertionError(f"{array} is read after it was written in the same phase")
        return self._read(array, index)

    def put(self, array: str, index: Any, value: Any, enabled: Array) -> None:
        """Write ``array[index] = value`` if ``enabled``; an index may be a vector, then so are value and ``enabled``."""
        self._write(array, False, index, value, enabled)

    def add(self, array: str, index: Any, value: Any, enabled: Array) -> None:
        """Add to ``array[index]`` if ``enabled``."""
        self._write(array, True, index, value, enabled)

    def _write(self, array: str, is_add: bool, index: Any, value: Any, enabled: Array) -> None:
        index = index if isinstance(index, tuple) else (index,)
        self._written.add(array)
        self._writes.append(Write(array, is_add, index, jnp.asarray(value, self._dtype_of(array)), enabled))

    def finish(self) -> list[Write]:
        """The writes of this phase."""
        yes = jnp.bool_(True)
        for bank, row in self.r.rows().items():
            self._write(bank, False, (), row, yes)
        for name in st.MASKS:
            if name in self._written:
                self._write("masks", False, (jnp.int32(st.MASKS.index(name)),), self._masks[name], yes)
        columns = sorted(COUNTER[name] for name in self._counts)
        by_column = {COUNTER[name]: value for name, value in self._counts.items()}
        for start, stop in _runs(columns):
            self._write("counters", True, (slice(start, stop),), jnp.stack([by_column[c] for c in range(start, stop)]), yes)
        return self._writes

    def count(self, name: str, enabled: Array, amount: Array | int = 1) -> None:
        """Add ``amount`` to a counter."""
        added = jnp.where(enabled, amount, 0).astype(jnp.int32)
        self._counts[name] = self._counts[name] + added if name in self._counts else added

    def tally(self, name: str, value: Array, enabled: Array, amount: Array | int = 1) -> None:
        """Add ``amount`` to the log2 bucket of ``value`` in a histogram."""
        self.add("histograms", (jnp.int32(HISTOGRAM[name]), log2_bucket(value)), amount, enabled)

    def goto(self, phase: Array | Phase, enabled: Array) -> None:
        """Continue in ``phase``."""
        self.put_regs(enabled, phase=phase)

    def put_regs(self, enabled: Array, **values: Any) -> None:
        """Set scalars."""
        for name, value in values.items():
            setattr(self.r, name, jnp.where(enabled, jnp.asarray(value, jnp.int32), getattr(self.r, name)))

    def bump(self, name: str, enabled: Array, amount: Array | int = 1) -> None:
        """Add to a scalar."""
        setattr(self.r, name, getattr(self.r, name) + jnp.where(enabled, amount, 0))

    def fault(self, bit: int, enabled: Array) -> None:
        """Raise an engine fault; the lane goes on and its result is refused."""
        self.r.fault = self.r.fault | jnp.where(enabled, jnp.int32(bit), 0)

    def complete(self, enabled: Array) -> None:
        """End the event: the next one begins, with background reclaim if kswapd is awake."""
        self.bump("cursor", enabled)
        self.goto(jnp.where(self.r.kswapd_on == 1, Phase.BACKGROUND, Phase.FETCH), enabled)

    def disabled(self, enabled: Array) -> None:
        """End an event that was not enabled."""
        self.count("events_disabled", enabled)
        self.complete(enabled)

    def flush_mm(
        self, enabled: Array, then: Array | Phase, *, cpu: Array, mm: Array, payer: Payer, start: Array | int = 0, end: Array | int = -1,
        tables: Array | int = 0, credit: Array | int = 0,
    ) -> None:  # fmt: skip
        """Request a flush of ``[start, end)`` of an mm; ``end`` -1 is the whole mm. ``credit``: the rule of that name credits its whole mask."""
        self.put_regs(
            enabled, fl_batch=0, fl_cpu=cpu, fl_mm=mm, fl_start=start, fl_end=end, fl_tables=tables, fl_payer=int(payer), fl_ret=then,
            fl_credit=credit,
        )  # fmt: skip
        self.goto(Phase.FLUSH, enabled)

    def flush_batch(self, enabled: Array, then: Array | Phase, *, cpu: Array, mask: Array, payer: Payer | Array) -> None:
        """Request a flush of whatever the CPUs of ``mask`` have loaded."""
        self.set_mask("fl_mask", mask, enabled)
        self.put_regs(enabled, fl_batch=1, fl_cpu=cpu, fl_start=0, fl_end=-1, fl_tables=0, fl_payer=payer, fl_ret=then)
        self.goto(Phase.FLUSH, enabled)

    def forced_flush(self, enabled: Array, then: Array | Phase, payer: Payer, *, mm: Array | int, page: Array | int) -> Array:
        """A forced flush: of every debt, or of those of process ``mm`` and file page ``page`` (-1: none). Returns whether the phase changed."""
        scoped = enabled & (self.rules.debt_scope == 1)
        pays = self.discharge_all(enabled & ~scoped, then, payer)
        self.put_regs(scoped, dg_mm=mm, dg_page=page, fl_payer=int(payer), fl_ret=then)
        self.goto(Phase.FORCED_FLUSH, scoped)
        return pays | scoped

    def shared_file(self, page: Array) -> Array:
        """The file page that a page (its row of ``page``) maps shared, -1 if none."""
        flags = self.get("vma", jnp.maximum(page[st.VMA], 0))
        is_shared = (page[st.VMA] >= 0) & ((flags & VmaFlag.SHARED) != 0) & (page[st.BACKING] < self.shape.num_file_pages)
        return jnp.where(is_shared, page[st.BACKING], -1)

    def discharge_all(self, enabled: Array, then: Array | Phase, payer: Payer, *, cpu: Array | None = None) -> Array:
        """Pay every debt of the open generation, by ``cpu`` or that of the event. Returns whether a flush is needed (else the phase is unchanged)."""
        debt = self.commit_deferred(enabled)
        pays = enabled & ~cpumask.is_empty(debt)
        self.flush_batch(pays, then, cpu=self.c if cpu is None else cpu, mask=debt, payer=payer)
        self.close_generation(pays)
        return pays

    def commit_deferred(self, enabled: Array) -> Array:
        """``G |= D``, ``D`` empty. Returns the debt of the open generation."""
        debt = self.debt_mask | self.deferred_mask
        self.set_mask("debt_mask", debt, enabled)
        self.set_mask("deferred_mask", jnp.zeros_like(debt), enabled)
        return debt

    def close_generation(self, enabled: Array) -> None:
        """The open generation is discharged: every tag up to now is paid."""
        self.count("discharges", enabled)
        self.set_mask("debt_mask", jnp.zeros_like(self.debt_mask), enabled)
        self.put_regs(enabled, ugen_done=self.r.ugen)
        is_largest = self.r.ugen + 1 == 1 << self.rules.gen_bits
        self.put_regs(enabled, ugen=jnp.where(is_largest, 1, self.r.ugen + 1))


def _runs(columns: list[int]) -> list[tuple[int, int]]:
    """Consecutive columns as [start, stop)."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs
