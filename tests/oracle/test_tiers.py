"""The reference simulator alone: two tiers of memory, migration and demotion."""

from __future__ import annotations

import pytest

from . import invariants, scenario
from .scenario import (
    ALLOC_FOREIGN,
    FINISH,
    LOAD,
    MIGRATE,
    MMAP,
    MUNMAP,
    RECLAIM,
    RECLAIM_FLUSH,
    SHARED_RO,
    SHARED_RW,
    STORE,
)  # fmt: skip


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
