"""The reference simulator alone: fork and copy-on-write after it."""

from __future__ import annotations

import pytest

from . import Oracle, invariants, scenario
from .counting import PERMISSION
from .scenario import (
    ANON_RW,
    DONTNEED,
    EXIT,
    FINISH,
    FORK,
    LOAD,
    MADVISE_FREE,
    MMAP,
    MUNMAP,
    PRIVATE_RW,
    RECLAIM,
    RECLAIM_FLUSH,
    SHARED_RW,
    STORE,
    SWITCH,
    TRUNCATE,
)  # fmt: skip
from .state import FREE, USED

FORKED = [(2, SWITCH, 0, 1), (0, STORE, 0), (0, FORK, 0, 1, ANON_RW), (0, FINISH)]


def _forked(rows: list[tuple[int, ...]], policy: str = "linux", **changes: int) -> Oracle:
    """Process 0 on CPUs 0 and 1 has stored to page 0 and forked; its child runs on CPU 2."""
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1)}, policy, num_processes=2, **changes), [*FORKED, *rows])
    invariants.check(oracle)
    return oracle


def test_a_fork_shares_a_frame_until_one_of_the_two_stores() -> None:
    oracle = _forked([])
    s, parent, child = oracle.state, oracle.state.page(0, 0), oracle.state.page(1, 0)
    assert (parent.backing, child.backing, parent.frame, child.frame, s.frames[0].mappings()) == (4, 4, 0, 0, [(0, 0), (1, 0)])
    assert (parent.writable, parent.dirty, parent.promise.writable) == (False, True, False)
    assert (child.writable, child.accessed, child.dirty, child.promise.writable) == (False, False, True, False)
    assert (s.backings[4].shared, s.backings[4].sharers) == (1, 1)
    scenario.run(oracle, [(0, STORE, 0)])
    assert (parent.backing, parent.frame, parent.writable, parent.promise.writable, s.backings[5].parent) == (5, 1, True, True, 4)
    assert (child.frame, child.writable, child.promise.writable, s.backings[4].sharers) == (0, False, False, 0)
    scenario.run(oracle, [(2, STORE, 0)])
    assert (child.backing, child.frame, child.writable, child.promise.writable) == (4, 0, True, True), "nobody else has it any more"
    assert (oracle.counters()["pgfault"], oracle.counters()["pgmajfault"]) == (3, 0)
    invariants.check(oracle)


@pytest.mark.parametrize("ends", [[(2, MUNMAP, 0), (2, FINISH)], [(2, EXIT, 0), (2, FINISH, 0, 1)], [(2, DONTNEED, 0), (2, FINISH)],
                                  [(2, MMAP, 0, -1, ANON_RW)]], ids=["munmap", "exit", "dontneed", "map_fixed"])  # fmt: skip
def test_a_page_is_gone_with_the_last_that_has_it(ends: list[tuple[int, ...]]) -> None:
    oracle = _forked(ends)
    s = oracle.state
    assert (s.backings[4].home, s.backings[4].shared, s.frames[0].state, s.frames[0].mappings()) == (0, 0, USED, [(0, 0)])
    scenario.run(oracle, [(0, STORE, 0)])
    assert (s.page(0, 0).backing, s.page(0, 0).frame, s.page(0, 0).writable) == (4, 0, True), "written in place"
    scenario.run(oracle, [(0, MUNMAP, 0), (0, FINISH)])
    assert (s.frames[0].state, s.anon_pool[-1]) == (FREE, 4)
    invariants.check(oracle)
    assert not scenario.violated(oracle)


def test_a_shared_page_is_swapped_out_once_and_read_in_for_both() -> None:
    oracle = _forked([(1, RECLAIM, 0), (1, RECLAIM_FLUSH), (2, LOAD, 0), (0, STORE, 0), (2, STORE, 0)])
    assert (oracle.counters()["pgpgout"], oracle.counters()["pgmajfault"]) == (1, 1)
    assert [oracle.state.page(m, 0).backing for m in (0, 1)] == [5, 4]
    oracle = _forked([(1, RECLAIM, 0), (1, RECLAIM_FLUSH), (0, STORE, 0)])
    assert (oracle.counters()["pgmajfault"], oracle.state.backings[4].home) == (1, None), "copied from the store"


