"""Native loops of the search: what follows a batch of states and the keys of that, and the set of keys.

The phase kernels and the key are those that JAX traces (:mod:`lufjax.native`); only the loops around them are written here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from llvmlite import ir

from lufjax import native
from lufjax import state as st
from lufjax.counters import SCALARS
from lufjax.events import Violation
from lufjax.lowering import Lowering, read_p
from lufjax.native import I32, I64, POINTER, loop, machine_code
from lufjax.params import MachineShape
from lufjax.search.keys import LARGEST, SMALLEST
from lufjax.state import MachineState

I8 = ir.IntType(8)
BYTES, LONGS, OWN = I8.as_pointer(), I64.as_pointer(), POINTER.as_pointer()
KEY = ir.FunctionType(I32, [OWN, BYTES])
"""``int key(own, out)``: writes a key; not 0 if a value does not fit."""
DISABLED = -1
"""Outcome of an event that is not enabled; else the classes that it violates, as bits."""
BAD_PHASE, BAD_KEY = 1 << 30, 1 << 29
"""Bits of ``faults``, beside those of the fault word."""
_P, _L = ctypes.c_void_p, ctypes.c_int64
Arrays = dict[str, tuple[tuple[int, ...], Any]]


class SearchProgram(NamedTuple):
    """A compiled machine. ``engine`` has to live as long as the functions are called.

    ``successors(rows, which, entries, n, params, events, stride, lengths, steps, key_functions, num_keys, out, kept, keys, outcomes, faults)``
    applies entry ``entries[i]`` to ``rows[which[i]]``, writes its outcome, and of those that are enabled and do not violate the numbers (``kept``),
    rows (``out``) and smallest keys one after the other; returns how many.
    """

    engine: Any
    successors: Callable[..., int]


def words_of(key_width: int) -> int:
    """64-bit words that hold a key."""
    return -(-key_width // 8)


def compile_key(function: Callable[[MachineState], jax.Array], arrays: Arrays, facts: tuple[Any, ...]) -> tuple[Any, int, int]:
    """Compile a function of one machine between two events to a row of small integers.

    Args:
        function: its operations are those that :mod:`lufjax.lowering` translates.
        arrays: shape and dtype of each array of the state, in its order. facts: all that ``function`` depends on.

    Returns:
        The engine, the address of a function of type :data:`KEY`, and the width of a row.
    """

    def whole(array: str) -> jax.Array:
        size, dtype = arrays[array]
        return read_p.bind(array=array, pattern=(), size=size, dtype=np.dtype(dtype))

    def build() -> ir.Module:
        closed = jax.make_jaxpr(lambda: function(MachineState(*(whole(name) for name in MachineState._fields))))()
        return _key_module(closed, arrays)

    code = ctypes.CFUNCTYPE(ctypes.c_int32)
    engine, width = machine_code(build, ("key", facts, sorted(arrays.items())), key_width=code)
    return engine, engine.get_function_address("key"), width()


def _key_module(closed: Any, arrays: Arrays) -> ir.Module:
    """The function ``key``, and ``int key_width()``."""
    width = int(closed.out_avals[0].shape[0])
    module = ir.Module(name="lufjax_key")
    ir.IRBuilder(ir.Function(module, ir.FunctionType(I32, []), name="key_width").append_basic_block("entry")).ret(I32(width))
    kernel = ir.Function(module, KEY, name="key")
    memory = native.PointerTable(kernel.args[0], {name: i for i, name in enumerate(arrays)})
    lowering = Lowering(ir.IRBuilder(kernel.append_basic_block("entry")), memory)
    b, found = lowering.builder, list[np.ndarray]()
    lowering.run(closed, found.extend)
    values = found[0]
    seen: Any = I32(0)
    for index in range(8 * words_of(width)):
        value = b.sub(values[index], I32(SMALLEST)) if index < width else I32(0)
        b.store(b.trunc(value, I8), b.gep(kernel.args[1], [I64(index)]))
        seen = b.or_(seen, value)
    b.ret(b.and_(seen, I32(~(LARGEST - SMALLEST) & 0xFFFFFFFF)))
    return module


@lru_cache(maxsize=32)
def compile_search(
    shape: MachineShape, program: tuple[str, ...], arrays: tuple[tuple[str, tuple[int, ...], str], ...], key_words: int
) -> SearchProgram:  # fmt: skip
    """Compile for this machine's CPU; once in a process."""
    named = {name: (size, np.dtype(dtype)) for name, size, dtype in arrays}

    def build() -> ir.Module:
        module = native.build_ir(shape, program, named)
        _emit_successors(module, named, key_words)
        return module

    successors = ctypes.CFUNCTYPE(_L, _P, _P, _P, _L, _P, _P, _L, _P, ctypes.c_int32, _P, _L, _P, _P, _P, _P, _P)
    return SearchProgram(*machine_code(build, ("search", shape, program, arrays, key_words), successors=successors))


