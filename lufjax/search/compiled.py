"""Native loops of the search: what follows a batch of states and the keys of that, and the set of keys.

The phase kernels and the key are those that JAX traces (:mod:`lufjax.backends.native`); only the loops around them are written here.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from llvmlite import ir

from lufjax import state as st
from lufjax.backends import native
from lufjax.backends.lowering import Lowering
from lufjax.backends.native import POINTER, loop, machine_code
from lufjax.backends.operations import BOOL, I32, I64, all_equal
from lufjax.backends.primitives import read_p
from lufjax.counters import NUM_CLASSES
from lufjax.params import MachineShape
from lufjax.search.expander import BAD_KEY, BAD_PHASE, DISABLED, DISABLED_AT, STRAYED, words_of
from lufjax.search.keys import LARGEST, SMALLEST
from lufjax.state import MachineState

I8 = ir.IntType(8)
BYTES, LONGS, OWN = I8.as_pointer(), I64.as_pointer(), POINTER.as_pointer()
KEY = ir.FunctionType(I32, [OWN, BYTES])
"""``int key(own, out)``: writes a key; not 0 if a value does not fit."""
SEVERAL = 16
"""Elements that are compared at a time; a state has more."""
FREE = -(2**31)
"""Of an element of the state that is not fixed."""
_P, _L = ctypes.c_void_p, ctypes.c_int64
Key = Callable[[MachineState], jax.Array]
Arrays = dict[str, tuple[tuple[int, ...], Any]]


class SearchProgram(NamedTuple):
    """A compiled machine. ``engine`` has to live as long as the functions are called.

    ``successors(rows, lasts, which, entries, n, params, events, stride, lengths, steps, num_entries, key_functions, num_keys, words, start, fixed,
    reads, index, size, every, out, kept, keys, outcomes, pairs, faults)`` applies entry ``entries[i]`` to ``rows[which[i]]``, writes its outcome,
    and of those that are enabled, do not violate and change an element of ``reads`` (or all, with ``every``) the numbers (``kept``), rows (``out``)
    and smallest keys one after the other; returns how many. A row holds the ``size`` elements of a state that ``index`` names; the others are those
    of ``start``. ``fixed`` and ``reads`` are masks, 0 or -1 for each element of a state; an element of ``fixed`` that is not as in ``start`` is a
    fault, STRAYED. ``pairs`` (``int64[num_entries + 1, num_entries]``) counts the enabled entries, by that which reached the state (``lasts``, -1
    for none) plus 1.
    """

    engine: Any
    successors: Callable[..., int]


class KeyProgram(NamedTuple):
    """Compiled keys of a machine, one for each renaming. ``engine`` has to live as long as the functions are called.

    Attributes:
        functions: ``uint64[r]``, addresses of functions of type :data:`KEY`.
        columns: ``int32[width]``, which values of the whole key are in it; all others are the same for every machine with these fixed elements.
        reads: ``bool[state width]``, elements of the state that a key depends on.
    """

    engine: Any
    functions: np.ndarray
    columns: np.ndarray
    reads: np.ndarray


def compile_keys(functions: Sequence[Key], arrays: Arrays, fixed: np.ndarray | None, facts: tuple[Any, ...]) -> KeyProgram:
    """Compile functions of one machine between two events to rows of small integers.

    Args:
        functions: their operations are those that :mod:`lufjax.backends.lowering` translates.
        arrays: shape and dtype of each array of the state, in its order.
        fixed: ``int32[state width]`` of which the elements that are not FREE are the same in every machine that a key is asked of; None for none.
        facts: all that ``functions`` depends on.
    """
    known = None if fixed is None else fixed.tobytes()
    code = ctypes.CFUNCTYPE(_P)
    names = [f"key_{number}" for number in range(len(functions))]
    engine, columns, reads = machine_code(
        lambda: _keys_module(functions, arrays, fixed), ("keys", facts, sorted(arrays.items()), known), key_columns=code, key_reads=code
    )
    every = np.ctypeslib.as_array(ctypes.cast(columns(), ctypes.POINTER(ctypes.c_int32)), (1,))
    every = np.ctypeslib.as_array(ctypes.cast(columns(), ctypes.POINTER(ctypes.c_int32)), (1 + int(every[0]),))[1:].copy()
    is_read = np.ctypeslib.as_array(ctypes.cast(reads(), ctypes.POINTER(ctypes.c_uint8)), (_width(arrays),)) > 0
    return KeyProgram(engine, np.array([engine.get_function_address(name) for name in names], np.uint64), every, is_read)


def _keys_module(functions: Sequence[Key], arrays: Arrays, fixed: np.ndarray | None) -> ir.Module:
    """The functions ``key_0``, ``key_1``, ...; ``key_columns``, which gives a count and as many numbers; and ``key_reads``."""
    module, known = ir.Module(name="lufjax_keys"), _elements_of(arrays, np.full(_width(arrays), FREE) if fixed is None else fixed)
    constants = {name: own.astype(object) for name, own in known.items()}
    for own in constants.values():
        own[own == FREE] = None
    places = _elements_of(arrays, np.arange(_width(arrays)))
    traced = list[tuple[Lowering, np.ndarray]]()
    for number, function in enumerate(functions):
        kernel = ir.Function(module, KEY, name=f"key_{number}")
        memory = native.PointerTable(kernel.args[0], {name: i for i, name in enumerate(arrays)})
        lowering = Lowering(ir.IRBuilder(kernel.append_basic_block("entry")), memory, constants)
        traced.append((lowering, emit_key(lowering, function, arrays)))
    columns = [c for c, values in enumerate(zip(*(values for _, values in traced), strict=True)) if not all_equal(values)]
    reads = np.zeros(_width(arrays), np.uint8)
    for lowering, values in traced:
        b, out, seen = lowering.builder, lowering.builder.function.args[1], I32(0)
        for index in range(8 * words_of(len(columns))):
            value = b.sub(values[columns[index]], I32(SMALLEST)) if index < len(columns) else I32(0)
            b.store(b.trunc(value, I8), b.gep(out, [I64(index ^ 7)]))
            seen = b.or_(seen, value)
        b.ret(b.and_(seen, I32(~(LARGEST - SMALLEST) & 0xFFFFFFFF)))
        needed = _needed(b.function)
        for (name, index), load in lowering.loaded.items():
            reads[places[name][index]] |= id(load) in needed
    _emit_data(module, "key_columns", np.array([len(columns), *columns], np.int32))
    _emit_data(module, "key_reads", reads)
    return module


def emit_key(lowering: Lowering, function: Key, arrays: Arrays) -> np.ndarray:
    """The values of a key of the machine whose memory the lowering has."""

    def whole(array: str) -> jax.Array:
        size, dtype = arrays[array]
        return read_p.bind(array=array, pattern=(), size=size, dtype=np.dtype(dtype))

    found = list[np.ndarray]()
    lowering.run(jax.make_jaxpr(lambda: function(MachineState(*map(whole, MachineState._fields))))(), found.extend)
    return found[0]


def _width(arrays: Arrays) -> int:
    """Elements of a state."""
    return sum(math.prod(arrays[name][0]) for name in MachineState._fields)


def _elements_of(arrays: Arrays, row: np.ndarray) -> dict[str, np.ndarray]:
    """A row of all the elements of a state, as its arrays."""
    ends = np.cumsum([math.prod(arrays[name][0]) for name in MachineState._fields])
    return {name: part.reshape(arrays[name][0]) for name, part in zip(MachineState._fields, np.split(row, ends[:-1]), strict=True)}


def _needed(function: ir.Function) -> set[int]:
    """``id`` of each instruction that a store, a branch or the result of a function depends on."""
    found: set[int] = set()
    every = [instruction for block in function.blocks for instruction in block.instructions]
    ahead = [instruction for instruction in every if instruction.opname in ("store", "ret", "br", "switch")]
    while ahead:
        instruction = ahead.pop()
        if id(instruction) not in found:
            found.add(id(instruction))
            ahead.extend(operand for operand in instruction.operands if isinstance(operand, ir.Instruction))
    return found


def _emit_data(module: ir.Module, name: str, values: np.ndarray) -> None:
    """A function of this name without arguments, which returns where the values are."""
    kind = ir.ArrayType(ir.IntType(8 * values.itemsize), len(values))
    data = ir.GlobalVariable(module, kind, name=f"{name}_data")
    data.global_constant, data.linkage = True, "internal"
    setattr(data, "initializer", ir.Constant(kind, values.tolist()))  # noqa: B010 - typed as None
    b = ir.IRBuilder(ir.Function(module, ir.FunctionType(BYTES, []), name=name).append_basic_block("entry"))
    b.ret(b.bitcast(data, BYTES))


@lru_cache(maxsize=32)
def compile_search(
    shape: MachineShape, program: tuple[str, ...], arrays: tuple[tuple[str, tuple[int, ...], str], ...]
) -> SearchProgram:  # fmt: skip
    """Compile for this machine's CPU; once in a process."""
    named = {name: (size, np.dtype(dtype)) for name, size, dtype in arrays}

    def build() -> ir.Module:
        module = native.build_ir(shape, program, named)
        _emit_successors(module, named)
        return module

    flag = ctypes.c_int32
    given = (_P, _P, _P, _P, _L, _P, _P, _L, _P, flag, _L, _P, _L, _L, _P, _P, _P, _P, _L, flag)
    successors = ctypes.CFUNCTYPE(_L, *given, _P, _P, _P, _P, _P, _P)
    return SearchProgram(*machine_code(build, ("search", shape, program, arrays), successors=successors))


