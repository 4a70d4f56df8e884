"""The reference simulator alone: known hazards, safe and unsafe policies, invariants, faults."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from . import Oracle, invariants, scenario
from .counting import ATOMIC_FLUSH, LOST_STORE, MAPPING, OLD_VALUE, PERMISSION, REUSE
from .generate import SHAPES, random_events, random_machine, random_params, random_trace
from .generate_events import FORKS, WEIGHTS
from .policies import PRESETS
from .scenario import (
    ALLOC_ATOMIC,
    ALLOC_FOREIGN,
    ANON_NONE,
    ANON_RO,
    ANON_RW,
    DISCHARGE,
    DONTNEED,
    EXIT,
    FAULT_FINISH,
    FAULT_INSTALL,
    FILE_WRITE,
    FINISH,
    FORK,
    FREE_FOREIGN,
    LOAD,
    MADVISE_FREE,
    MIGRATE,
    MMAP,
    MPROTECT,
    MREMAP,
    MUNMAP,
    PRIVATE_RW,
    RECLAIM,
    RECLAIM_FLUSH,
    REMOTE_WRITE,
    SHARED_RO,
    SHARED_RW,
    STORE,
    SWITCH,
    TAKE_OFF,
    TICK,
    TRUNCATE,
)  # fmt: skip
from .state import BATCH, FREE, TAKEN, USED

SAFE = ("linux", "linux_6_15", "eager")
HOLE = [(1, LOAD, 0), (2, RECLAIM, 0), (2, RECLAIM_FLUSH), (0, MUNMAP, 0), (0, FINISH)]
HOLE_FILLED = [*HOLE, (0, MMAP, 0, 1, SHARED_RO), (0, LOAD, 0)]
HAZARDS: dict[str, tuple[dict[int, tuple[int, int]], list[tuple[int, ...]]]] = {
    "a nested madvise returns while another one has not flushed": (
        {0: (ANON_RW, -1)},
        [(1, STORE, 0), (0, DONTNEED, 0), (1, DONTNEED, 0), (1, FINISH), (1, STORE, 0), (1, LOAD, 0)],
    ),
    "reclaim between the two halves of mprotect(PROT_NONE)": (
        {0: (ANON_RW, -1)},
        [(0, STORE, 0), (1, LOAD, 0), (0, MPROTECT, 0, ANON_NONE), (2, RECLAIM, 0), (1, STORE, 0), (0, FINISH)],
    ),
    "a store in a madvise window after a write-out and a rescue": (
        {0: (SHARED_RW, 2)},
        [(0, FILE_WRITE, 0, 2), (1, RECLAIM, 0), (1, STORE, 0), (0, LOAD, 0), (1, DONTNEED, 0), (0, STORE, 0)],
    ),
    "a store between zap and flush": ({0: (ANON_RW, -1)}, [(1, STORE, 0), (0, DONTNEED, 0), (1, STORE, 0)]),
    "the parent of a private copy shows in a madvise window": (
        {0: (PRIVATE_RW, 2)},
        [(1, STORE, 0), (1, DONTNEED, 0), (0, LOAD, 0), (1, RECLAIM, 0), (0, LOAD, 0)],
    ),
    "permission granted and taken back in one gather": (
        {0: (ANON_RO, -1)},
        [(0, MPROTECT, 0, ANON_RW), (1, STORE, 0), (0, MPROTECT, 0, ANON_RO), (1, STORE, 0)],
    ),
    "a truncated page whose frame a madvise still holds": (
        {0: (SHARED_RW, 2)},
        [(1, STORE, 0), (0, DONTNEED, 0), (2, TRUNCATE, 0, 2), (2, ALLOC_FOREIGN), (1, LOAD, 0), (0, FINISH), (2, ALLOC_FOREIGN), (1, LOAD, 0)],
    ),
    "a second MADV_FREE returns while the first has not flushed": (
        {0: (ANON_RW, -1)},
        [(0, STORE, 0), (1, MADVISE_FREE, 0), (2, MADVISE_FREE, 0), (2, FINISH), (0, STORE, 0), (1, FINISH), (1, RECLAIM, 0), (0, LOAD, 0)],
    ),
    "a store in a MADV_FREE window": ({0: (ANON_RW, -1)}, [(0, STORE, 0), (1, MADVISE_FREE, 0), (0, STORE, 0), (1, FINISH), (0, STORE, 0)]),
    "a page that moved is reclaimed at its new address": (
        {0: (ANON_RW, -1)},
        [(1, STORE, 0), (0, MREMAP, 0, 3), (2, RECLAIM, 3), (1, STORE, 0), (0, FINISH), (2, RECLAIM, 3), (2, RECLAIM_FLUSH), (1, LOAD, 0)],
    ),
    "a process takes the place of one that ended": (
        {0: (SHARED_RO, 1)},
        [(1, LOAD, 0), (2, SWITCH, 0, -1), (1, SWITCH, 0, -1), (0, EXIT, 0), (0, FINISH, 0, 1), (1, SWITCH), (1, MMAP, 0, 2, 0), (1, LOAD, 0)],
    ),
    "the server changes a page that waits for its flush": (
        {0: (SHARED_RO, 2)},
        [(1, LOAD, 0), (0, RECLAIM, 0), (2, REMOTE_WRITE, 0, 2), (1, LOAD, 0)],
    ),
    "the server changes a page that reclaim gave back": (
        {0: (SHARED_RO, 2), 1: (SHARED_RO, 2)},
        [(1, LOAD, 0), (1, LOAD, 1), (0, RECLAIM, 0), (0, LOAD, 0), (2, REMOTE_WRITE, 0, 2), (1, LOAD, 1)],
    ),
    "copy-on-write over an unmap that is not flushed": (
        {0: (PRIVATE_RW, 2)},
        [(1, LOAD, 0), (0, RECLAIM, 0), (0, STORE, 0), (1, LOAD, 0)],
    ),
    "store after mprotect(read-only)": (
        {0: (ANON_RW, -1)},
        [(1, STORE, 0), (0, MPROTECT, 0, ANON_RO), (0, FINISH), (1, STORE, 0)],
    ),
    "a frame is reused": (
        {0: (SHARED_RO, 1)},
        [(1, LOAD, 0), (0, RECLAIM, 0), (0, RECLAIM_FLUSH), (0, ALLOC_FOREIGN), (1, LOAD, 0)],
    ),
}
UNDER_NEVER = {"store after mprotect(read-only)": {PERMISSION}, "a frame is reused": {REUSE},
               "copy-on-write over an unmap that is not flushed": {OLD_VALUE}}  # fmt: skip


def _hole(policy: str, rows: list[tuple[int, ...]]) -> Oracle:
    """CPU 1 reads a file page, CPU 2 reclaims it lazily, CPU 0 unmaps the address, CPU 1 reads it again [luf-v10 thread, May 2024]."""
    return scenario.run(scenario.machine({0: (SHARED_RO, 0)}, policy), [*rows, (1, LOAD, 0)])


@pytest.mark.parametrize("rows", [HOLE, HOLE_FILLED], ids=["nothing mapped", "another file mapped"])
def test_munmap_hole_is_open_without_a_rule_for_mapping_calls(rows: list[tuple[int, ...]]) -> None:
    oracle = _hole("luf_naive", rows)
    assert scenario.violated(oracle) == {MAPPING}
    assert oracle.violations()["loads"][MAPPING] == 1
    assert oracle.violations()["first"][MAPPING] == [len(rows) + 1, 1, 0, 0]
    assert oracle.counters()["nr_tlb_remote_flush_received"] == 0


@pytest.mark.parametrize("rows", [HOLE, HOLE_FILLED], ids=["nothing mapped", "another file mapped"])
@pytest.mark.parametrize("policy", ["linux", "linux_6_15", "eager", "luf_vma_flag", "luf_pte_marker", "luf_v10"])
def test_munmap_hole_is_closed_by_every_rule(policy: str, rows: list[tuple[int, ...]]) -> None:
    oracle = _hole(policy, rows)
    assert not scenario.violated(oracle)
    assert oracle.counters()["segv"] == (1 if rows is HOLE else 0)


@pytest.mark.parametrize("hazard", HAZARDS)
@pytest.mark.parametrize("policy", SAFE)
def test_safe_policies_close_the_window(policy: str, hazard: str) -> None:
    pages, rows = HAZARDS[hazard]
    assert not scenario.violated(scenario.run(scenario.machine(pages, policy), rows))


@pytest.mark.parametrize("hazard", UNDER_NEVER)
def test_never_falls_into_it(hazard: str) -> None:
    pages, rows = HAZARDS[hazard]
    assert scenario.violated(scenario.run(scenario.machine(pages, "never"), rows)) >= UNDER_NEVER[hazard]


def test_store_after_write_out_is_lost_without_the_flush_before_it() -> None:
    rows = [(1, STORE, 0), (0, RECLAIM, 0), (1, STORE, 0)]
    assert not scenario.violated(scenario.run(scenario.machine({0: (SHARED_RW, 1)}), rows))
    assert scenario.violated(scenario.run(scenario.machine({0: (SHARED_RW, 1)}, flush_dirty=0), rows)) == {LOST_STORE}


@pytest.mark.parametrize("policy", ["linux", "latr"])
def test_a_frame_with_two_holders_is_freed_by_the_last(policy: str) -> None:
    """Two madvise calls hold the frame of a page that is truncated, each in a process or CPU of its own."""
    pages = {0: (SHARED_RW, 1), 1: (SHARED_RW, 1)}
    oracle = scenario.run(scenario.machine(pages, policy), [(0, STORE, 0), (1, STORE, 1), (0, DONTNEED, 0), (1, DONTNEED, 1)])
    frame = oracle.state.frames[oracle.state.backings[1].home]
    states = []
    for row in [(2, TRUNCATE, 0, 1), (0, FINISH), (1, FINISH), (0, TICK), (1, TICK), (2, TICK), (0, TICK)]:
        scenario.run(oracle, [row])
        invariants.check(oracle)
        states.append((frame.refs, frame.state == FREE))
    assert states[:2] == ([(2, False), (1, False)] if policy == "linux" else [(2, False), (2, False)])
    assert states[-1] == (0, True)
    assert [free for _, free in states].index(True) == (2 if policy == "linux" else 6)


def test_a_page_let_go_is_dropped_unless_something_is_stored_again() -> None:
    lets_go = [(0, STORE, 0), (0, MADVISE_FREE, 0), (0, FINISH)]
    dropped = scenario.run(scenario.machine({0: (ANON_RW, -1)}), [*lets_go, (1, RECLAIM, 0), (1, RECLAIM_FLUSH), (0, LOAD, 0)])
    counts = dropped.counters()
    assert [counts[name] for name in ("pglazyfree", "pglazyfreed", "pgpgout", "pgmajfault")] == [1, 1, 0, 0]
    kept = scenario.run(scenario.machine({0: (ANON_RW, -1)}), [*lets_go, (0, STORE, 0), (1, RECLAIM, 0), (1, RECLAIM_FLUSH), (0, LOAD, 0)])
    counts = kept.counters()
    assert [counts[name] for name in ("pglazyfree", "pglazyfreed", "pgpgout", "pgmajfault")] == [1, 0, 1, 1]
    swapped = [(0, STORE, 0), (1, RECLAIM, 0), (1, RECLAIM_FLUSH), (0, MADVISE_FREE, 0), (0, FINISH), (0, LOAD, 0)]
    assert scenario.run(scenario.machine({0: (ANON_RW, -1)}), swapped).counters()["pgmajfault"] == 0


def test_a_page_moves_with_its_frame_and_its_content() -> None:
    oracle = scenario.run(scenario.machine({0: (ANON_RW, -1), 1: (SHARED_RO, 1)}), [(0, STORE, 0), (0, MREMAP, 0, 1)])
    assert oracle.counters()["events_disabled"] == 1, "something is mapped there"
    scenario.run(oracle, [(0, MREMAP, 0, 3), (0, MREMAP, 1, 0), (0, FINISH), (0, LOAD, 3), (0, LOAD, 0)])
    counts = oracle.counters()
    assert counts["events_disabled"] == 2, "an address that a call moves away from is not free before its end"
    assert [counts[name] for name in ("pgfault", "segv", "walk_completed")] == [2, 1, 1]
    invariants.check(oracle)


def test_a_process_ends_only_where_nobody_else_runs_it() -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 1)}), [(1, LOAD, 0), (0, EXIT, 0)])
    assert oracle.counters()["events_disabled"] == 1
    scenario.run(oracle, [(1, SWITCH, 0, -1), (2, SWITCH, 0, -1), (0, EXIT, 0), (0, FINISH, 0, 1), (0, LOAD, 0)])
    assert oracle.counters()["events_disabled"] == 2, "the CPU idles"
    assert oracle.counters()["nr_tlb_remote_flush_received"] == 2, "lazy CPUs too: page tables are freed"
    assert [cpu.loaded for cpu in oracle.state.cpus] == [None, None, None]


def test_an_access_beyond_the_end_of_the_file_is_a_sigbus() -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RW, 1), 1: (PRIVATE_RW, 1)}), [(0, STORE, 0), (0, STORE, 1), (0, TRUNCATE, 0, 1)])
    scenario.run(oracle, [(0, LOAD, 0), (0, STORE, 0), (1, LOAD, 1), (1, STORE, 1)])
    assert oracle.counters()["sigbus"] == 4
    scenario.run(oracle, [(0, FILE_WRITE, 0, 1), (0, LOAD, 0), (1, STORE, 1), (0, TRUNCATE, 0, 1), (0, REMOTE_WRITE, 0, 1), (0, LOAD, 1)])
    assert oracle.counters()["sigbus"] == 4
    assert oracle.counters()["pgmajfault"] == 2
    invariants.check(oracle)


def _random_run(policy: str, load_mode: int, seed: int, num_events: int, weights: dict[int, int] = WEIGHTS) -> Oracle:
    rng = random.Random(seed)
    sizes = SHAPES[seed % len(SHAPES)]
    params, trace = random_params(rng, sizes) | {"load_mode": load_mode}, random_trace(rng, sizes)
    rules = PRESETS[policy] | {"quarantine_slots": 4, "flush_ceiling": rng.choice((0, 1, 33)), "trim_period": rng.choice((3, 100000))}
    oracle = Oracle(sizes, params, rules, trace)
    for row in random_events(rng, sizes, trace, num_events, weights):
        oracle.step(row)
    assert not oracle.faults
    return oracle


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


@pytest.mark.parametrize("load_mode", [0, 1], ids=["scripted", "load"])
@pytest.mark.parametrize("policy", SAFE)
def test_safe_policies_never_violate(policy: str, load_mode: int) -> None:
    runs = [_random_run(policy, load_mode, seed, 400) for seed in range(30)]
    assert not set().union(*(scenario.violated(oracle) for oracle in runs))
    tolerated = sum(oracle.counters()["tolerated"] for oracle in runs)
    assert (tolerated == 0) == (policy == "eager")


@pytest.mark.parametrize("policy", SAFE)
def test_safe_policies_never_violate_among_forks(policy: str) -> None:
    for seed in range(60):
        oracle = _random_run(policy, seed % 2, seed, 300, FORKS)
        invariants.check(oracle)
        assert not scenario.violated(oracle)


@pytest.mark.parametrize("load_mode", [0, 1], ids=["scripted", "load"])
def test_never_violates_in_every_class(load_mode: int) -> None:
    runs = [_random_run("never", load_mode, seed, 400) for seed in range(30)]
    assert set().union(*(scenario.violated(oracle) for oracle in runs)) == {REUSE, MAPPING, PERMISSION, LOST_STORE, OLD_VALUE}


def test_invariants_hold_after_every_random_event() -> None:
    disabled = events = 0
    for seed in range(60):
        rng = random.Random(seed)
        sizes, params, policy, trace = random_machine(rng)
        oracle = Oracle(sizes, params, policy, trace)
        invariants.check(oracle)
        for row in random_events(rng, sizes, trace, 120):
            oracle.step(row)
            invariants.check(oracle)
        assert not oracle.faults
        counters = oracle.counters()
        disabled, events = disabled + counters["events_disabled"], events + counters["events"]
        assert sum(counters["received"]) == counters["nr_tlb_remote_flush_received"]
        assert sum(counters[f"ipi_{payer}"] for payer in ("reclaim", "mapping", "fault", "alloc")) == sum(counters["received"])
    assert 0.02 < disabled / events < 0.25


@pytest.mark.parametrize(
    ("fault", "changes", "rows"),
    [
        ("RMAP_FULL", {"rmap_slots": 1}, [(0, LOAD, 0), (0, LOAD, 1)]),
        ("GATHER_FULL", {"gather_slots": 1}, [(0, MUNMAP, 0), (0, MUNMAP, 1)]),
        ("ANON_POOL_EMPTY", {"num_anon": 1}, [(0, MMAP, 5, -1, ANON_RW), (0, MMAP, 6, -1, ANON_RW)]),
    ],
)
def test_full_lists_fault(fault: str, changes: dict[str, int], rows: list[tuple[int, ...]]) -> None:
    pages = {0: (SHARED_RO, 0), 1: (SHARED_RO, 0)}
    oracle = scenario.run(scenario.machine(pages, **changes), rows[:1])
    assert not oracle.faults
    assert scenario.run(oracle, rows[1:]).faults == {fault}


def test_the_simulator_imports_nothing_of_the_package() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        if path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not [name for name in names if name.split(".")[0] in ("lufjax", "numpy", "jax")], path.name


@pytest.mark.parametrize(("policy", "sent"), [("linux", 2), ("eager", 2), ("luf_v10", 2), ("never", 0)])
def test_a_migrated_page_keeps_its_pte_and_its_content(policy: str, sent: int) -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RW, 1)}, policy, fast_frames=8), [(0, STORE, 0), (2, MIGRATE, 0, 0)])
    page, s = oracle.state.page(0, 0), oracle.state
    assert (page.present, page.writable, page.dirty, page.frame) == (True, True, True, 8)
    assert (s.frames[8].content, s.backings[1].home, s.lru, s.lru_slow) == ((1, 2), 8, [], [8])
    assert (s.frames[0].state, s.cpus[2].pcp, s.slow) == (0, [0], list(range(9, 16)))
    assert (oracle.counters()["ipi_reclaim"], oracle.counters()["pgmigrate_success"]) == (sent, 1), "a writable PTE is never deferred"
    scenario.run(oracle, [(2, MIGRATE, 0, 0)])
    assert (page.frame, s.slow, oracle.counters()["pgpromote_success"]) == (0, [8, *range(9, 16)], 1)
    invariants.check(oracle)


def test_the_flush_of_a_migration_is_deferred_with_the_frame_that_it_leaves() -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 1)}, "luf_v10"), [(1, LOAD, 0), (2, MIGRATE, 0, 0)])
    assert (oracle.state.frames[0].owed, oracle.state.G, oracle.counters()["deferred_unmaps"]) == ({0, 1, 2}, {0, 1, 2}, 1)
    assert oracle.counters()["ipi_reclaim"] == 0
    scenario.run(oracle, [(2, ALLOC_FOREIGN)])
    assert (oracle.state.foreign, oracle.counters()["ipi_alloc"]) == ([0], 2)


def test_a_page_moves_only_if_there_is_a_frame_and_nobody_else_has_it() -> None:
    oracle = scenario.run(scenario.machine({0: (SHARED_RO, 1)}, fast_frames=15), [(0, LOAD, 0), (1, MIGRATE, 1, 0)])
    assert oracle.counters()["events_disabled"] == 1, "nothing is mapped there"
    scenario.run(oracle, [(1, RECLAIM, 0, 0), (1, MIGRATE, 0, 0), (1, LOAD, 0), (1, MIGRATE, 0, 0)])
    assert (oracle.counters()["events_disabled"], oracle.counters()["pgrescued"]) == (3, 1), "in the batch, or taken back from it"
    scenario.run(oracle, [(1, RECLAIM_FLUSH), (0, MUNMAP, 0), (1, MIGRATE, 0, 0), (0, FINISH), (0, MMAP, 1, 1, SHARED_RO)])
    assert oracle.counters()["events_disabled"] == 4, "no mapping names it"
    scenario.run(oracle, [(1, MIGRATE, 1, 0), (0, MMAP, 2, 2, SHARED_RO), (0, LOAD, 2), (1, MIGRATE, 2, 0)])
    assert (oracle.counters()["pgmigrate_success"], oracle.counters()["pgmigrate_fail"], oracle.counters()["alloc_fail"]) == (1, 1, 0)


@pytest.mark.parametrize("policy", ["linux", "luf_v10"])
def test_reclaim_demotes_while_the_slow_tier_has_room_and_makes_room_there_first(policy: str) -> None:
    pages = {v: (SHARED_RO, v) for v in range(4)}
    oracle = scenario.run(scenario.machine(pages, policy, frames_in_use=6, fast_frames=4, pcp_batch=1), [(0, LOAD, v) for v in range(4)])
    s, look = oracle.state, (0, RECLAIM, 0, -1)
    scenario.run(oracle, [look])
    assert (s.lru, s.lru_slow, s.slow) == ([0, 1, 2, 3], [], [4, 5]), "the first look finds accessed pages"
    scenario.run(oracle, [look, look])
    assert (oracle.counters()["pgdemote_direct"], oracle.counters()["pgsteal_direct"], s.lru, s.lru_slow) == (2, 2, [2, 3], [4, 5])
    scenario.run(oracle, [look, (0, RECLAIM_FLUSH), look])
    assert (oracle.counters()["pgdemote_direct"], oracle.counters()["pgsteal_direct"], s.lru, s.lru_slow) == (3, 4, [3], [5, 4])
    assert oracle.counters()["ipi_reclaim"] == (8 if policy == "linux" else 0), "each demotion has its own flush"
    invariants.check(oracle)
