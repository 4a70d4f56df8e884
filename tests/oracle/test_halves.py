"""The reference simulator alone: what happens between the halves of a drain, a fault and an allocation."""

from __future__ import annotations

import pytest

from . import scenario
from .counting import ATOMIC_FLUSH, OLD_VALUE
from .scenario import (
    ALLOC_ATOMIC,
    ALLOC_FOREIGN,
    ANON_RO,
    ANON_RW,
    DISCHARGE,
    DONTNEED,
    FAULT_FINISH,
    FAULT_INSTALL,
    FILE_WRITE,
    FINISH,
    FREE_FOREIGN,
    LOAD,
    MADVISE_FREE,
    MMAP,
    MUNMAP,
    RECLAIM,
    RECLAIM_FLUSH,
    SHARED_RO,
    SHARED_RW,
    STORE,
    SWITCH,
    TAKE_OFF,
)  # fmt: skip
from .state import BATCH, FREE, TAKEN, USED

OWING = [(1, LOAD, 0), (2, RECLAIM, 0), (2, RECLAIM_FLUSH)]
FLUSHED = [(1, LOAD, 0), (2, RECLAIM, 0), (2, RECLAIM_FLUSH, 0, 1)]


@pytest.mark.parametrize(("policy", "init_on_free", "sent"), [("linux", 0, 2), ("luf_v10", 0, 0), ("luf_v10", 2, 2)])
def test_the_first_half_of_a_drain_flushes_and_frees_nothing(policy: str, init_on_free: int, sent: int) -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 0)}, policy, init_on_free=init_on_free), FLUSHED)
    f, state = oracle.state.batch[0][0], oracle.state
    assert (state.frames[f].state, state.backings[0].home, oracle.counters()["ipi_reclaim"]) == (BATCH, f, sent)
    assert (state.need_flush, state.U, state.D) == (False, set(), set())
    scenario.run(oracle, [(2, RECLAIM_FLUSH, 0, 1), (2, RECLAIM_FLUSH)])
    assert (state.frames[f].state, state.backings[0].home, state.batch) == (FREE, None, [])
    assert oracle.counters()["ipi_reclaim"] == sent
    assert not scenario.violated(scenario.run(oracle, [(2, ALLOC_FOREIGN), (1, LOAD, 0)]))


def test_a_page_that_is_taken_back_between_the_halves_stays() -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 0)}), [*FLUSHED, (1, LOAD, 0), (2, RECLAIM_FLUSH)])
    f = oracle.state.backings[0].home
    assert f is not None
    assert (oracle.state.frames[f].state, oracle.counters()["pgrescued"], oracle.state.batch) == (USED, 1, [])


@pytest.mark.parametrize("more", [[(2, RECLAIM, 0)], [(1, LOAD, 1), (2, RECLAIM, 0), (2, RECLAIM, 1)]])
def test_the_second_half_flushes_what_was_queued_since(more: list[tuple[int, ...]]) -> None:
    oracle = scenario.machine({0: (SHARED_RO, 0), 1: (SHARED_RO, 1)})
    scenario.run(oracle, [*FLUSHED, (1, LOAD, 0), *more, (2, RECLAIM_FLUSH), (2, ALLOC_FOREIGN), (1, LOAD, 0)])
    assert oracle.counters()["ipi_reclaim"] == 4
    assert not scenario.violated(oracle)


@pytest.mark.parametrize(("policy", "sends"), [("linux", 0), ("never", 0), ("luf_v10", 1), ("fpr", 1)])
def test_an_atomic_allocation_may_not_send_what_its_frame_owes(policy: str, sends: int) -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 0)}, policy), [*OWING, (2, ALLOC_ATOMIC, 5)])
    assert oracle.violations()["loads"][ATOMIC_FLUSH] == sends
    assert oracle.violations()["first"][ATOMIC_FLUSH] == ([4, 2, -1, -1] if sends else [0, 0, 0, 0])
    assert (oracle.counters()["discharged_by_foreign"], oracle.counters()["ipi_alloc"]) == (sends, 2 * sends)


