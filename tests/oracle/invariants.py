"""What holds in every state of every machine, whatever its policy."""

from __future__ import annotations

from collections import Counter

from . import Oracle
from .state import BATCH, FOREIGN, FREE, HELD, QUARANTINE, TAKEN, USED, State
from .tlb import TlbLevel


def check(oracle: Oracle) -> None:
    """Assert every invariant of the state that ``oracle`` is in."""
    s = oracle.state
    _frames_are_in_one_place(s)
    _rmap_agrees_with_ptes(s)
    _homes_agree(s)
    _anonymous_ids_are_conserved(s)
    _gathers_and_references_agree(s)
    for cpu in s.cpus:
        _tlb_is_well_formed(cpu.l1)
        _tlb_is_well_formed(cpu.l2)
    pending = [f for f, frame in enumerate(s.frames) if frame.state == FREE and frame.owed]
    assert oracle.counts.scalars["nr_pending"] == len(pending)


def _frames_are_in_one_place(s: State) -> None:
    waiting = {f for f, *_ in s.quarantine if s.frames[f].state == QUARANTINE}
    held = {f for cpu in s.cpus if cpu.gather for f in cpu.gather.held} | {f for f, *_ in s.quarantine}
    held = {f for f in held if s.frames[f].state == HELD}
    batch = sorted({f for f, _ in s.batch if s.frames[f].state == BATCH})
    fast = s.free + [f for cpu in s.cpus for f in cpu.pcp]
    assert all(f < s.params["fast_frames"] for f in fast)
    assert all(f >= s.params["fast_frames"] for f in s.slow)
    assert all(s.lru_of(f) is s.lru for f in s.lru)
    assert all(s.lru_of(f) is s.lru_slow for f in s.lru_slow)
    free = fast + s.slow
    taken = [cpu.taken[0] for cpu in s.cpus if cpu.taken]
    places = {FREE: free, USED: s.lru + s.lru_slow, BATCH: batch, HELD: held, FOREIGN: s.foreign, QUARANTINE: waiting, TAKEN: taken}
    for state, frames in places.items():
        assert all(s.frames[f].state == state for f in frames), (state, frames)
    assert not [f for f in s.foreign + taken if s.frames[f].owed or s.frames[f].refs or s.frames[f].owner is not None]
    everywhere = [f for frames in places.values() for f in frames]
    assert sorted(everywhere) == list(range(s.params["frames_in_use"]))


def _rmap_agrees_with_ptes(s: State) -> None:
    mapped = {(m, v): page.frame for m, process in enumerate(s.processes) for v, page in enumerate(process.pages) if page.present}
    by_rmap = [(where, f) for f, frame in enumerate(s.frames) for where in frame.mappings()]
    assert len(by_rmap) == len(mapped)
    assert dict(by_rmap) == mapped
    for (m, v), f in mapped.items():
        page = s.page(m, v)
        assert s.frames[f].state == USED
        assert s.frames[f].page == page.backing
        assert not page.marker
        assert page.vma is not None
        assert page.dirty or not page.writable or s.is_anon(page.backing)
        assert not page.writable or not s.is_copy_on_write(page)


def _homes_agree(s: State) -> None:
    for f, frame in enumerate(s.frames):
        if frame.state == USED:
            assert s.backings[frame.page].home == f
    for b, backing in enumerate(s.backings):
        if s.is_gone(b):
            assert backing.home is None
        if backing.home is not None:
            assert s.frames[backing.home].page == b
            assert s.frames[backing.home].state in (USED, BATCH)


def _anonymous_ids_are_conserved(s: State) -> None:
    pages = [page for process in s.processes for page in process.pages]
    live = {b for page in pages for b in (page.backing, page.promise.backing) if b is not None and s.is_anon(b)}
    pool = Counter(s.anon_pool)
    assert all(count == 1 for count in pool.values())
    assert set(pool) | live == set(range(s.num_file_pages, len(s.backings)))
    assert not set(pool) & live
    users = Counter(b for page in pages for b in {page.backing, page.promise.backing} if b is not None and s.is_anon(b))
    assert users == Counter({b: s.backings[b].shared + 1 for b in live})
    mapped = Counter(page.backing for page in pages if page.backing is not None and s.is_anon(page.backing))
    assert all(backing.sharers == max(mapped[b] - 1, 0) for b, backing in enumerate(s.backings))


def _gathers_and_references_agree(s: State) -> None:
    references: Counter[int] = Counter(f for f, *_ in s.quarantine)
    for cpu in s.cpus:
        if cpu.gather:
            references.update(cpu.gather.held)
    assert references == Counter({f: frame.refs for f, frame in enumerate(s.frames) if frame.refs})
    for m, process in enumerate(s.processes):
        ops = [cpu.gather.op for cpu in s.cpus if cpu.gather and cpu.loaded == m]
        assert process.gathers == len(ops)
        assert process.excl == len([op for op in ops if op not in (6, 22)])


def _tlb_is_well_formed(level: TlbLevel) -> None:
    for index, ways in enumerate(level.sets):
        entries = [(e.m, e.vpn) for e in ways if e is not None]
        assert len(set(entries)) == len(entries)
        assert all(level.set_of(vpn) == index for _, vpn in entries)
