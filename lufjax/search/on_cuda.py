"""What follows a batch of states, on a GPU: lanes are started and run by :mod:`lufjax.backends.gpu`; kernels of its own judge them and make keys."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from llvmlite import ir

from lufjax import state as st
from lufjax.backends.gpu import device as devices
from lufjax.backends.gpu import lanes as gpu_lanes
from lufjax.backends.gpu.program import INTS, Body, Source, emit_stage, row_at
from lufjax.backends.gpu.rows import LaneRow, RowLayout
from lufjax.backends.lowering import Lowering
from lufjax.backends.native import emit_has_ended, loop
from lufjax.backends.operations import I32, I64
from lufjax.search.compiled import emit_key
from lufjax.search.expander import BAD_KEY, BAD_PHASE, STRAYED, Batch, Compiled, Form, Task, count_pairs, words_of
from lufjax.search.keys import LARGEST, SMALLEST
from lufjax.search.native_loop import emit_keep_smaller, emit_outcome
from lufjax.state import MachineState

MOST_LANES = 131072
"""Entries of a batch."""
IN_FLIGHT = 4
"""Batches in memory at most: one runs, others wait to be looked at."""
THREADS = 128
"""Of a thread block."""
IN_ELEMENT = 4
"""Values of a key in an element of the device, the first one highest, so that elements compare as the values do."""
ARGUMENTS: dict[str, list[ir.Type]] = {
    "place_states": [INTS, INTS, INTS, INTS, I32],
    "judge_lanes": [*[INTS] * 11, I32],
    "make_keys": [INTS, INTS, INTS, I32, INTS, INTS, I32],
    "take_rows": [INTS, INTS, INTS, INTS, I32],
}
"""``place_states(states, start, rows, index, width)``: a thread block for each state, of which a row holds the elements of ``index``.
``judge_lanes(lanes, states, which, entries, stops, lengths, masks, start, outcomes, faults, changed, num_lanes)``: a thread for each lane;
``masks`` are those of fixed and of read elements. ``make_keys(lanes, kept, columns, num_columns, keys, faults, num_kept)``: a thread for each key.
``take_rows(rows, lanes, numbers, index, width)``: a thread block for each row. Elements of a state are where :class:`RowLayout` has them."""


class CudaExpander:
    """:class:`lufjax.search.expander.Expander` on the GPU that the engine would use."""

    def __init__(self, task: Task) -> None:
        self._task, self._device = task, devices.open_device()
        self._machine = gpu_lanes.load(self._device, task.compiled.shape, task.compiled.kernels)
        self._layout = self._machine.layout
        self._launch = self._device.load(source_of(task.compiled, self._layout))
        self._columns = np.concatenate([self._layout.offsets[name] + np.arange(size) for name, size in task.compiled.sizes.items()])
        self._shared = [self._put(values) for values in (task.events, task.lengths, self._in_layout(task.start))]
        self._in_form, self._params = lru_cache(maxsize=1)(self._put_form), lru_cache(maxsize=1)(self._put_params)
        self.lanes = max(1, self._machine.lanes_that_fit(IN_FLIGHT * MOST_LANES) // IN_FLIGHT)

    def expand(
        self, form: Form, params: np.ndarray, rows: np.ndarray, last: np.ndarray, which: np.ndarray, entries: np.ndarray, *, every: bool
    ) -> Batch:  # fmt: skip
        """See the protocol."""
        n, empty, get, width, row_width = len(which), self._device.empty, self._device.get, self._layout.width, np.int32(len(form.index))
        events, lengths, start = self._shared
        index, masks, columns, cursor = self._in_form(form)
        stops = np.full(n, self._task.steps) + (rows[which, cursor] if cursor >= 0 else 0)
        which_on, entries_on, stops_on = (self._put(values) for values in (which, entries, stops))
        states, lanes, outcomes, faults, changed = empty((len(rows), width)), empty((n, width)), empty((n,)), empty((n,)), empty((n,))
        self._launch("place_states", len(rows), THREADS, states, start, self._put(rows), index, row_width)
        self._machine.begin(lanes, states, which_on, self._params(params.tobytes()))
        self._machine.advance(lanes, events, entries_on, stops_on)
        judged = (lanes, states, which_on, entries_on, stops_on, lengths, masks, start, outcomes, faults, changed, np.int32(n))
        self._launch("judge_lanes", -(-n // THREADS), THREADS, *judged)
        found = get(outcomes)
        kept = np.flatnonzero((found == 0) & ((get(changed) != 0) | every)).astype(np.int32)
        keys, misfits = empty((max(1, len(kept)), 2 * words_of(len(form.columns)))), empty((max(1, len(kept)),))
        if len(kept):
            made = (lanes, self._put(kept), columns, np.int32(len(form.columns)), keys, misfits, np.int32(len(kept)))
            self._launch("make_keys", -(-len(kept) // THREADS), THREADS, *made)
        bad = np.bitwise_or.reduce(get(faults), initial=0) | np.bitwise_or.reduce(get(misfits)[: len(kept)], initial=0)

        def take(numbers: np.ndarray) -> np.ndarray:
            if not len(numbers):
                return np.zeros((0, row_width), np.int32)
            taken = empty((len(numbers), int(row_width)))
            self._launch("take_rows", len(numbers), THREADS, taken, lanes, self._put(kept[numbers]), index, row_width)
            return get(taken)

        pairs = count_pairs(len(self._task.lengths), last, which, entries, found)
        return Batch(pairs, found, int(bad), kept, take, get(keys)[: len(kept)].view(np.uint64))

    def play(self, params: np.ndarray, events: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See the protocol."""
        n, start, put = len(events), self._shared[2], self._put
        lanes, taken, numbers = self._device.empty((n, self._layout.width)), self._device.empty((n, len(index))), put(np.arange(n))
        self._machine.begin(lanes, start, put(np.zeros(n)), self._params(params.tobytes()))
        self._machine.advance(lanes, put(events), numbers, put(np.full(n, events.shape[1])))
        self._launch("take_rows", n, THREADS, taken, lanes, numbers, put(self._columns[index]), np.int32(len(index)))
        return self._device.get(taken)

    def _put(self, values: np.ndarray) -> Any:
        return self._device.put(np.ascontiguousarray(values, np.int32))

    def _put_form(self, form: Form) -> tuple[Any, Any, Any, int]:
        """Elements of a row, masks and columns on the device, and where in a row the cursor is, -1 for nowhere."""
        bank, column = st.BANK_OF["cursor"]
        (cursor,) = np.nonzero(form.index == self._task.compiled.offsets[bank] + column)
        masks = np.stack([self._in_layout(form.fixed), self._in_layout(form.reads)])
        return self._put(self._columns[form.index]), self._put(masks), self._put(form.columns), int(cursor[0]) if len(cursor) else -1

    def _put_params(self, params: bytes) -> Any:
        """A row for each lane."""
        return self._put(np.repeat(np.frombuffer(params, np.int32)[None], self.lanes, axis=0))

    def _in_layout(self, elements: np.ndarray) -> np.ndarray:
        """Elements where the device has them, 0 elsewhere."""
        found = np.zeros(self._layout.width, np.int32)
        found[self._columns] = elements
        return found


