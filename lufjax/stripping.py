"""Trace stripping: stretches of accesses that a machine may pass over in one step, because they change nothing but three sums.

Which ones, and the proof: docs/MODEL.md, section 12. What is decided here depends on the trace and on the first TLB level alone; what depends on
policy and memory the machine checks with a comparison before each step (:mod:`lufjax.phases.fetch`). Events have their numbers here, from 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir

from lufjax.backends.native import POINTER, loop, machine_code
from lufjax.backends.operations import I32, I64
from lufjax.events import CPU, EVENT_FIELDS, OP, REPEAT, VPN, MicroOp, Op
from lufjax.params import TlbGeometry
from lufjax.phases.fetch import LENGTH_BITS, NEAR

QUIET = (Op.NOP, Op.LOAD, Op.STORE, Op.TICK)
"""Operations that need not disturb; nothing leans across any other."""
REACH = 4096
"""Events that an access may lean back. One that leans farther is likelier to hold up its stretch than to save anything."""
LEAST = 2
"""Events of the shortest stretch: to pass over a single one saves nothing."""
_LONGEST = (1 << LENGTH_BITS) - 1


def leaning(events: np.ndarray, num_vpns: int, l1: TlbGeometry) -> np.ndarray:
    """``int32[num_events]``: for a redundant access the number of the event that it leans on, else 0. Micro-steps: none.

    Args:
        events: ``int32[num_events, 5]``. l1: the first TLB level of every CPU.
    """
    events = np.ascontiguousarray(events, dtype=np.int32)
    if events[:, OP].max(initial=0) >= min(MicroOp):
        return np.zeros(len(events), np.int32)
    num_cpus = int(events[:, CPU].max(initial=0)) + 1
    vpn = np.arange(num_vpns, dtype=np.int32)
    place = (vpn ^ (vpn >> (l1.sets.bit_length() - 1)) if l1.index == "xor" else vpn) % l1.sets
    ways = l1.ways if l1.replacement == "lru" else 1
    pages = np.zeros((4, num_cpus * num_vpns), np.int32)
    recent, num_recent = np.zeros((num_cpus * l1.sets, ways + 1), np.int32), np.zeros(num_cpus * l1.sets, np.int32)
    found = np.zeros(len(events), np.int32)
    arrays = (events, place, *pages, recent, num_recent, found)
    _compiled().lean(len(events), num_vpns, l1.sets, ways, REACH, *(array.ctypes.data for array in arrays))
    return found


def write_records(out: np.ndarray, events: np.ndarray, num_vpns: int, l1: TlbGeometry, points: Sequence[int]) -> None:
    """Write what can be passed over from each event on, as :mod:`lufjax.phases.fetch` reads it.

    Columns: the first event that the whole stretch leans on; rows of the whole stretch and, above, of that part of it that leans on the last
    ``NEAR`` events only (0 where no stretch of at least ``LEAST`` begins); loads and stores from the event to the end, modulo 2^32.

    Args:
        out: contiguous zeros, ``int32[num_events + 1, 4]``, one more row for the end.
        events: ``int32[num_events, 5]``. l1: the first TLB level of every CPU. points: numbers of events after which a machine has to stop.
    """
    events = np.ascontiguousarray(events, dtype=np.int32)
    leans, stop = leaning(events, num_vpns, l1), np.zeros(len(events) + 1, np.int32)
    edges = [0, *(point for point in points if point < len(events)), len(events)]
    for begin, end in reversed(list(pairwise(edges))):
        _compiled().measure(begin, end, *(array.ctypes.data for array in (events, leans, stop, out)))


class _Compiled:
    """``lean(num_events, num_vpns, sets, ways, reach, events, place, last, kept, stored, base, recent, num_recent, found)``, and
    ``measure(begin, end, events, leans, stop, out)``.

    ``place``: the set of each vpn. ``last``, ``kept``, ``stored``, ``base``: of each CPU and vpn, the last access, the last that was kept,
    the last store, and what the last access leans on. ``recent``: the most recent pages of each CPU and set, ``num_recent`` of them.
    ``stop``: scratch, where the near part of each stretch ends.
    """

    def __init__(self) -> None:
        long, pointer = ctypes.c_int64, ctypes.c_void_p
        lean, measure = (ctypes.CFUNCTYPE(None, *[long] * longs, *[pointer] * pointers) for longs, pointers in ((5, 9), (2, 4)))
        self.lean: Callable[..., None]
        self.measure: Callable[..., None]
        self._engine, self.lean, self.measure = machine_code(_module, ("stripping",), lean=lean, measure=measure)


@lru_cache(maxsize=1)
def _compiled() -> _Compiled:
    return _Compiled()


def _module() -> ir.Module:
    module = ir.Module(name="lufjax_stripping")
    _emit_lean(module)
    _emit_measure(module)
    return module


def _emit_lean(module: ir.Module) -> None:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*[I64] * 5, *[POINTER] * 9]), name="lean")
    n, num_vpns, sets, ways, reach, events, place, last, kept, stored, base, recent, num_recent, found = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    first, carried, is_done, newer = (b.alloca(I32) for _ in range(4))
    b.store(I32(1), first)

    def load(array: Any, index: Any) -> Any:
        return b.load(b.gep(array, [index]))

    def since(array: Any, page: Any) -> Any:
        """The number there, 0 if it is from before the last operation that is not quiet."""
        number = load(array, page)
        return b.select(b.icmp_signed(">=", number, b.load(first)), number, I32(0))

    with loop(b, n) as i:
        cpu, op, vpn = (b.sext(load(events, b.add(b.mul(i, I64(len(EVENT_FIELDS))), I64(column))), I64) for column in (CPU, OP, VPN))
        now = b.trunc(b.add(i, I64(1)), I32)
        is_store = b.icmp_signed("==", op, I64(Op.STORE))
        is_quiet = b.icmp_signed("==", op, I64(QUIET[0]))
        for kind in QUIET[1:]:
            is_quiet = b.or_(is_quiet, b.icmp_signed("==", op, I64(kind)))
        b.store(b.select(is_quiet, b.load(first), b.add(now, I32(1))), first)
        with b.if_then(b.or_(is_store, b.icmp_signed("==", op, I64(Op.LOAD)))):
            page = b.add(b.mul(cpu, num_vpns), vpn)
            own, s = b.trunc(page, I32), b.add(b.mul(cpu, sets), b.sext(load(place, vpn), I64))
            before, keeps, on = since(last, page), since(kept, page), load(base, page)
            # One walk over the recent pages of the set: those newer than what was kept of this page are counted, and this page moves to the front.
            for variable, value in ((carried, own), (is_done, I32(0)), (newer, I32(0))):
                b.store(value, variable)
            pages, num_pages = b.gep(recent, [b.mul(s, b.add(ways, I64(1)))]), b.sext(load(num_recent, s), I64)
            with loop(b, num_pages) as k:
                other, done = load(pages, k), b.icmp_signed("!=", b.load(is_done), I32(0))
                is_own = b.icmp_signed("==", other, own)
                is_newer = b.and_(b.icmp_signed(">", load(last, b.sext(other, I64)), keeps), b.not_(is_own))
                b.store(b.add(b.load(newer), b.zext(is_newer, I32)), newer)
                b.store(b.select(done, other, b.load(carried)), b.gep(pages, [k]))
                b.store(b.select(done, b.load(carried), other), carried)
                b.store(b.zext(b.or_(done, is_own), I32), is_done)
            with b.if_then(b.and_(b.icmp_signed("==", b.load(is_done), I32(0)), b.icmp_signed("<=", num_pages, ways))):
                b.store(b.load(carried), b.gep(pages, [num_pages]))
                b.store(b.trunc(b.add(num_pages, I64(1)), I32), b.gep(num_recent, [s]))
            # The next access of the page is known now: the one before is redundant, or it is kept.
            with b.if_then(b.icmp_signed(">", before, I32(0))):
                fits = b.icmp_signed("<", b.load(newer), b.trunc(ways, I32))
                for number in (keeps, on):
                    fits = b.and_(fits, b.icmp_signed(">", number, I32(0)))
                fits = b.and_(fits, b.icmp_signed("<=", b.sext(b.sub(before, on), I64), reach))
                b.store(b.select(fits, on, I32(0)), b.gep(found, [b.sext(b.sub(before, I32(1)), I64)]))
                b.store(b.select(fits, keeps, before), b.gep(kept, [page]))
            store_before = since(stored, page)
            b.store(b.select(is_store, store_before, before), b.gep(base, [page]))
            b.store(b.select(is_store, now, store_before), b.gep(stored, [page]))
            b.store(now, b.gep(last, [page]))
    b.ret_void()


def _emit_measure(module: ir.Module) -> None:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64, *[POINTER] * 4]), name="measure")
    begin, end, events, leans, stop, out = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    length, since, at = b.alloca(I64), b.alloca(I32), b.alloca(I64)
    b.store(I64(0), length)
    b.store(I32(0), since)
    b.store(b.trunc(end, I32), b.gep(stop, [end]))
    with loop(b, b.sub(end, begin)) as k:
        i = b.sub(b.sub(end, k), I64(1))
        row, record = b.gep(events, [b.mul(i, I64(len(EVENT_FIELDS)))]), b.gep(out, [b.mul(i, I64(4))])
        op, repeat = (b.load(b.gep(row, [I64(column)])) for column in (OP, REPEAT))
        for column, kind in ((2, Op.LOAD), (3, Op.STORE)):
            here = b.select(b.icmp_signed("==", op, I32(kind)), repeat, I32(0))
            b.store(b.add(here, b.load(b.gep(record, [I64(4 + column)]))), b.gep(record, [I64(column)]))
        own = b.load(b.gep(leans, [i]))
        is_redundant = b.icmp_signed(">", own, I32(0))
        goes_on = b.and_(b.icmp_signed(">", b.load(length), I64(0)), b.icmp_signed("<", b.load(length), I64(_LONGEST)))
        is_less = b.and_(goes_on, b.icmp_signed("<", b.load(since), own))
        b.store(b.select(is_less, b.load(since), own), since)
        b.store(b.select(is_redundant, b.add(b.select(goes_on, b.load(length), I64(0)), I64(1)), I64(0)), length)
        # The near part ends at the first event that leans too far back from here; what holds up this event holds up each between, too.
        least = b.sub(b.trunc(i, I32), I32(NEAR - 1))
        least = b.select(b.icmp_signed("<", least, I32(1)), I32(1), least)
        b.store(i, at)
        with _while(b, lambda: b.and_(b.icmp_signed("<", b.load(at), end), b.icmp_signed(">=", b.load(b.gep(leans, [b.load(at)])), least))):
            b.store(b.sext(b.load(b.gep(stop, [b.add(b.load(at), I64(1))])), I64), at)
        b.store(b.trunc(b.load(at), I32), b.gep(stop, [i]))
        near = b.sub(b.load(at), i)
        near = b.select(b.icmp_signed("<", near, b.load(length)), near, b.load(length))
        lengths = b.or_(b.trunc(b.load(length), I32), b.shl(b.trunc(near, I32), I32(LENGTH_BITS)))
        b.store(b.load(since), record)
        b.store(b.select(b.icmp_signed("<", b.load(length), I64(LEAST)), I32(0), lengths), b.gep(record, [I64(1)]))
    b.ret_void()


@contextmanager
def _while(b: Any, condition: Callable[[], Any]) -> Iterator[None]:
    """Emit the body of the block as long as the condition holds."""
    head, body, leave = (b.function.append_basic_block(name) for name in ("head", "body", "leave"))
    b.branch(head)
    b.position_at_end(head)
    b.cbranch(condition(), body, leave)
    b.position_at_end(body)
    yield
    b.branch(head)
    b.position_at_end(leave)