@pytest.mark.parametrize(("others", "refused", "fails"), [([], 1, 1), ([(2, ALLOC_FOREIGN), (2, FREE_FOREIGN)], 1, 0)])
def test_a_frame_that_owes_is_refused_where_it_lies(others: list[tuple[int, ...]], refused: int, fails: int) -> None:
    oracle = scenario.machine({0: (SHARED_RO, 0)}, "luf_v10", atomic_alloc=1)
    scenario.run(oracle, [*others, *OWING])
    before = list(oracle.state.cpus[2].pcp)
    scenario.run(oracle, [(2, ALLOC_ATOMIC)])
    counters = oracle.counters()
    assert (counters["atomic_refused"], counters["alloc_fail"], counters["ipi_alloc"]) == (refused, fails, 0)
    assert oracle.state.cpus[2].pcp == (before if fails else [before[0], *before[2:]])
    assert not scenario.violated(oracle)


def test_an_atomic_allocation_looks_at_three_frames_and_does_not_reclaim() -> None:
    reclaimed = [(1, LOAD, v) for v in range(3)] + [(2, RECLAIM, v) for v in range(3)]
    oracle = scenario.machine({v: (SHARED_RO, v) for v in range(3)}, "luf_v10", atomic_alloc=1, pcp_high=7)
    scenario.run(oracle, [(2, ALLOC_FOREIGN), (2, FREE_FOREIGN), *reclaimed, (2, RECLAIM_FLUSH)])
    before = list(oracle.state.cpus[2].pcp)
    oracle.state.params.update(load_mode=1, wmark_min=20, wmark_low=20)
    scenario.run(oracle, [(2, ALLOC_ATOMIC)])
    counters = oracle.counters()
    assert len(before) == 5
    assert oracle.state.cpus[2].pcp == before
    assert (counters["atomic_refused"], counters["alloc_fail"], counters["allocstall"]) == (3, 1, 0)
    assert oracle.state.kswapd_on


@pytest.mark.parametrize(("scope", "of_another_file", "of_the_file"), [(0, 2, 2), (1, 0, 2)], ids=["global", "mm_and_file"])
def test_a_forced_flush_pays_what_is_in_scope_and_once(scope: int, of_another_file: int, of_the_file: int) -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 0), 1: (SHARED_RO, 1)}, "luf_v12", debt_scope=scope), OWING)
    sent = [scenario.run(oracle, [(0, FILE_WRITE, 0, page)]).counters()["ipi_fault"] for page in (1, 0, 0)]
    assert sent == [of_another_file, of_the_file, of_the_file]


@pytest.mark.parametrize("rule", [2, 3], ids=["before", "after"])
@pytest.mark.parametrize(("vma", "op", "sent"), [(SHARED_RO, LOAD, 0), (ANON_RO, LOAD, 2), (SHARED_RW, LOAD, 2), (SHARED_RW, STORE, 2)])
def test_a_fault_pays_if_its_page_may_ever_be_written(rule: int, vma: int, op: int, sent: int) -> None:
    pages = {0: (SHARED_RO, 0), 1: (vma, -1 if vma == ANON_RO else 1)}
    oracle = scenario.run(scenario.machine(pages, "luf_v10", write_fault_flush=rule), [*OWING, (0, op, 1)])
    assert oracle.counters()["ipi_fault"] == sent


def test_the_halves_of_a_fault_let_others_see_its_pte_before_it_pays() -> None:
    oracle = scenario.machine({0: (ANON_RW, -1), 1: (SHARED_RO, 1)}, "luf_v10", write_fault_flush=3)
    scenario.run(oracle, [*OWING, (0, FAULT_INSTALL, 0, 1)])
    assert oracle.state.cpus[0].fault == (0, True)
    assert oracle.state.page(0, 0).writable
    assert oracle.counters()["ipi_fault"] == 0
    scenario.run(oracle, [(2, STORE, 0), (1, LOAD, 0)])
    assert scenario.violated(oracle) == {OLD_VALUE}
    scenario.run(oracle, [(0, FAULT_FINISH, 0)])
    assert oracle.state.cpus[0].fault is None
    assert oracle.counters()["ipi_fault"] == 2
    assert scenario.run(oracle, [(1, LOAD, 0)]).violations()["loads"][OLD_VALUE] == 1


@pytest.mark.parametrize(("row", "is_enabled"), [
    ((0, LOAD, 1), False), ((0, STORE, 0), False), ((0, MMAP, 5, -1, ANON_RW), False), ((0, MUNMAP, 0), False), ((0, DONTNEED, 0), False),
    ((0, SWITCH, 0, 0), False), ((0, FINISH), False), ((0, FAULT_INSTALL, 1, 0), False), ((0, FAULT_FINISH, 1), False), ((1, FAULT_FINISH, 0), False),
    ((0, FAULT_FINISH, 0), True), ((0, RECLAIM, 0), True), ((0, ALLOC_ATOMIC), True), ((1, MUNMAP, 0), True), ((1, LOAD, 0), True),
])  # fmt: skip
def test_a_cpu_between_the_halves_does_nothing_else(row: tuple[int, ...], is_enabled: bool) -> None:
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1), 1: (SHARED_RO, 1)}), [(0, FAULT_INSTALL, 0, 0), row])
    assert oracle.counters()["events_disabled"] == (not is_enabled)