def source_of(compiled: Compiled, layout: RowLayout) -> Source:
    """The kernels of a machine."""

    def emit(module: ir.Module) -> dict[str, Body]:
        return {
            "place_states": _place_states(module, layout),
            "judge_lanes": _judge_lanes(module, layout),
            "make_keys": _make_keys(module, compiled, layout),
            "take_rows": _take_rows(module, layout),
        }

    return Source(("search", compiled), ARGUMENTS, emit, THREADS)


def _place_states(module: ir.Module, layout: RowLayout) -> Body:
    def copy(b: Any, states: Any, start: Any, rows: Any, index: Any, width: Any, block: Any, size: Any, thread: Any) -> None:
        state = row_at(b, states, block, I64(layout.width))
        with loop(b, I32(layout.width), thread, size) as i:
            b.store(b.load(b.gep(start, [i])), b.gep(state, [i]))

    def replace(b: Any, states: Any, start: Any, rows: Any, index: Any, width: Any, block: Any, size: Any, thread: Any) -> None:
        state, row = row_at(b, states, block, I64(layout.width)), row_at(b, rows, block, b.sext(width, I64))
        with loop(b, width, thread, size) as i:
            b.store(b.load(b.gep(row, [i])), b.gep(state, [b.load(b.gep(index, [i]))]))

    stages = [emit_stage(module, f"place_{emit.__name__}", ARGUMENTS["place_states"], emit) for emit in (copy, replace)]

    def body(b: Any, arguments: list[Any], size: Any, each: Any) -> None:
        for stage in stages:
            each(stage)

    return body


