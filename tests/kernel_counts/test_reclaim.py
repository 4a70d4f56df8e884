"""Reclaim of clean file pages under ``linux``: batching, masks and targets, as measured on Linux 6.1 (docs/KERNEL_COUNTS.md)."""

from __future__ import annotations

import pytest

from tests.kernel_counts.runs import BATCH, Counts, Step, count, num_bits, steps

MODES = ("ro_slice", "ro_rand")


def reclaimed(counts: Counts) -> int:
    """Pages unmapped by reclaim."""
    return counts["pgsteal_kswapd"] + counts["pgsteal_direct"]


def flushes(mode: str, num_cpus: int, **options: int) -> list[Step]:
    """The events of a stepped run in which reclaim asked other CPUs to flush."""
    found = [step for step in steps(mode, num_cpus, num_events=130, **options) if step.grew["nr_tlb_remote_flush"]]
    assert len(found) > 3
    return found


@pytest.mark.parametrize("mode", MODES)
def test_one_cpu_flushes_each_page_alone_and_sends_nothing(mode: str) -> None:
    counts = count(mode, 1)
    assert reclaimed(counts) > 2000
    assert counts["nr_tlb_remote_flush"] == counts["nr_tlb_remote_flush_received"] == 0
    assert counts["nr_tlb_local_flush_one"] == reclaimed(counts)
    assert counts["nr_tlb_local_flush_all"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_process_on_one_of_many_cpus_is_not_batched_either(mode: str) -> None:
    counts = count(mode, 4, actors=1, busy=0)
    assert counts["nr_tlb_remote_flush"] == 0
    assert counts["nr_tlb_local_flush_one"] == reclaimed(counts) > 2000
    for step in steps(mode, 4, num_events=130, actors=1, busy=0):
        assert step.after["U"] == step.after["need_flush"] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("actors", "busy", "sleepers"), [(4, 0, 0), (1, 3, 0), (1, 0, 3), (2, 0, 2)])
def test_the_batch_mask_holds_every_other_thread_asleep_or_not(mode: str, actors: int, busy: int, sleepers: int) -> None:
    seen = 0
    for step in steps(mode, 8, num_events=330 if busy else 110, actors=actors, busy=busy, sleepers=sleepers):
        if step.after["need_flush"]:
            seen += 1
            assert step.after["U"] == step.after["cpumask"][0] == 0b1111, "the mask of the batch: N CPUs, so N-1 beside the flushing one"
            assert len(step.after["batch"]) < BATCH
        else:
            assert step.after["U"] == 0
    assert seen > 10


def test_a_batch_is_flushed_once_however_many_pages_it_holds() -> None:
    for step in flushes("ro_slice", 4, actors=4, busy=0):
        assert step.grew["nr_tlb_remote_flush"] == step.grew["nr_tlb_local_flush_all"]
        assert step.grew["nr_tlb_local_flush_one"] == 0
        assert step.grew["ipi_reclaim"] == step.grew["nr_tlb_remote_flush_received"] == 3 * step.grew["nr_tlb_remote_flush"]
        assert step.grew["nr_tlb_remote_flush"] <= 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_cpus", [2, 4, 8])
def test_all_threads_scanning_interrupt_all_others(mode: str, num_cpus: int) -> None:
    """Nobody sleeps here: interrupts per page are (N-1) over pages per flush, times one."""
    counts = count(mode, num_cpus, num_events=5000, actors=num_cpus, busy=0)
    assert counts["nr_tlb_remote_flush_received"] == (num_cpus - 1) * counts["nr_tlb_remote_flush"] > 0
    assert counts["ipi_reclaim"] == counts["nr_tlb_remote_flush_received"]
    assert reclaimed(counts) <= BATCH * (counts["nr_tlb_remote_flush"] + 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kswapd_cpu", [0, 2])
def test_one_scanner_with_spinning_peers(mode: str, kswapd_cpu: int) -> None:
    """N-2 to N-1 was measured: there kswapd may be just preempting a spinner, which is lazy then. In the model no CPU is."""
    counts = count(mode, 4, num_events=8000, actors=1, busy=3, kswapd_cpu=kswapd_cpu)
    requests = counts["nr_tlb_remote_flush"]
    assert requests > 50
    assert 2 * requests <= counts["nr_tlb_remote_flush_received"] <= 3 * requests
    assert counts["nr_tlb_remote_flush_received"] == 3 * requests
    assert counts["pgsteal_kswapd"] > 0


@pytest.mark.parametrize("mode", MODES)
def test_one_scanner_with_sleeping_peers_and_kswapd_on_its_cpu(mode: str) -> None:
    counts = count(mode, 4, actors=1, busy=0, sleepers=3, kswapd_cpu=0)
    assert counts["nr_tlb_remote_flush"] > 50
    assert counts["nr_tlb_remote_flush_received"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_one_scanner_with_sleeping_peers_and_kswapd_elsewhere(mode: str) -> None:
    """Sleepers get nothing; the scanner is interrupted by kswapd, and by nobody else."""
    counts = count(mode, 4, actors=1, busy=0, sleepers=3, kswapd_cpu=2)
    assert 0 < counts["nr_tlb_remote_flush_received"] < counts["nr_tlb_remote_flush"]
    assert counts.received[0] == counts["nr_tlb_remote_flush_received"]
    for step in flushes(mode, 4, actors=1, busy=0, sleepers=3, kswapd_cpu=2):
        assert 0 <= step.grew["nr_tlb_remote_flush_received"] <= step.grew["nr_tlb_remote_flush"]
        assert num_bits(step.before["cpumask"][0]) == 4
        assert step.grew["nr_tlb_remote_flush_received"] == 0 or step.before["kswapd_on"]
