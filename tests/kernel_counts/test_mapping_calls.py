"""Mapping calls under ``linux``: whom munmap, mprotect and madvise interrupt, and how.

A acting CPUs, B CPUs of the process that spin, S that ran it once and sleep. The rules were measured on Linux 6.1 (docs/KERNEL_COUNTS.md).
"""

from __future__ import annotations

import pytest

from lufjax.events import Op
from tests.kernel_counts.runs import count, num_bits, steps

KEPT = ("munmap", "mprotect", "madvise")
"""Calls that keep page tables."""


@pytest.mark.parametrize(("mode", "calls_per_cycle"), [("munmap", 1), ("munmap_ft", 1), ("madvise", 1), ("mprotect", 2)])
@pytest.mark.parametrize("k", [1, 8, 33, 34])
@pytest.mark.parametrize("busy", [1, 3])
def test_each_call_interrupts_each_busy_peer_once(mode: str, calls_per_cycle: int, k: int, busy: int) -> None:
    counts = count(mode, busy + 1, k=k, actors=1, busy=busy)
    calls = counts["nr_gathers"]
    assert calls >= 4
    assert counts["nr_tlb_remote_flush"] == calls
    assert counts["nr_tlb_remote_flush_received"] == counts["ipi_mapping"] == busy * calls
    assert counts.received == [0, *[calls] * busy, *[0] * (7 - busy)]
    if mode == "mprotect":
        stores = counts["stores"]
        assert calls // calls_per_cycle in (stores // k - 1, stores // k), "both directions of a cycle flush"


@pytest.mark.parametrize("mode", ["munmap", "munmap_ft", "mprotect", "madvise"])
@pytest.mark.parametrize("k", [1, 2, 32, 33])
def test_up_to_33_pages_go_as_a_range(mode: str, k: int) -> None:
    counts = count(mode, 4, k=k, actors=1)
    assert counts["nr_tlb_local_flush_one"] == k * counts["nr_gathers"] > 0
    assert counts["nr_tlb_local_flush_all"] == 0


@pytest.mark.parametrize("mode", ["munmap", "munmap_ft", "mprotect", "madvise"])
@pytest.mark.parametrize("k", [34, 64])
def test_more_than_33_pages_go_as_a_full_flush(mode: str, k: int) -> None:
    counts = count(mode, 4, k=k, actors=1)
    assert counts["nr_tlb_local_flush_all"] == counts["nr_gathers"] > 0
    assert counts["nr_tlb_local_flush_one"] == 0


@pytest.mark.parametrize("mode", ["munmap", "mprotect", "madvise"])
def test_remote_cpus_lose_the_range_and_keep_the_rest_of_their_tlb(mode: str) -> None:
    """What the ceiling decides on the CPUs that are interrupted: the page they spin on stays in their TLBs, or not."""
    misses = {k: count(mode, 4, k=k, actors=1, begin=100) for k in (33, 34)}
    assert misses[33]["nr_gathers"] > 4
    # 33: spinning peers never miss again. 34: each peer misses once per call (the last call may be too recent).
    busy_misses = {k: counts["dtlb_load_misses"] for k, counts in misses.items()}
    assert busy_misses[33] == 0
    assert 0 <= 3 * misses[34]["nr_gathers"] - busy_misses[34] <= 3


@pytest.mark.parametrize("mode", KEPT)
@pytest.mark.parametrize("k", [8, 34])
def test_sleeping_peers_are_not_interrupted_and_stay_in_the_mask(mode: str, k: int) -> None:
    sleepers = 3
    counts = count(mode, 4, k=k, actors=1, busy=0, sleepers=sleepers)
    assert counts["nr_tlb_remote_flush"] == counts["nr_gathers"] > 20
    assert counts["nr_tlb_remote_flush_received"] == 0
    flushes = 0
    for step in steps(mode, 4, num_events=12 * k, op=Op.GATHER_FINISH, k=k, actors=1, busy=0, sleepers=sleepers):
        flushes += 1
        assert step.grew["nr_tlb_remote_flush"] == 1
        assert num_bits(step.before["cpumask"][0] & ~1) == sleepers
        assert step.before["lazy"][:4] == [0, 1, 1, 1]
    assert flushes >= 3


def test_freeing_page_tables_wakes_each_sleeper_once_and_takes_it_off_the_mask() -> None:
    sleepers = 3
    counts = count("munmap_ft", 4, k=8, actors=1, busy=0, sleepers=sleepers)
    assert counts["nr_gathers"] > 100
    assert counts["nr_tlb_remote_flush"] == 1
    assert counts["nr_tlb_remote_flush_received"] == sleepers
    assert counts.received[:4] == [0, 1, 1, 1]
    masks = [
        (num_bits(step.before["cpumask"][0] & ~1), num_bits(step.after["cpumask"][0] & ~1))
        for step in steps("munmap_ft", 4, num_events=160, op=Op.GATHER_FINISH, k=8, actors=1, busy=0, sleepers=sleepers)
    ]
    assert masks[0] == (sleepers, 0)
    assert len(masks) >= 4
    assert set(masks[1:]) == {(0, 0)}


@pytest.mark.parametrize("mode", [*KEPT, "munmap_ft"])
def test_cpus_that_never_ran_the_process_are_not_asked(mode: str) -> None:
    counts = count(mode, 8, k=8, actors=1, busy=0)
    assert counts["nr_gathers"] > 100
    assert counts["nr_tlb_remote_flush"] == counts["nr_tlb_remote_flush_received"] == 0


@pytest.mark.parametrize(("mode", "once"), [("munmap", 0), ("munmap_ft", 4)])
def test_busy_and_sleeping_peers_together(mode: str, once: int) -> None:
    counts = count(mode, 8, k=8, actors=1, busy=3, sleepers=4)
    assert counts["nr_gathers"] > 30
    assert counts["nr_tlb_remote_flush_received"] == 3 * counts["nr_gathers"] + once


def test_overlapping_madvise_turns_into_full_flushes_that_reach_every_peer() -> None:
    counts = count("concurrent", 4, k=8, actors=4, busy=0)
    calls = counts["nr_gathers"]
    assert calls > 100
    assert counts["nr_tlb_remote_flush_received"] == 3 * calls
    assert counts["nr_tlb_local_flush_all"] == calls
    assert counts["nr_tlb_local_flush_one"] == 0


def test_overlapping_madvise_counts_as_freeing_page_tables() -> None:
    """The kernel cannot tell what the other gather removed: lazy CPUs are woken too, once."""
    counts = count("concurrent", 8, k=8, actors=4, busy=0, sleepers=2)
    assert counts["nr_tlb_remote_flush_received"] == 3 * counts["nr_gathers"] + 2
    assert counts.received[4:] == [1, 1, 0, 0]


def test_calls_that_do_not_overlap_stay_ranged() -> None:
    counts = count("madvise", 4, k=8, actors=4, busy=0)
    assert counts["nr_tlb_local_flush_one"] == 8 * counts["nr_gathers"] > 0
    assert counts["nr_tlb_local_flush_all"] == 0


def test_each_finish_meets_the_gathers_of_the_others() -> None:
    finished = 0
    for step in steps("concurrent", 4, num_events=200, op=Op.GATHER_FINISH, k=8, actors=4, busy=0):
        finished += 1
        assert step.before["gathers"] == [4]
        assert step.grew["nr_tlb_local_flush_all"] == 1
        assert step.grew["nr_tlb_remote_flush_received"] == num_bits(step.before["cpumask"][0]) - 1 == 3
    assert finished > 5