def _take_rows(module: ir.Module, layout: RowLayout) -> Body:
    def take(b: Any, rows: Any, lanes: Any, numbers: Any, index: Any, width: Any, block: Any, size: Any, thread: Any) -> None:
        lane, row = row_at(b, lanes, b.load(b.gep(numbers, [block])), I64(layout.width)), row_at(b, rows, block, b.sext(width, I64))
        with loop(b, width, thread, size) as i:
            b.store(b.load(b.gep(lane, [b.load(b.gep(index, [i]))])), b.gep(row, [i]))

    stage = emit_stage(module, "take_row", ARGUMENTS["take_rows"], take)
    return lambda b, arguments, size, each: each(stage)


def _judge_lanes(module: ir.Module, layout: RowLayout) -> Body:
    def judge(b: Any, *arguments: Any) -> None:
        *given, num_lanes, block, size, thread = arguments
        lane, differences = b.add(b.mul(block, size), thread), [b.alloca(I32) for _ in range(2)]
        with b.if_then(b.icmp_signed("<", lane, num_lanes)):
            judge_one(b, lane, differences, *given)

    def judge_one(
        b: Any, lane: Any, differences: list[Any], lanes: Any, states: Any, which: Any, entries: Any, stops: Any, lengths: Any, masks: Any,
        start: Any, outcomes: Any, faults: Any, changed: Any,
    ) -> None:  # fmt: skip
        row, before = row_at(b, lanes, lane, I64(layout.width)), row_at(b, states, b.load(b.gep(which, [lane])), I64(layout.width))

        def element(base: Any, array: str, index: int) -> Any:
            return b.load(b.gep(base, [I32(layout.offsets[array] + index)]))

        def bits(condition: Any, value: int) -> Any:
            return b.select(condition, I32(value), I32(0))

        length = b.load(b.gep(lengths, [b.load(b.gep(entries, [lane]))]))
        outcome, _, _ = emit_outcome(b, partial(element, row), partial(element, before), length)

        for place in differences:
            b.store(I32(0), place)
        with loop(b, I32(layout.width)) as index:
            value = b.load(b.gep(row, [index]))
            for number, (place, other) in enumerate(zip(differences, (start, before), strict=True)):
                mask = b.load(b.gep(masks, [b.add(index, I32(number * layout.width))]))
                difference = b.and_(b.xor(value, b.load(b.gep(other, [index]))), mask)
                b.store(b.or_(b.load(place), difference), place)
        strayed, is_changed = (b.icmp_signed("!=", b.load(place), I32(0)) for place in differences)

        _, has_ended = emit_has_ended(b, b.gep(row, [I32(layout.offsets["flow"])]), b.load(b.gep(stops, [lane])))
        fault = b.or_(element(row, *st.BANK_OF["fault"]), bits(b.not_(has_ended), BAD_PHASE))
        fault = b.or_(fault, bits(b.and_(strayed, b.icmp_signed("==", outcome, I32(0))), STRAYED))
        for value, target in ((outcome, outcomes), (fault, faults), (b.zext(is_changed, I32), changed)):
            b.store(value, b.gep(target, [lane]))

    stage = emit_stage(module, "judge", ARGUMENTS["judge_lanes"], judge)
    return lambda b, arguments, size, each: each(stage)