def test_one_of_two_cannot_let_the_content_go() -> None:
    lets_go = [(2, MADVISE_FREE, 0), (2, FINISH)]
    assert _forked(lets_go).counters()["pglazyfree"] == 0
    oracle = _forked([(1, RECLAIM, 0), (1, RECLAIM_FLUSH), *lets_go, (2, LOAD, 0)])
    assert (oracle.counters()["pgmajfault"], oracle.state.backings[4].truth) == (1, 2)
    assert _forked([(0, STORE, 0), *lets_go]).counters()["pglazyfree"] == 1


def test_a_copy_of_a_copy_is_still_one_of_the_file_page() -> None:
    oracle = scenario.run(scenario.machine({0: (PRIVATE_RW, 2)}, num_processes=2), [*FORKED[:2], (0, FORK, 0, 1, PRIVATE_RW), (0, FINISH)])
    scenario.run(oracle, [(2, STORE, 0)])
    assert [(b.parent, b.origin) for b in oracle.state.backings[4:6]] == [(2, 2), (4, 2)]
    scenario.run(oracle, [(2, DONTNEED, 0), (2, FINISH), (2, STORE, 0)])
    assert oracle.state.page(1, 0).backing == 5
    scenario.run(oracle, [(1, TRUNCATE, 0, 2)])
    assert [oracle.state.page(m, 0).backing for m in (0, 1)] == [2, 2]
    invariants.check(oracle)


@pytest.mark.parametrize(("vma", "backing"), [(SHARED_RW, 1), (PRIVATE_RW, 1)])
def test_a_page_of_a_file_is_mapped_and_nothing_more(vma: int, backing: int) -> None:
    oracle = scenario.run(scenario.machine({0: (vma, backing)}, num_processes=2), [(0, LOAD, 0), (0, FORK, 0, 1, vma), (0, FINISH)])
    child = oracle.state.page(1, 0)
    assert (child.vma, child.backing, child.present, child.promise.writable) == (vma, backing, False, True)


@pytest.mark.parametrize(("policy", "page", "sent"), [("linux", 0, 2), ("linux", 5, 2), ("luf_v12", 0, 2), ("never", 0, 0), ("eager", 0, 3)])
def test_a_fork_flushes_the_parent_whatever_it_copied(policy: str, page: int, sent: int) -> None:
    rows = [(2, SWITCH, 0, -1), (0, STORE, 0), (0, FORK, page, 1, ANON_RW), (0, FINISH)]
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1)}, policy, num_processes=2), rows)
    assert oracle.counters()["ipi_mapping"] == sent, "lazy CPUs too, once"
    assert oracle.counters()["nr_tlb_local_flush_all"] == (policy != "never")


def test_a_stale_store_counts_as_one_before_the_fork_until_it_returns() -> None:
    rows = [(2, SWITCH, 0, 1), (1, STORE, 0), (0, FORK, 0, 1, ANON_RW), (1, STORE, 0)]
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1)}, "never", num_processes=2), rows)
    assert (oracle.counters()["tolerated"], scenario.violated(oracle)) == (1, set())
    scenario.run(oracle, [(0, FINISH), (1, STORE, 0)])
    assert scenario.violated(oracle) == {PERMISSION}


@pytest.mark.parametrize(("before", "row", "is_enabled"), [
    ([], (0, FORK, 1, 1, ANON_RW), True), ([], (0, FORK, 0, 1, ANON_RW), False), ([], (0, FORK, 1, 0, ANON_RW), False),
    ([(2, MUNMAP, 0)], (0, FORK, 1, 1, ANON_RW), False), ([(2, MUNMAP, 0), (2, FINISH)], (0, FORK, 0, 1, ANON_RW), True),
    ([(1, DONTNEED, 1)], (0, FORK, 1, 1, ANON_RW), False), ([(1, MUNMAP, 1)], (0, FORK, 1, 1, ANON_RW), False),
    ([(0, FORK, 1, 1, ANON_RW)], (1, MUNMAP, 0), False), ([(0, FORK, 1, 1, ANON_RW)], (1, DONTNEED, 0), False),
    ([(0, FORK, 1, 1, ANON_RW)], (0, FORK, 2, 1, ANON_RW), True), ([(0, FORK, 1, 1, ANON_RW)], (0, LOAD, 0), False),
    ([(0, FORK, 1, 1, ANON_RW)], (1, STORE, 0), True), ([(0, FORK, 1, 1, ANON_RW)], (2, MUNMAP, 0), True),
])  # fmt: skip
def test_a_fork_has_the_locks_of_both(before: list[tuple[int, ...]], row: tuple[int, ...], is_enabled: bool) -> None:
    oracle = _forked([*before, row])
    assert oracle.counters()["events_disabled"] == (not is_enabled)
