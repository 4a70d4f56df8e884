"""Expansion of calls, draws, interleaving, page ranges; and that the validator bites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lufjax.events import CPU, FIRST_PAGE, OP, REPEAT, VPN, Op
from lufjax.workloads import build
from lufjax.workloads.draws import Draws, zipf_table
from lufjax.workloads.expand import GATHER_SLOTS, gather_calls, gather_pages, mmap_calls
from lufjax.workloads.page_ranges import PageRanges
from lufjax.workloads.validate import check_trace


def test_draws_are_fixed_for_ever():
    draws = Draws("llm", 4, 0)
    assert draws.below(1000, 5).tolist() == [381, 454, 261, 17, 25]
    assert zipf_table(4, 4).tolist() == [2**32, 2**32 + 2**31, 2**32 + 2**31 + 2**32 // 3, 2**32 + 2**31 + 2**32 // 3 + 2**30]
    assert zipf_table(3, 0).tolist() == [2**32, 2 * 2**32, 3 * 2**32]


def test_zipf_prefers_low_ranks():
    ranks = np.bincount(Draws("zipf", 0).zipf(8, 4, 20000), minlength=8)
    assert (np.diff(ranks) < 0).all()
    assert sorted(Draws("order", 0).order(9).tolist()) == list(range(9))


def test_a_long_call_is_split():
    rows, call = gather_calls(Op.MUNMAP, np.array([10, 1000]), np.array([3, 2 * GATHER_SLOTS + 1]), free_tables=1)
    finishes = np.flatnonzero(rows[:, 0] == Op.GATHER_FINISH)
    assert call[finishes].tolist() == [0, 1, 1, 1]
    assert rows[finishes, 2].tolist() == [1, 0, 0, 1]
    assert rows[rows[:, 0] == Op.MUNMAP, 1].tolist() == [10, 11, 12, *range(1000, 1000 + 2 * GATHER_SLOTS + 1)]
    assert np.diff(np.concatenate([[-1], finishes])).tolist() == [4, 129, 129, 2]


@pytest.mark.parametrize("num_pages", [1, GATHER_SLOTS - 1, GATHER_SLOTS, GATHER_SLOTS + 1, 3 * GATHER_SLOTS])
def test_calls_on_a_range_and_on_listed_pages_agree(num_pages: int):
    rows, _ = gather_calls(Op.MPROTECT, np.array([5]), np.array([num_pages]), new_vma=7, free_tables=1)
    assert rows.tolist() == gather_pages(Op.MPROTECT, 5 + np.arange(num_pages), 7, 1).tolist()


def test_the_first_page_of_an_mmap_is_marked():
    rows, _ = mmap_calls(np.array([3, 9]), np.array([2, 1]), np.array([1, 2]), np.array([-1, 40]))
    assert rows.tolist() == [[3, 3, -1, 1 + FIRST_PAGE], [3, 4, -1, 1], [3, 9, 40, 2 + FIRST_PAGE]]


def test_page_ranges():
    ranges = PageRanges()
    ranges.add(10, 20)
    ranges.add(20, 30)
    ranges.remove(12, 14)
    ranges.add(25, 40)
    assert list(zip(ranges.starts, ranges.ends, strict=True)) == [(10, 12), (14, 20), (20, 25), (25, 40)]
    assert ranges.contains(np.array([9, 10, 12, 14, 39, 40])).tolist() == [False, True, False, True, True, False]
    ranges.remove(11, 26)
    assert ranges.neighbours(11, 26) == (11, 26)
    ranges.remove(0, 100)
    assert ranges.neighbours(3, 4)[0] == 0


def _spoil(row_op: Op, column: int, value: int):
    trace = build("churn", {}, num_cpus=4, seed=0, num_events=2000)
    events = trace.events.copy()
    events[np.flatnonzero(events[:, OP] == row_op)[20], column] = value
    return replace(trace, events=events)


@pytest.mark.parametrize(
    ("row_op", "column", "value", "field"),
    [
        (Op.LOAD, REPEAT, 0, "field repeat"),
        (Op.LOAD, VPN, 143, "field vpn"),
        (Op.MMAP, REPEAT, 3 + FIRST_PAGE, "field"),
        (Op.MMAP, OP, int(Op.NOP), "field"),
        (Op.GATHER_FINISH, OP, int(Op.NOP), "field"),
        (Op.GATHER_FINISH, OP, int(Op.SWITCH), "field"),
        (Op.LOAD, OP, int(Op.FAULT_INSTALL), "field op"),
        (Op.LOAD, CPU, 9, "events cpu"),
        (Op.LOAD, VPN, -1, "events vpn"),
    ],
)
def test_the_validator_names_what_is_wrong(row_op: Op, column: int, value: int, field: str):
    with pytest.raises(ValueError, match=field):
        check_trace(_spoil(row_op, column, value))


def test_the_validator_follows_the_end_of_a_file():
    trace = build("churn", {}, num_cpus=4, seed=0, num_events=2000)
    first = trace.events[(trace.events[:, OP] == Op.MMAP) & (trace.events[:, 3] >= 0), 3][0]
    rows = [(0, Op.TRUNCATE, 0, first, 0), (0, Op.FILE_WRITE, 0, first, 0)]
    check_trace(replace(trace, events=np.concatenate([np.array(rows, np.int32), trace.events])))
    with pytest.raises(ValueError, match=f"file page {first} is beyond the end of its file"):
        check_trace(replace(trace, events=np.concatenate([np.array(rows[:1], np.int32), trace.events])))


def test_the_validator_lets_madvise_go_upwards_only():
    trace = build("churn", {}, num_cpus=2, seed=0, num_events=2000)
    low, high, finish = (0, Op.MADVISE_DONTNEED, 0, 0, 0), (0, Op.MADVISE_DONTNEED, 1, 0, 0), (0, Op.GATHER_FINISH, 0, 0, 0)
    check_trace(replace(trace, events=np.array([low, high, finish, low, finish], np.int32)))
    for second in (low, high):
        with pytest.raises(ValueError, match="come to page 1; it goes upwards"):
            check_trace(replace(trace, events=np.array([high, second, finish], np.int32)))


def test_the_validator_follows_a_page_that_moves():
    trace = build("churn", {}, num_cpus=2, seed=0, num_events=2000)
    mapped, empty = np.flatnonzero(trace.page_vma[0] >= 0)[0], np.flatnonzero(trace.page_vma[0] < 0)[0]
    rows = [(0, Op.MREMAP, mapped, empty, 0), (0, Op.GATHER_FINISH, 0, 0, 0), (0, Op.LOAD, empty, 0, 1)]
    check_trace(replace(trace, events=np.array(rows, np.int32)))
    with pytest.raises(ValueError, match=f"page {mapped} of process 0 is mapped"):
        check_trace(replace(trace, events=np.array([(0, Op.MREMAP, mapped, mapped, 0)], np.int32)))
    with pytest.raises(ValueError, match="page is not mapped"):
        check_trace(replace(trace, events=np.array([*rows[:2], (0, Op.LOAD, mapped, 0, 1)], np.int32)))


def test_the_validator_follows_what_a_fork_shares():
    trace = build("churn", {}, num_cpus=2, seed=0, num_events=2000)
    anon = int(np.flatnonzero((trace.page_vma[0] >= 0) & (trace.page_backing[0] < 0))[0])
    vma, used = int(trace.page_vma[0, anon]), int(((trace.page_vma >= 0) & (trace.page_backing < 0)).sum())
    alone = replace(
        trace, page_vma=np.vstack([trace.page_vma[:1], np.full_like(trace.page_vma[:1], -1)]),
        page_backing=np.vstack([trace.page_backing[:1], np.full_like(trace.page_backing[:1], -1)]), loaded=np.array([0, 1], np.int32),
        num_anon=used, attrs=trace.attrs | {"rmap_slots": max(2, trace.attrs["rmap_slots"])},
    )  # fmt: skip
    fork, finish = (0, Op.FORK, anon, 1, vma), (0, Op.GATHER_FINISH, 0, 0, 0)

    def check(rows: list[tuple[int, ...]], **changes: Any) -> None:
        check_trace(replace(alone, events=np.array(rows, np.int32), **changes))

    check([fork, finish, (1, Op.LOAD, anon, 0, 1)])
    with pytest.raises(ValueError, match=f"num_anon={used}: the trace needs {used + 1}"):
        check([fork, finish, (1, Op.STORE, anon, 0, 1)])
    check([fork, finish, (1, Op.STORE, anon, 0, 1), (0, Op.STORE, anon, 0, 1)], num_anon=used + 1)
    unmap = [(1, Op.MUNMAP, anon, 0, 0), (1, Op.GATHER_FINISH, 0, 0, 0)]
    check([fork, finish, *unmap, fork, finish, (1, Op.LOAD, anon, 0, 1)])
    with pytest.raises(ValueError, match=f"page {anon} of process 1 is mapped"):
        check([fork, finish, fork])
    with pytest.raises(ValueError, match=r"allowed are 0 \.\. 1 without 0"):
        check([(0, Op.FORK, anon, 0, vma)])
    with pytest.raises(ValueError, match="process 1 is locked by a mapping call"):
        check([(1, Op.MUNMAP, anon, 0, 0), fork])
    with pytest.raises(ValueError, match="a page is mapped 2 times"):
        check([fork], attrs=alone.attrs | {"rmap_slots": 1})


def test_the_validator_lets_a_process_end_where_nobody_else_runs_it():
    trace = build("churn", {}, num_cpus=2, seed=0, num_events=2000)
    rows = [(0, Op.EXIT, 0, 0, 0), (0, Op.GATHER_FINISH, 0, 1, 0)]
    idle = [(1, Op.SWITCH, 0, -1, 0)]
    check_trace(replace(trace, events=np.array(idle + rows, np.int32)))
    with pytest.raises(ValueError, match="still runs on another CPU"):
        check_trace(replace(trace, events=np.array(rows, np.int32)))
    with pytest.raises(ValueError, match="access on an idle CPU"):
        check_trace(replace(trace, events=np.array([*idle, *rows, (0, Op.LOAD, 0, 0, 1)], np.int32)))


def test_the_validator_counts_ids_and_mappers():
    trace = build("churn", {}, num_cpus=4, seed=0, num_events=4000)
    with pytest.raises(ValueError, match=r"^num_anon=18"):
        check_trace(replace(trace, num_anon=18))
    with pytest.raises(ValueError, match=r"^attrs rmap_slots=1"):
        check_trace(replace(trace, attrs=trace.attrs | {"rmap_slots": 1}))
    with pytest.raises(ValueError, match=r"gather_slots=4"):
        check_trace(replace(trace, attrs=trace.attrs | {"gather_slots": 4}))
