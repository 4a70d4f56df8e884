"""Native loop over a batch of entries: what each does to a state, and the keys and rows of what follows, but for what is known already.

It is emitted for one form of rows and keys, so that which elements are copied and compared is part of the code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from lufjax import state as st
from lufjax.backends.native import POINTER, RUN_LANE, loop
from lufjax.backends.operations import BOOL, I32, I64
from lufjax.counters import NUM_CLASSES
from lufjax.search.expander import BAD_KEY, BAD_PHASE, DISABLED, DISABLED_AT, STRAYED, Compiled
from lufjax.search.hashing import BYTES, LINE, LONGS, emit_fetch, emit_fetch_likely, emit_find, emit_hash, emit_move

KEY = ir.FunctionType(I32, [POINTER.as_pointer(), BYTES])
"""``int key(own, out)``: writes a key; not 0 if a value does not fit."""
WAITING = 16
"""States that wait until they are looked up, so that what they are compared with has been fetched."""
SEVERAL = 16
"""Elements that are copied or compared at a time."""
_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
SUCCESSORS = ctypes.CFUNCTYPE(_L, *[_P] * 5, _L, _P, _P, _L, _P, _I, _L, _P, _I, _P, _L, _P, _L, *[_P] * 7)
"""``successors(run_lane, rows, lasts, which, entries, n, params, events, stride, lengths, steps, num_entries, start, every, slots, mask, known,
num_known, factors, out, kept, keys, outcomes, pairs, faults)`` applies entry ``entries[i]`` to ``rows[which[i]]`` and writes its outcome. Of those
that are enabled, do not violate and change what a key reads (or all, with ``every``) it writes numbers (``kept``), rows (``out``) and smallest keys
one after the other, without keys that are in a set (:mod:`lufjax.search.hashing`); it returns how many. Elements of a state that a row does not have
are those of ``start``; one that is held to be fixed and is not as before is a fault, STRAYED. ``pairs`` (``int64[num_entries + 1, num_entries]``)
counts the enabled entries, by that which reached the state (``lasts``, -1 for none) plus 1."""


def emit_successors(
    module: ir.Module, compiled: Compiled, index: np.ndarray, fixed: np.ndarray, reads: np.ndarray, functions: Sequence[ir.Function], num_words: int
) -> None:
    """The function of :data:`SUCCESSORS`.

    Args:
        compiled: the machine. index: ``int32[size]``, elements of a state that are in a row. fixed, reads: ``bool[width]``, those that are held to
            be as at the start, and those that a key depends on. functions: keys in each of the names, of ``num_words`` words.
    """
    ints, longs = POINTER, LONGS
    given = [RUN_LANE.as_pointer(), ints, ints, ints, ints, I64, ints, ints, I64, ints, I32, I64, ints, I32]
    seen, results = [longs, I64, longs, I64, longs], [ints, ints, longs, ints, longs, ints]
    function = ir.Function(module, ir.FunctionType(I64, [*given, *seen, *results]), name="successors")
    run_lane, rows, lasts, which, entries, n, params, events, stride, lengths, steps, num_entries, start, every, *more = function.args
    slots, mask, known, num_known, factors, out, kept, keys, outcomes, pairs, faults = more
    offsets, places = compiled.offsets, {name: number for number, (name, _, _) in enumerate(compiled.arrays)}
    width, size, flow, words, find = sum(compiled.sizes.values()), len(index), offsets["flow"], I64(num_words), emit_find(module)

    b = ir.IRBuilder(function.append_basic_block("entry"))
    own, other = b.alloca(POINTER, size=I64(len(places))), b.alloca(I64, size=words)
    count, waiting, last, is_changed = (b.alloca(kind) for kind in (I64, I64, I64, BOOL))
    before, row, waiting_rows = b.alloca(I32, size=I64(width)), b.alloca(I32, size=I64(width)), b.alloca(I32, size=I64(WAITING * size))
    hashes, numbers = b.alloca(I64, size=I64(WAITING)), b.alloca(I32, size=I64(WAITING))

    def at(base: Any, offset: int) -> Any:
        return b.gep(base, [I64(offset)])

    def element(base: Any, array: str, index: int) -> Any:
        return b.load(at(base, offsets[array] + index))

    def fails(condition: Any, bits: Any) -> None:
        with b.if_then(condition, likely=False):
            b.store(b.or_(b.load(faults), bits), faults)

    def key_at(number: Any) -> Any:
        return b.gep(keys, [b.mul(number, words)])

    def settle() -> None:
        """Write those that wait and are not known."""
        first, lines = b.load(count), -(-(8 * num_words + LINE - 8) // LINE)
        with loop(b, b.load(waiting)) as i:
            emit_fetch_likely(b, slots, mask, known, words, b.load(b.gep(hashes, [i])), lines)
        with loop(b, b.load(waiting)) as i:
            key, value = key_at(b.add(first, i)), b.load(b.gep(hashes, [i]))
            with b.if_then(b.icmp_signed(">=", b.call(find, [slots, mask, known, num_known, words, value, key]), I64(0))):
                into = b.load(count)
                emit_move(b, key_at(into), key, words)
                _emit_copy(b, [b.gep(out, [b.mul(into, I64(size))])], b.gep(waiting_rows, [b.mul(i, I64(size))]), [(0, 0, size)])
                b.store(b.load(b.gep(numbers, [i])), b.gep(kept, [into]))
                b.store(b.add(into, I64(1)), count)
        b.store(I64(0), waiting)

    unpack = _runs(index)
    pack = [(to, source, length) for source, to, length in unpack]
    b.store(params, at(own, places["params"]))
    for place, value in ((count, 0), (waiting, 0), (last, -1)):
        b.store(I64(value), place)
    _emit_copy(b, [before, row], start, [(0, 0, width)])
    for name, offset in offsets.items():
        b.store(at(row, offset), at(own, places[name]))
    with loop(b, n) as i:
        state, entry = b.sext(b.load(b.gep(which, [i])), I64), b.sext(b.load(b.gep(entries, [i])), I64)
        with b.if_then(b.icmp_signed("!=", state, b.load(last))):
            _emit_copy(b, [before, row], b.gep(rows, [b.mul(state, I64(size))]), unpack)
            b.store(state, last)
        b.store(b.gep(events, [b.mul(entry, stride)]), at(own, places["events"]))
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
            strayed, changed = _emit_differences(b, row, before, (fixed, reads))
            fails(strayed, I32(STRAYED))
            b.store(b.or_(changed, b.icmp_signed("!=", every, I32(0))), is_changed)
        with b.if_then(b.load(is_changed)):
            into = b.load(waiting)
            key = key_at(b.add(b.load(count), into))
            bad = b.call(functions[0], [own, b.bitcast(key, BYTES)])
            for name in functions[1:]:
                bad = b.or_(bad, b.call(name, [own, b.bitcast(other, BYTES)]))
                emit_keep_smaller(b, key, other, words)
            fails(b.icmp_signed("!=", bad, I32(0)), I32(BAD_KEY))
            value = emit_hash(b, key, words, factors)
            emit_fetch(b, b.gep(slots, [b.and_(value, mask)]))
            b.store(value, b.gep(hashes, [into]))
            b.store(b.trunc(i, I32), b.gep(numbers, [into]))
            _emit_copy(b, [b.gep(waiting_rows, [b.mul(into, I64(size))])], row, pack)
            b.store(b.add(into, I64(1)), waiting)
            with b.if_then(b.icmp_signed("==", b.load(waiting), I64(WAITING))):
                settle()
        _emit_copy(b, [row], before, [(0, 0, width)])
    settle()
    b.ret(b.load(count))


def _runs(index: np.ndarray) -> list[tuple[int, int, int]]:
    """``(target, source, length)`` of the stretches in which elements of a row follow each other in a state as well; the target is the state."""
    starts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
    return [(int(index[first]), int(first), int(length)) for first, length in zip(starts, np.diff(starts, append=len(index)), strict=True)]


def _emit_copy(b: Any, targets: Sequence[Any], source: Any, runs: Sequence[tuple[int, int, int]]) -> None:
    """Copy stretches of elements: ``(first one of a target, first one of the source, length)``."""
    for target, first, length in runs:
        for offset, count in _pieces(length):
            value = _load(b, source, first + offset, count)
            for base in targets:
                place = b.bitcast(b.gep(base, [I64(target + offset)]), value.type.as_pointer())
                b.store(value, place, align=4)


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    """First element and length of the vectors that a stretch is copied in."""
    first, count = 0, SEVERAL
    while first < length:
        while count > length - first:
            count //= 2
        yield first, count
        first += count


def _load(b: Any, base: Any, first: int, count: int) -> Any:
    """Some neighbouring elements."""
    return b.load(b.bitcast(b.gep(base, [I64(first)]), ir.VectorType(I32, count).as_pointer()), align=4)


def _emit_differences(b: Any, row: Any, before: Any, masks: Sequence[np.ndarray]) -> list[Any]:
    """Of each mask (``bool[width]``), whether two states differ in an element of it."""
    seen: list[list[Any]] = [[] for _ in masks]
    for first, count in _pieces(len(masks[0])):
        own = [mask[first : first + count] for mask in masks]
        if not np.any(own):
            continue
        difference = b.xor(_load(b, row, first, count), _load(b, before, first, count))
        for found, mask in zip(seen, own, strict=True):
            if mask.any():
                kept = difference if mask.all() else b.and_(difference, ir.Constant(difference.type, np.where(mask, -1, 0).tolist()))
                found.append(kept)
    return [_any_is_set(b, found) for found in seen]


def _any_is_set(b: Any, vectors: Sequence[Any]) -> Any:
    found = BOOL(0)
    for count in sorted({vector.type.count for vector in vectors}):
        same = [vector for vector in vectors if vector.type.count == count]
        total = same[0]
        for vector in same[1:]:
            total = b.or_(total, vector)
        whole = ir.IntType(32 * count)
        found = b.or_(found, b.icmp_signed("!=", b.bitcast(total, whole), whole(0)))
    return found


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
    with b.if_then(b.icmp_signed("!=", b.load(less), kind(0))):
        emit_move(b, own, other, count)