def _emit_successors(module: ir.Module, arrays: Arrays) -> None:
    ints, run_lane = POINTER, module.get_global("run_lane")
    copy = module.declare_intrinsic("llvm.memcpy", [BYTES, BYTES, I64])
    functions = KEY.as_pointer().as_pointer()
    given = [ints, ints, ints, ints, I64, ints, ints, I64, ints, I32, I64, functions, I64, I64, ints, ints, ints, ints, I64, I32]
    function = ir.Function(module, ir.FunctionType(I64, [*given, ints, ints, LONGS, ints, LONGS, ints]), name="successors")
    rows, lasts, which, entries, n, params, events, stride, lengths, steps, num_entries, *more = function.args
    key_functions, num_keys, words, start, fixed, reads, index, size, every, out, kept, keys, outcomes, pairs, faults = more
    sizes = [int(np.prod(arrays[name][0], dtype=int)) for name in MachineState._fields]
    offsets = dict(zip(MachineState._fields, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    width, flow = sum(sizes), offsets["flow"]

    b = ir.IRBuilder(function.append_basic_block("entry"))
    own, other = b.alloca(POINTER, size=I64(len(arrays))), b.alloca(I64, size=words)
    count, last, is_changed = (b.alloca(kind) for kind in (I64, I64, BOOL))
    before, row = b.alloca(I32, size=I64(width)), b.alloca(I32, size=I64(width))

    def at(base: Any, offset: int) -> Any:
        return b.gep(base, [I64(offset)])

    def element(base: Any, array: str, index: int) -> Any:
        return b.load(at(base, offsets[array] + index))

    def copied(target: Any, source: Any, size: Any) -> None:
        b.call(copy, [b.bitcast(target, BYTES), b.bitcast(source, BYTES), size, BOOL(0)])

    def fails(condition: Any, bits: Any) -> None:
        with b.if_then(condition, likely=False):
            b.store(b.or_(b.load(faults), bits), faults)

    numbers = {name: number for number, name in enumerate(arrays)}
    b.store(params, at(own, numbers["params"]))
    b.store(I64(0), count)
    b.store(I64(-1), last)
    copied(before, start, I64(4 * width))
    for name, offset in offsets.items():
        b.store(at(row, offset), at(own, numbers[name]))
    with loop(b, n) as i:
        state, entry = b.sext(b.load(b.gep(which, [i])), I64), b.sext(b.load(b.gep(entries, [i])), I64)
        with b.if_then(b.icmp_signed("!=", state, b.load(last))):
            with loop(b, size) as column:
                place = b.sext(b.load(b.gep(index, [column])), I64)
                b.store(b.load(b.gep(rows, [b.add(b.mul(state, size), column)])), b.gep(before, [place]))
            b.store(state, last)
        copied(row, before, I64(4 * width))
        b.store(b.gep(events, [b.mul(entry, stride)]), at(own, numbers["events"]))
        stop = b.add(b.load(at(before, flow + st.BANK_OF["cursor"][1])), steps)
        fails(b.icmp_signed("!=", b.call(run_lane, [own, stop]), I32(0)), I32(BAD_PHASE))
        fault = b.load(at(row, flow + st.BANK_OF["fault"][1]))
        fails(b.icmp_signed("!=", fault, I32(0)), fault)
        outcome, is_enabled, violated = emit_outcome(b, partial(element, row), partial(element, before), b.load(b.gep(lengths, [entry])))
        b.store(outcome, b.gep(outcomes, [i]))
        pair = b.gep(pairs, [b.add(b.mul(b.add(b.sext(b.load(b.gep(lasts, [state])), I64), I64(1)), num_entries), entry)])
        b.store(b.add(b.load(pair), b.zext(is_enabled, I64)), pair)
        b.store(BOOL(0), is_changed)
        with b.if_then(b.and_(is_enabled, b.icmp_signed("==", violated, I32(0)))):
            strayed, changed = _emit_differences(b, width, row, ((start, fixed), (before, reads)))
            fails(strayed, I32(STRAYED))
            b.store(b.or_(changed, b.icmp_signed("!=", every, I32(0))), is_changed)
        with b.if_then(b.load(is_changed)):
            key = b.gep(keys, [b.mul(b.load(count), words)])
            bad = b.call(b.load(key_functions), [own, b.bitcast(key, BYTES)])
            fails(b.icmp_signed("!=", bad, I32(0)), I32(BAD_KEY))
            with loop(b, num_keys, I64(1)) as name:
                bad = b.call(b.load(b.gep(key_functions, [name])), [own, b.bitcast(other, BYTES)])
                fails(b.icmp_signed("!=", bad, I32(0)), I32(BAD_KEY))
                emit_keep_smaller(b, key, other, words)
            target = b.gep(out, [b.mul(b.load(count), size)])
            with loop(b, size) as column:
                b.store(b.load(b.gep(row, [b.sext(b.load(b.gep(index, [column])), I64)])), b.gep(target, [column]))
            b.store(b.trunc(i, I32), b.gep(kept, [b.load(count)]))
            b.store(b.add(b.load(count), I64(1)), count)
    b.ret(b.load(count))


Element = Callable[[str, int], Any]
"""Loads an element of an array of a state."""


def emit_outcome(b: Any, now: Element, before: Element, length: Any) -> tuple[Any, Any, Any]:
    """The outcome of an entry of ``length`` events, whether it was enabled, and the classes that were violated, as bits."""
    violated = I32(0)
    for kind in range(NUM_CLASSES):
        for half in (2 * kind, 2 * kind + 1):
            is_new = b.icmp_signed("!=", now("violations", half), before("violations", half))
            violated = b.or_(violated, b.select(is_new, I32(1 << kind), I32(0)))
    is_enabled = b.icmp_signed("<", b.sub(now("counters", DISABLED_AT), before("counters", DISABLED_AT)), length)
    return b.select(is_enabled, violated, I32(DISABLED)), is_enabled, violated


def emit_keep_smaller(b: Any, own: Any, other: Any, count: Any) -> None:
    """Leave in ``own`` the smaller of two arrays of ``count`` unsigned integers, compared one after the other."""
    kind = own.type.pointee
    with b.goto_entry_block():
        less, differs = b.alloca(kind), b.alloca(kind)
    for place in (less, differs):
        b.store(kind(0), place)
    with loop(b, count) as number:
        ours, theirs = b.load(b.gep(own, [number])), b.load(b.gep(other, [number]))
        is_less = b.zext(b.icmp_unsigned("<", theirs, ours), kind)
        b.store(b.select(b.icmp_signed("==", b.load(differs), kind(0)), is_less, b.load(less)), less)
        b.store(b.or_(b.load(differs), b.xor(ours, theirs)), differs)
    with b.if_then(b.icmp_signed("!=", b.load(less), kind(0))), loop(b, count) as number:
        b.store(b.load(b.gep(other, [number])), b.gep(own, [number]))


def _emit_differences(b: Any, width: int, row: Any, others: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Of each other row and its mask: whether the rows differ in an element of the mask."""
    several = ir.VectorType(I32, SEVERAL)
    none = ir.Constant(several, [0] * SEVERAL)
    with b.goto_entry_block():
        seen = [b.alloca(several) for _ in others]
    for place in seen:
        b.store(none, place)

    def loaded(base: Any, first: Any) -> Any:
        return b.load(b.bitcast(b.gep(base, [first]), several.as_pointer()), align=4)

    with loop(b, I64(-(-width // SEVERAL))) as number:
        first = b.mul(number, I64(SEVERAL))
        first = b.select(b.icmp_signed("<", first, I64(width - SEVERAL)), first, I64(width - SEVERAL))
        own = loaded(row, first)
        for place, (other, mask) in zip(seen, others, strict=True):
            b.store(b.or_(b.load(place), b.and_(b.xor(own, loaded(other, first)), loaded(mask, first))), place)
    results = []
    for place in seen:
        value, total = b.load(place), I32(0)
        for lane in range(SEVERAL):
            total = b.or_(total, b.extract_element(value, I32(lane)))
        results.append(b.icmp_signed("!=", total, I32(0)))
    return results


@lru_cache(maxsize=1)
def compile_add() -> tuple[Any, Callable[..., int]]:
    """The engine, and ``long add(slots, mask, keys, count, words, n, rows, factors, hashes, new)``.

    Adds the ``n`` rows of ``rows`` (``words`` 64-bit words each) to a set of ``count`` keys, in order; writes which were not there before, and
    returns how many. A slot is 0, or the upper half of a hash and below it the number of a key plus 1; ``mask`` is their number minus 1.
    """
    engine, add = machine_code(_add_module, ("add",), add=ctypes.CFUNCTYPE(_L, _P, _L, _P, _L, _L, _L, _P, _P, _P, _P))
    return engine, add


def _add_module() -> ir.Module:
    module = ir.Module(name="lufjax_key_set")
    compare = ir.Function(module, ir.FunctionType(I32, [BYTES, BYTES, I64]), name="memcmp")
    prefetch = module.declare_intrinsic("llvm.prefetch", [BYTES], ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32]))
    function = ir.Function(module, ir.FunctionType(I64, [LONGS, I64, LONGS, I64, I64, I64, LONGS, LONGS, LONGS, LONGS]), name="add")
    slots, mask, keys, first, words, n, rows, factors, hashes, new = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    total, count, place = b.alloca(I64), b.alloca(I64), b.alloca(I64)
    size = b.mul(words, I64(8))

    with loop(b, n) as i:
        row = b.gep(rows, [b.mul(i, words)])
        b.store(I64(0), total)
        with loop(b, words) as word:
            b.store(b.add(b.load(total), b.mul(b.load(b.gep(row, [word])), b.load(b.gep(factors, [word])))), total)
        value = b.load(total)
        value = b.mul(b.xor(value, b.lshr(value, I64(32))), I64(0x9E3779B97F4A7C15))
        value = b.xor(value, b.lshr(value, I64(29)))
        b.store(value, b.gep(hashes, [i]))
        b.call(prefetch, [b.bitcast(b.gep(slots, [b.and_(value, mask)]), BYTES), I32(1), I32(1), I32(1)])

    with loop(b, n) as i:
        slot = b.load(b.gep(slots, [b.and_(b.load(b.gep(hashes, [i])), mask)]))
        likely = b.gep(keys, [b.mul(b.sub(b.and_(slot, I64(0xFFFFFFFF)), I64(1)), words)])
        for line in range(2):
            b.call(prefetch, [b.gep(b.bitcast(likely, BYTES), [I64(64 * line)]), I32(0), I32(1), I32(1)])

    b.store(first, count)
    probe, taken, same, differs, empty, leave = (b.append_basic_block(name) for name in ("probe", "taken", "same", "differs", "empty", "leave"))
    with loop(b, n) as i:
        row = b.bitcast(b.gep(rows, [b.mul(i, words)]), BYTES)
        value = b.load(b.gep(hashes, [i]))
        mark = b.and_(value, I64(0xFFFFFFFF << 32))
        b.store(b.and_(value, mask), place)
        b.branch(probe)
        b.position_at_end(probe)
        at = b.gep(slots, [b.load(place)])
        slot = b.load(at)
        b.cbranch(b.icmp_signed("==", slot, I64(0)), empty, taken)
        b.position_at_end(taken)
        b.cbranch(b.icmp_signed("==", b.and_(slot, I64(0xFFFFFFFF << 32)), mark), same, differs)
        b.position_at_end(same)
        number = b.sub(b.and_(slot, I64(0xFFFFFFFF)), I64(1))
        known = b.bitcast(b.gep(keys, [b.mul(number, words)]), BYTES)
        b.cbranch(b.icmp_signed("==", b.call(compare, [known, row, size]), I32(0)), leave, differs)
        b.position_at_end(differs)
        b.store(b.and_(b.add(b.load(place), I64(1)), mask), place)
        b.branch(probe)
        b.position_at_end(empty)
        own, target = b.load(count), b.gep(keys, [b.mul(b.load(count), words)])
        with loop(b, words) as word:
            b.store(b.load(b.gep(rows, [b.add(b.mul(i, words), word)])), b.gep(target, [word]))
        b.store(i, b.gep(new, [b.sub(own, first)]))
        b.store(b.add(own, I64(1)), count)
        b.store(b.or_(mark, b.load(count)), at)
        b.branch(leave)
        b.position_at_end(leave)
    b.ret(b.sub(b.load(count), first))
    return module
