"""The canonical form of a machine's state: integers, lists and None, the same from every implementation."""

from __future__ import annotations

from typing import Any

from .state import Backing, Cpu, Frame, Page, State
from .tlb import TlbLevel


def _mask(cpus: set[int]) -> int:
    return sum(1 << c for c in cpus)


def _or_none(x: int | None) -> int:
    return -1 if x is None else x


def _ints(*xs: int) -> list[int]:
    return [int(x) for x in xs]


def _level(level: TlbLevel) -> list[list[list[int] | None]]:
    return [[None if e is None else _ints(e.m, e.vpn, e.frame, e.writable, e.dirty, e.filled, e.used) for e in ways] for ways in level.sets]


def _gather(cpu: Cpu) -> list[Any] | None:
    g = cpu.gather
    return None if g is None else [*_ints(g.op, g.vs, g.ve, g.cleared, g.cs, g.ce), list(g.held)]


def _taken(cpu: Cpu) -> list[int] | None:
    if cpu.taken is None:
        return None
    f, debt = cpu.taken
    return [f, _mask(debt.owed), debt.tag, _or_none(debt.owner), debt.since, debt.tag_clock]


def _page(page: Page) -> list[int]:
    promise = page.promise
    return _ints(
        page.present, page.writable, page.accessed, page.dirty, page.marker, _or_none(page.frame), _or_none(page.vma),
        _or_none(page.backing),
        promise.mapped, promise.writable, _or_none(promise.backing), page.epoch, page.changed,
    )  # fmt: skip


def _frame(frame: Frame, state: State) -> list[Any]:
    num_vpns = state.sizes["num_vpns"]
    slots = [-1 if where is None else where[0] * num_vpns + where[1] for where in frame.rmap]
    debt = [_mask(frame.owed), frame.tag, _or_none(frame.owner), frame.since, frame.tag_clock]
    return [frame.state, frame.handed, *frame.content, slots, frame.refs, *debt]


def _backing(backing: Backing) -> list[int]:
    return _ints(
        backing.truth, backing.stored, backing.on_store, _or_none(backing.home), backing.harvested, _or_none(backing.parent),
        _or_none(backing.origin), backing.shared, backing.sharers,
    )  # fmt: skip


def snapshot(s: State) -> dict[str, Any]:
    """The whole state."""
    return {
        "loaded": [_or_none(cpu.loaded) for cpu in s.cpus], "lazy": _ints(*(cpu.lazy for cpu in s.cpus)),
        "ticks": [cpu.ticks for cpu in s.cpus], "tlb1": [_level(cpu.l1) for cpu in s.cpus], "tlb2": [_level(cpu.l2) for cpu in s.cpus],
        "gather": [_gather(cpu) for cpu in s.cpus], "fault": [None if cpu.fault is None else _ints(*cpu.fault) for cpu in s.cpus],
        "taken": [_taken(cpu) for cpu in s.cpus],
        "pcp": [list(cpu.pcp) for cpu in s.cpus], "free": list(s.free), "slow": list(s.slow), "lru": list(s.lru), "lru_slow": list(s.lru_slow),
        "batch": [_ints(f, deferred) for f, deferred in s.batch], "U": _mask(s.U), "D": _mask(s.D), "G": _mask(s.G),
        "need_flush": int(s.need_flush), "foreign": list(s.foreign), "quarantine": [list(entry) for entry in s.quarantine],
        "kswapd_on": int(s.kswapd_on), "ugen": s.ugen, "ugen_done": s.ugen_done, "unmap_clock": s.unmap_clock,
        "covered": [cpu.covered for cpu in s.cpus], "cpumask": [_mask(p.cpumask) for p in s.processes],
        "tlb_gen": [p.tlb_gen for p in s.processes], "pending": [p.pending for p in s.processes],
        "flushed": [p.flushed for p in s.processes], "gathers": [p.gathers for p in s.processes], "excl": [p.excl for p in s.processes],
        "sweep": [_mask(p.sweep) for p in s.processes], "va_debt": _ints(*(p.va_debt for p in s.processes)),
        "mm_owed": [_mask(p.owed) for p in s.processes], "mm_clock": [p.clock for p in s.processes],
        "file_owed": [_mask(b.owed) for b in s.backings[: s.num_file_pages]], "file_clock": [b.clock for b in s.backings[: s.num_file_pages]],
        "next_trim": [p.next_trim for p in s.processes], "gen_done": [list(cpu.gen_done) for cpu in s.cpus],
        "pages": [[_page(page) for page in p.pages] for p in s.processes], "vma_flag": _ints(*s.vma_flag),
        "frames": [_frame(frame, s) for frame in s.frames], "backings": [_backing(b) for b in s.backings], "anon_pool": list(s.anon_pool),
    }  # fmt: skip
