"""Copies of a recording: what they share, what they have for themselves, and how much of memory the default one fills."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lufjax.events import ANON, Op
from lufjax.sweeps.traces import footprint
from lufjax.workloads import build
from lufjax.workloads.lackey import import_lackey
from lufjax.workloads.recording import read_recording
from lufjax.workloads.replay import recording_path
from lufjax.workloads.replay_layout import most_mappers, shared_pages, vpns_of_threads
from lufjax.workloads.validate import check_trace
from tests.workloads.lackey_samples import HEADER

OPEN = """SYSCALL[77,1](257) sys_openat ( 4294967196, 0x4002010(/data/table), 0 ) --> [async] ...
SYSCALL[77,1](257) ... [async] --> Success(0x4)
"""
LASTING = OPEN + "SYSCALL[77,1](9) sys_mmap ( 0x0, 81920, 1, 1, 4, 0 ) --> [pre-success] Success(0x4835000)\n"
PASSING = """SYSCALL[77,1](9) sys_mmap ( 0x0, 8192, 1, 1, 4, 0 ) --> [pre-success] Success(0x5000000)
 L 05000000,8
 L 05001000,8
SYSCALL[77,1](11) sys_munmap ( 0x5000000, 8192 )[sync] --> Success(0x0)
"""
ROUND = "".join(f" L {page:08x},8\n S 1ffefff738,8\n" for page in range(0x4835000, 0x4835000 + 81920, 4096)) + PASSING
TEXT = HEADER + LASTING + ROUND * 4
"""A table that stays mapped, a stack, and two pages of the table that are also mapped elsewhere for a while."""


def _build(tmp_path: Path, num_cpus: int, **options):
    (tmp_path / "sample.txt").write_text(TEXT)
    import_lackey(tmp_path / "sample.txt", tmp_path / "sample.nc", skip_runs=1)
    trace = build("replay", {"path": str(tmp_path / "sample.nc"), "tick_period": 0, **options}, num_cpus=num_cpus, seed=0, num_events=1500)
    check_trace(trace)
    return trace


def test_threads_map_a_lasting_file_once(tmp_path: Path):
    trace = _build(tmp_path, 5)
    backings = trace.page_backing[(trace.page_vma >= 0) & (trace.page_backing != ANON)]
    assert np.bincount(backings).max() <= 2 + 5
    recording = read_recording(tmp_path / "sample.nc")
    is_shared = shared_pages(recording)
    assert is_shared.sum() == 20
    calls = trace.events[np.isin(trace.events[:, 1], [Op.MMAP, Op.MUNMAP])]
    assert not np.isin(calls[:, 2], np.flatnonzero(is_shared)).any()
    for cpu in range(5):
        assert np.isin(np.flatnonzero(is_shared), trace.events[trace.events[:, 0] == cpu, 2]).all()


def test_what_is_not_shared_is_apart_and_keeps_low_bits(tmp_path: Path):
    trace = _build(tmp_path, 5)
    recording = read_recording(tmp_path / "sample.nc")
    is_shared = shared_pages(recording)
    vpns, num_vpns = vpns_of_threads(recording, is_shared, 5)
    own = np.flatnonzero(~is_shared & ((recording.initial_vma >= 0) | np.isin(np.arange(is_shared.size), recording.rows[:, 2])))
    assert np.unique(vpns[:, own]).size == 5 * own.size
    assert ((vpns - np.arange(is_shared.size)) % 16 == 0).all()
    assert num_vpns == trace.num_vpns
    stores = trace.events[trace.events[:, 1] == Op.STORE]
    assert len({(cpu, vpn) for cpu, vpn in stores[:, [0, 2]].tolist()}) == len(set(stores[:, 2].tolist())) == 5


@pytest.mark.parametrize("options", [{"mode": "rate"}, {"share_files": False}])
def test_processes_and_own_files_share_no_mapping(tmp_path: Path, options: dict):
    trace = _build(tmp_path, 3, **options)
    lasting = (trace.page_vma >= 0) & (trace.page_backing != ANON)
    assert lasting.sum() >= 3 * 20
    assert trace.num_file_pages == (20 if "mode" in options else 60)
    assert (trace.attrs["rmap_slots"] > 2) == ("mode" in options)


def test_mappers_are_counted_over_time():
    rows = [(0, Op.MMAP, 2, 0, 0), (1, Op.MMAP, 2, 0, 0), (0, Op.MUNMAP, 2, 0, 0), (0, Op.MMAP, 2, 1, 0), (0, Op.MMAP, 3, ANON, 0)]
    events = np.array(rows, np.int32)
    page_vma = np.array([[0, -1, -1, -1], [-1, -1, -1, -1]])
    assert most_mappers(events, page_vma, np.zeros((2, 4), int), np.array([0, 1]), 2) == 3
    assert most_mappers(events[2:], page_vma, np.zeros((2, 4), int), np.array([0, 1]), 2) == 1


@pytest.mark.parametrize("num_cpus", [1, 2, 64])
def test_the_default_recording_fills_a_large_memory(num_cpus: int):
    trace = build("replay", {}, num_cpus=num_cpus, seed=0, num_events=100_000)
    assert footprint(trace) >= 2_300
    assert trace.num_vpns < 8_192
    assert trace.attrs["rmap_slots"] < 64
    assert (trace.events[:, 1] == Op.MMAP).sum() > 50


def test_the_recordings_are_small():
    sizes = [path.stat().st_size for path in recording_path("table_lookup").parent.iterdir()]
    assert len(sizes) <= 3
    assert sum(sizes) < 3_000_000