def _emit_successors(module: ir.Module, arrays: Arrays, key_words: int) -> None:
    ints, run_lane = POINTER, module.get_global("run_lane")
    copy = module.declare_intrinsic("llvm.memcpy", [BYTES, BYTES, I64])
    functions = KEY.as_pointer().as_pointer()
    types = [ints, ints, ints, I64, ints, ints, I64, ints, I32, functions, I64, ints, ints, LONGS, ints, ints]
    function = ir.Function(module, ir.FunctionType(I64, types), name="successors")
    rows, which, entries, n, params, events, stride, lengths, steps, key_functions, num_keys, out, kept, keys, outcomes, faults = function.args
    sizes = [int(np.prod(arrays[name][0], dtype=int)) for name in MachineState._fields]
    offsets = dict(zip(MachineState._fields, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    width, classes = sum(sizes), len(Violation)
    flow, disabled_at, kinds = offsets["flow"], offsets["counters"] + list(SCALARS).index("events_disabled"), offsets["violations"]

    b = ir.IRBuilder(function.append_basic_block("entry"))
    own, other = b.alloca(POINTER, size=I64(len(arrays))), b.alloca(I64, size=I64(key_words))
    count, violated, less, differs = b.alloca(I64), b.alloca(I32), b.alloca(I64), b.alloca(I64)

    def at(base: Any, offset: int) -> Any:
        return b.gep(base, [I64(offset)])

    def copied(target: Any, source: Any, size: int) -> None:
        b.call(copy, [b.bitcast(target, BYTES), b.bitcast(source, BYTES), I64(size), ir.Constant(ir.IntType(1), 0)])

    def fails(condition: Any, bits: Any) -> None:
        with b.if_then(condition, likely=False):
            b.store(b.or_(b.load(faults), bits), faults)

    numbers = {name: number for number, name in enumerate(arrays)}
    b.store(params, at(own, numbers["params"]))
    b.store(I64(0), count)
    with loop(b, n) as i:
        state, entry = b.sext(b.load(b.gep(which, [i])), I64), b.sext(b.load(b.gep(entries, [i])), I64)
        before, row = b.gep(rows, [b.mul(state, I64(width))]), b.gep(out, [b.mul(b.load(count), I64(width))])
        copied(row, before, 4 * width)
        for name, offset in offsets.items():
            b.store(at(row, offset), at(own, numbers[name]))
        b.store(b.gep(events, [b.mul(entry, stride)]), at(own, numbers["events"]))
        stop = b.add(b.load(at(before, flow + st.BANK_OF["cursor"][1])), steps)
        fails(b.icmp_signed("!=", b.call(run_lane, [own, stop]), I32(0)), I32(BAD_PHASE))
        fault = b.load(at(row, flow + st.BANK_OF["fault"][1]))
        fails(b.icmp_signed("!=", fault, I32(0)), fault)
        b.store(I32(0), violated)
        for kind in range(classes):
            for half in (2 * kind, 2 * kind + 1):
                is_new = b.icmp_signed("!=", b.load(at(row, kinds + half)), b.load(at(before, kinds + half)))
                b.store(b.or_(b.load(violated), b.select(is_new, I32(1 << kind), I32(0))), violated)
        refused = b.sub(b.load(at(row, disabled_at)), b.load(at(before, disabled_at)))
        is_enabled = b.icmp_signed("<", refused, b.load(b.gep(lengths, [entry])))
        b.store(b.select(is_enabled, b.load(violated), I32(DISABLED)), b.gep(outcomes, [i]))
        with b.if_then(b.and_(is_enabled, b.icmp_signed("==", b.load(violated), I32(0)))):
            key = b.gep(keys, [b.mul(b.load(count), I64(key_words))])
            bad = b.call(b.load(key_functions), [own, b.bitcast(key, BYTES)])
            fails(b.icmp_signed("!=", bad, I32(0)), I32(BAD_KEY))
            with loop(b, num_keys, I64(1)) as name:
                bad = b.call(b.load(b.gep(key_functions, [name])), [own, b.bitcast(other, BYTES)])
                fails(b.icmp_signed("!=", bad, I32(0)), I32(BAD_KEY))
                b.store(I64(0), less)
                b.store(I64(0), differs)
                with loop(b, I64(key_words)) as word:
                    ours, theirs = b.load(b.gep(key, [word])), b.load(b.gep(other, [word]))
                    is_less = b.zext(b.icmp_unsigned("<", theirs, ours), I64)
                    b.store(b.select(b.icmp_signed("==", b.load(differs), I64(0)), is_less, b.load(less)), less)
                    b.store(b.or_(b.load(differs), b.xor(ours, theirs)), differs)
                with b.if_then(b.icmp_signed("!=", b.load(less), I64(0))):
                    copied(key, other, 8 * key_words)
            b.store(b.trunc(i, I32), b.gep(kept, [b.load(count)]))
            b.store(b.add(b.load(count), I64(1)), count)
    b.ret(b.load(count))


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