def _make_keys(module: ir.Module, compiled: Compiled, layout: RowLayout) -> Body:
    functions, elements = _keys(module, compiled, layout), -(-num_values(compiled) // IN_ELEMENT)

    def make(b: Any, *arguments: Any) -> None:
        *given, num_kept, block, size, thread = arguments
        number, total = b.add(b.mul(block, size), thread), b.alloca(I32)
        own, other = (b.alloca(I32, size=elements) for _ in range(2))
        with b.if_then(b.icmp_signed("<", number, num_kept)):
            make_one(b, number, own, other, total, *given)

    def make_one(
        b: Any, number: Any, own: Any, other: Any, total: Any, lanes: Any, kept: Any, columns: Any, num_columns: Any, keys: Any, faults: Any
    ) -> None:
        row = row_at(b, lanes, b.load(b.gep(kept, [number])), I64(layout.width))
        bad = b.call(functions[0], [row, own])
        for function in functions[1:]:
            bad = b.or_(bad, b.call(function, [row, other]))
            emit_keep_smaller(b, own, other, I32(elements))
        b.store(b.select(b.icmp_signed("!=", bad, I32(0)), I32(BAD_KEY), I32(0)), b.gep(faults, [number]))
        per_key = b.shl(b.lshr(b.add(num_columns, I32(7)), I32(3)), I32(1))
        key = row_at(b, keys, number, b.sext(per_key, I64))
        with loop(b, per_key) as place:
            b.store(I32(0), total)
            for byte in range(IN_ELEMENT):
                column = b.add(b.shl(place, I32(2)), I32(byte))
                with b.if_then(b.icmp_signed("<", column, num_columns)):
                    value = b.load(b.gep(columns, [column]))
                    shift = b.shl(b.sub(I32(3), b.and_(value, I32(3))), I32(3))
                    value = b.and_(b.lshr(b.load(b.gep(own, [b.lshr(value, I32(2))])), shift), I32(255))
                    b.store(b.or_(b.load(total), b.shl(value, I32(8 * (3 - byte)))), total)
            b.store(b.load(total), b.gep(key, [b.xor(place, I32(1))]))

    stage = emit_stage(module, "make_key", ARGUMENTS["make_keys"], make)
    return lambda b, arguments, size, each: each(stage)


def num_values(compiled: Compiled) -> int:
    """Values of a key, those that never vary among them."""
    shapes = {name: jax.ShapeDtypeStruct(size, np.dtype(dtype)) for name, size, dtype in compiled.arrays if name in MachineState._fields}
    return jax.eval_shape(compiled.key_functions()[0], MachineState(**shapes)).shape[0]


def _keys(module: ir.Module, compiled: Compiled, layout: RowLayout) -> list[ir.Function]:
    """``int key(row, out)`` in each of the names: writes all values of a key; not 0 if one does not fit a byte."""
    functions = []
    for number, key in enumerate(compiled.key_functions()):
        function = ir.Function(module, ir.FunctionType(I32, [INTS, I32.as_pointer()]), name=f"key_{number}")
        function.linkage = "internal"
        function.attributes.add("noinline")
        row, out = function.args
        lowering = Lowering(ir.IRBuilder(function.append_basic_block("entry")), LaneRow(row, row, layout.offsets))
        b, seen = lowering.builder, I32(0)
        values = [b.sub(value, I32(SMALLEST)) for value in emit_key(lowering, key, layout.arrays)]
        for element in range(-(-len(values) // IN_ELEMENT)):
            total = I32(0)
            for place, value in enumerate(values[IN_ELEMENT * element : IN_ELEMENT * (element + 1)]):
                seen = b.or_(seen, value)
                total = b.or_(total, b.shl(value, I32(8 * (IN_ELEMENT - 1 - place))))
            b.store(total, b.gep(out, [I32(element)]))
        b.ret(b.and_(seen, I32(~(LARGEST - SMALLEST) & 0xFFFFFFFF)))
        functions.append(function)
    return functions
