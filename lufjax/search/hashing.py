"""Native code of the set of keys: hashes, looking a key up, adding many.

A set is an array of slots and an array of keys, each some 64-bit words, in the order in which they were added. A slot is 0, or the upper half of the
hash of a key and below it the key's number plus 1. A key is looked for from the slot that its hash names until one is 0.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from lufjax.backends.native import loop, machine_code
from lufjax.backends.operations import I32, I64

BYTES, LONGS = ir.IntType(8).as_pointer(), I64.as_pointer()
UPPER, LOWER = 0xFFFFFFFF << 32, 0xFFFFFFFF
LINE = 64
"""Bytes of a cache line."""
_P, _L = ctypes.c_void_p, ctypes.c_int64


class Seen(NamedTuple):
    """A set as it was at one moment: its first ``count`` keys can be looked up while another thread adds more.

    Attributes:
        slots: ``uint64[slots]``, a power of two of them. keys: ``uint64[., words]``. count: keys that are looked at. factors: ``uint64[words]``, of
            the hash.
    """

    slots: np.ndarray
    keys: np.ndarray
    count: int
    factors: np.ndarray


def nothing_seen(words: int) -> Seen:
    """An empty set."""
    return Seen(np.zeros(1, np.uint64), np.zeros((1, words), np.uint64), 0, np.zeros(words, np.uint64))


def emit_move(b: Any, target: Any, source: Any, count: Any) -> None:
    """Copy an array of ``count`` integers, which may begin behind the target and overlap it."""
    with loop(b, count) as number:
        b.store(b.load(b.gep(source, [number])), b.gep(target, [number]))


def emit_hash(b: Any, key: Any, words: Any, factors: Any) -> Any:
    """The hash of a key."""
    with b.goto_entry_block():
        total = b.alloca(I64)
    b.store(I64(0), total)
    with loop(b, words) as word:
        b.store(b.add(b.load(total), b.mul(b.load(b.gep(key, [word])), b.load(b.gep(factors, [word])))), total)
    value = b.load(total)
    value = b.mul(b.xor(value, b.lshr(value, I64(32))), I64(0x9E3779B97F4A7C15))
    return b.xor(value, b.lshr(value, I64(29)))


def emit_fetch(b: Any, at: Any) -> None:
    """Have the cache line of an address fetched."""
    prefetch = b.module.declare_intrinsic("llvm.prefetch", [BYTES], ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32]))
    b.call(prefetch, [b.bitcast(at, BYTES), I32(0), I32(3), I32(1)])


def emit_fetch_likely(b: Any, slots: Any, mask: Any, keys: Any, words: Any, value: Any, lines: int) -> None:
    """Have so many cache lines fetched of the key that the first slot for a hash names."""
    slot = b.load(b.gep(slots, [b.and_(value, mask)]))
    key = b.gep(keys, [b.mul(b.sub(b.and_(slot, I64(LOWER)), I64(1)), words)])
    for line in range(lines):
        emit_fetch(b, b.gep(b.bitcast(key, BYTES), [I64(LINE * line)]))


def emit_find(module: ir.Module) -> ir.Function:
    """``long find(slots, mask, keys, count, words, hash, key)``: -1 if the key is among the first ``count``, else the slot where its search ended."""
    function = ir.Function(module, ir.FunctionType(I64, [LONGS, I64, LONGS, I64, I64, I64, LONGS]), name="find")
    function.linkage = "internal"
    slots, mask, keys, count, words, value, key = function.args
    compare = ir.Function(module, ir.FunctionType(I32, [BYTES, BYTES, I64]), name="memcmp")
    entry, probe, taken, same, differs, empty, found = (
        function.append_basic_block(name) for name in ("entry", "probe", "taken", "same", "differs", "empty", "found")
    )
    b = ir.IRBuilder(entry)
    first, mark = b.and_(value, mask), b.and_(value, I64(UPPER))
    b.branch(probe)
    b.position_at_end(probe)
    place = b.phi(I64)
    place.add_incoming(first, entry)
    slot = b.load_atomic(b.gep(slots, [place]), "monotonic", 8)
    b.cbranch(b.icmp_signed("==", slot, I64(0)), empty, taken)
    b.position_at_end(taken)
    number = b.sub(b.and_(slot, I64(LOWER)), I64(1))
    is_likely = b.and_(b.icmp_signed("==", b.and_(slot, I64(UPPER)), mark), b.icmp_signed("<", number, count))
    b.cbranch(is_likely, same, differs)
    b.position_at_end(same)
    own, other = (b.bitcast(at, BYTES) for at in (b.gep(keys, [b.mul(number, words)]), key))
    b.cbranch(b.icmp_signed("==", b.call(compare, [own, other, b.mul(words, I64(8))]), I32(0)), found, differs)
    b.position_at_end(differs)
    place.add_incoming(b.and_(b.add(place, I64(1)), mask), differs)
    b.branch(probe)
    ir.IRBuilder(empty).ret(place)
    ir.IRBuilder(found).ret(I64(-1))
    return function


@lru_cache(maxsize=1)
def compile_add() -> tuple[Any, Callable[..., int]]:
    """The engine, and ``long add(slots, mask, keys, count, words, n, rows, factors, hashes, new)``.

    Adds the ``n`` rows of ``rows`` (``words`` 64-bit words each) to a set of ``count`` keys, in order; writes which were not there before, and
    returns how many. ``mask`` is the number of slots minus 1.
    """
    engine, add = machine_code(_add_module, ("add",), add=ctypes.CFUNCTYPE(_L, _P, _L, _P, _L, _L, _L, _P, _P, _P, _P))
    return engine, add


def _add_module() -> ir.Module:
    module = ir.Module(name="lufjax_key_set")
    find = emit_find(module)
    function = ir.Function(module, ir.FunctionType(I64, [LONGS, I64, LONGS, I64, I64, I64, LONGS, LONGS, LONGS, LONGS]), name="add")
    slots, mask, keys, first, words, n, rows, factors, hashes, new = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    count = b.alloca(I64)

    with loop(b, n) as i:
        value = emit_hash(b, b.gep(rows, [b.mul(i, words)]), words, factors)
        b.store(value, b.gep(hashes, [i]))
        emit_fetch(b, b.gep(slots, [b.and_(value, mask)]))
    with loop(b, n) as i:
        emit_fetch_likely(b, slots, mask, keys, words, b.load(b.gep(hashes, [i])), 1)
    b.store(first, count)
    with loop(b, n) as i:
        value, row, own = b.load(b.gep(hashes, [i])), b.gep(rows, [b.mul(i, words)]), b.load(count)
        place = b.call(find, [slots, mask, keys, own, words, value, row])
        with b.if_then(b.icmp_signed(">=", place, I64(0))):
            emit_move(b, b.gep(keys, [b.mul(own, words)]), row, words)
            b.store(i, b.gep(new, [b.sub(own, first)]))
            b.store(b.add(own, I64(1)), count)
            b.store_atomic(b.or_(b.and_(value, I64(UPPER)), b.load(count)), b.gep(slots, [place]), "monotonic", 8)
    b.ret(b.sub(b.load(count), first))
    return module