@pytest.mark.parametrize(("rows", "is_enabled"), [
    ([(0, DONTNEED, 1), (0, DONTNEED, 1)], False), ([(0, DONTNEED, 1), (0, DONTNEED, 0)], False), ([(0, DONTNEED, 0), (0, DONTNEED, 1)], True),
    ([(0, DONTNEED, 1), (1, DONTNEED, 1)], True), ([(0, DONTNEED, 1), (0, FINISH), (0, DONTNEED, 1)], True),
    ([(0, MADVISE_FREE, 0), (0, MADVISE_FREE, 0)], False), ([(0, MUNMAP, 1), (0, MUNMAP, 0)], True),
])  # fmt: skip
def test_a_call_that_lets_others_fault_goes_upwards(rows: list[tuple[int, ...]], is_enabled: bool) -> None:
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1), 1: (SHARED_RO, 1)}), rows)
    assert oracle.counters()["events_disabled"] == (not is_enabled)


@pytest.mark.parametrize(("rows", "is_enabled"), [
    ([(0, LOAD, 0), (0, FAULT_INSTALL, 0, 0)], False), ([(0, LOAD, 0), (0, FAULT_INSTALL, 0, 1)], True),
    ([(0, LOAD, 0), (1, FAULT_INSTALL, 0, 0)], False),
    ([*OWING, (1, FAULT_INSTALL, 0, 0)], False), ([*OWING, (0, FAULT_INSTALL, 0, 0)], True), ([*OWING, (1, FAULT_INSTALL, 0, 1)], True),
])  # fmt: skip
def test_only_an_access_that_would_fault_has_halves(rows: list[tuple[int, ...]], is_enabled: bool) -> None:
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1)}, "luf_v10"), rows)
    assert oracle.counters()["events_disabled"] == (not is_enabled)


def test_a_fault_that_is_refused_leaves_nothing_to_finish() -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 0)}), [(0, FAULT_INSTALL, 0, 1), (0, FAULT_FINISH, 0), (0, LOAD, 0)])
    assert (oracle.counters()["segv"], oracle.counters()["events_disabled"], oracle.counters()["loads"]) == (1, 1, 1)


@pytest.mark.parametrize(("policy", "merge", "sent"), [("linux", 0, 0), ("luf_v10", 0, 2), ("luf_v10", 1, 2), ("fpr", 0, 2)])
def test_the_halves_of_an_allocation_pay_in_the_second(policy: str, merge: int, sent: int) -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 0)}, policy, debt_merge=merge), [*OWING, (2, TAKE_OFF)])
    assert oracle.state.cpus[2].taken is not None
    f, debt = oracle.state.cpus[2].taken
    assert (oracle.state.frames[f].state, bool(debt.owed), oracle.counters()["nr_pending"]) == (TAKEN, sent > 0, 0)
    assert scenario.run(oracle, [(1, LOAD, 0), (2, TAKE_OFF)]).counters()["events_disabled"] == 1
    assert oracle.counters()["ipi_alloc"] == 0
    scenario.run(oracle, [(2, DISCHARGE), (1, LOAD, 0), (2, DISCHARGE)])
    assert (oracle.counters()["ipi_alloc"], oracle.counters()["events_disabled"]) == (sent, 2)
    assert (oracle.state.foreign, oracle.state.frames[f].handed) == ([f], 7)
    assert not scenario.violated(oracle)


def test_another_flush_pays_for_a_frame_that_is_taken() -> None:
    pages = {0: (SHARED_RO, 0), 1: (SHARED_RO, 1)}
    both = [(1, LOAD, 0), (1, LOAD, 1), (2, RECLAIM, 0), (2, RECLAIM, 1), (2, RECLAIM_FLUSH)]
    oracle = scenario.run(scenario.machine(pages, "luf_v10"), [*both, (2, TAKE_OFF), (2, ALLOC_FOREIGN), (2, DISCHARGE)])
    assert (oracle.counters()["discharges"], oracle.counters()["absorbed"], oracle.counters()["ipi_alloc"]) == (1, 1, 2)
