"""The reference simulator alone: known hazards, safe and unsafe policies, invariants, faults."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from . import Oracle, invariants, scenario
from .counting import LOST_STORE, MAPPING, OLD_VALUE, PERMISSION, REUSE
from .generate import SHAPES, random_events, random_machine, random_params, random_trace
from .generate_events import FORKS, WEIGHTS
from .policies import PRESETS
from .scenario import (
    ALLOC_FOREIGN,
    ANON_NONE,
    ANON_RO,
    ANON_RW,
    DONTNEED,
    EXIT,
    FILE_WRITE,
    FINISH,
    LOAD,
    MADVISE_FREE,
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
    TICK,
    TRUNCATE,
)  # fmt: skip
from .state import FREE

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
