"""Every workload: well-formed, exact length, the same bytes for the same seed and others for another."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from lufjax.events import Op
from lufjax.presets import config_dir
from lufjax.trace import Trace
from lufjax.workloads import WORKLOADS, build
from lufjax.workloads.validate import check_trace

CASES = [(name, {}) for name in WORKLOADS] + [
    ("llm", {"shared_model": False, "num_processes": 3, "layer_pages": 16, "repeat": 4}),
    ("llm", {"hot_per_weight": 0, "tick_period": 100}),
    ("random_read", {"zipf_quarters": 4, "num_processes": 2, "hot_per_lookup": 0}),
    ("kv", {"switch_period": 0, "zipf_quarters": 0}),
    ("kv", {"switch_period": 1, "num_processes": 3, "write_percent": 100}),
    ("churn", {"busy": 2, "anon_percent": 100, "work": 0, "pages_min": 1, "pages_max": 1}),
    ("churn", {"shared_files": False, "anon_percent": 0, "pages_max": 128, "free_tables": True}),
    ("table_cache", {"num_mapped": 8, "num_tables": 9, "table_pages": 2, "remap_period": 400, "pageout_lead": 3, "heap_per_lookup": 0}),
    ("table_cache", {"table_pages": 128, "num_mapped": 64, "num_tables": 64, "remap_period": 1200}),
    ("munmap", {"k": 300, "actors": 2, "tick_period": 64}),
    ("munmap", {"free_tables": True, "sleepers": 1, "busy": 0}),
    ("mprotect", {"k": 129, "actors": 3}),
    ("madvise", {"actors": 2, "sleepers": 1, "k": 200}),
    ("madvise", {"actors": 4, "busy": 0, "concurrent": True}),
    ("madvise", {"actors": 2, "concurrent": True, "k": 128}),
    ("replay", {"path": "python_threads", "mode": "rate"}),
    ("replay", {"path": "sqlite_index", "mode": "rate", "copies": 2, "share_files": False}),
    ("replay", {"path": "python_threads"}),
    ("replay", {"mode": "rate", "copies": 2}),
    ("replay", {"share_files": False}),
]


@pytest.mark.parametrize("num_cpus", [4, 9])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_workload_is_well_formed_and_repeatable(name: str, options: dict, num_cpus: int):
    first, again, other = (build(name, options, num_cpus=num_cpus, seed=seed, num_events=6001) for seed in (0, 0, 1))
    check_trace(first)
    check_trace(other)
    assert first.events.shape == (6001, 5)
    assert first.events.dtype == np.int32
    assert (first.events[:, 1] != Op.NOP).all()
    assert _bytes(first) == _bytes(again)
    assert _bytes(first) != _bytes(other)
    assert first.attrs["seed"] == 0
    assert first.num_cpus == num_cpus


def _bytes(trace: Trace) -> bytes:
    return b"".join(array.tobytes() for array in (trace.events, trace.vmas, trace.page_vma, trace.page_backing, trace.loaded))


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(("num_cpus", "num_events"), [(1, 1), (1, 500), (16, 10)])
def test_small_machines_and_short_traces(name: str, num_cpus: int, num_events: int):
    trace = build(name, {}, num_cpus=num_cpus, seed=3, num_events=num_events)
    check_trace(trace)
    assert trace.num_events == num_events


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_preset_holds_every_option_with_a_comment(name: str):
    path = config_dir() / "workload" / f"{name}.yaml"
    preset = yaml.safe_load(path.read_text())
    assert preset.pop("name") == name
    assert preset == {key: option.default for key, option in WORKLOADS[name].options.items()}
    lines = path.read_text().splitlines()
    assert lines[0].startswith("name:")
    assert all("  # " in line for line in lines[1:] if not line.startswith("#"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lm", {}, "workload.name='lm'"),
        ("llm", {"pages": 3}, "workload.pages: workload 'llm' has no such option"),
        ("llm", {"repeat": 0}, "workload.repeat=0: allowed are 1 .."),
        ("llm", {"repeat": 1.5}, "workload.repeat=1.5: expected int"),
        ("llm", {"shared_model": 1}, "workload.shared_model=1: expected bool"),
        ("llm", {"layer_pages": 60}, "workload.file_pages=8192: must be a multiple"),
        ("llm", {"tick_period": 3}, "workload.tick_period=3: allowed are 0 or"),
        ("churn", {"busy": 4}, "workload.busy=4"),
        ("table_cache", {"num_tables": 7}, "workload.num_tables=7: must be at least num_mapped=256"),
        ("table_cache", {"remap_period": 10}, "workload.remap_period=10: must be at least 20 with num_cpus=4"),
        ("munmap", {"actors": 3, "sleepers": 2}, "workload.actors=3"),
        ("munmap", {"concurrent": True}, "workload.concurrent: workload 'munmap' has no such option"),
        ("madvise", {"concurrent": True}, "workload.actors=1"),
        ("replay", {"path": "nothing"}, "workload.path='nothing': allowed are python_threads, sqlite_index, table_lookup or"),
        ("replay", {"path": "nothing.nc"}, "workload.path='nothing.nc': no such file"),
        ("replay", {"copies": 5}, "workload.copies=5: at most 4"),
    ],
)
def test_a_bad_option_is_named(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=r"^workload") as caught:
        build(name, options, num_cpus=4, seed=0, num_events=10)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("seed", True), ("num_cpus", 0), ("num_events", 0)])
def test_a_bad_size_is_named(field: str, value: int):
    with pytest.raises(ValueError, match=f"^{field}="):
        build("llm", {}, **({"num_cpus": 4, "seed": 0, "num_events": 10} | {field: value}))


def test_cpus_stay_together():
    trace = build("llm", {"tick_period": 0, "skew": 4}, num_cpus=8, seed=0, num_events=8000)
    counts = np.cumsum(trace.events[:, :1] == np.arange(8), axis=0)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 2 * 4 + 1


def test_ticks_come_once_a_period_on_every_cpu():
    trace = build("llm", {"tick_period": 100}, num_cpus=4, seed=0, num_events=1000)
    position = [np.flatnonzero((trace.events[:, 1] == Op.TICK) & (trace.events[:, 0] == cpu)) for cpu in range(4)]
    assert all((np.diff(ticks) == 100).all() and ticks.size == 10 for ticks in position)


def test_other_cpus_access_memory_while_a_call_is_open():
    events = build("churn", {}, num_cpus=4, seed=0, num_events=5000).events
    gathered = np.flatnonzero(events[:, 1] == Op.MUNMAP)
    follower = events[gathered + 1]
    assert ((follower[:, 0] != events[gathered, 0]) & np.isin(follower[:, 1], [Op.LOAD, Op.STORE])).any()


def test_every_concurrent_call_finishes_among_others():
    events = build("madvise", {"actors": 4, "busy": 0, "concurrent": True}, num_cpus=4, seed=0, num_events=2000).events
    is_open: set[int] = set()
    for cpu, op, *_ in events.tolist():
        if op == Op.MADVISE_DONTNEED:
            is_open.add(cpu)
        elif op == Op.GATHER_FINISH:
            assert is_open == {0, 1, 2, 3}
            is_open.remove(cpu)


def test_sleepers_run_once_and_the_rest_never():
    trace = build("munmap", {"actors": 1, "busy": 2, "sleepers": 1}, num_cpus=6, seed=0, num_events=3000)
    assert trace.loaded.tolist() == [0, 0, 0, 0, -1, -1]
    assert trace.events[trace.events[:, 0] == 3][:, 1].tolist() == [Op.LOAD, Op.SWITCH]
    assert set(trace.events[:, 0].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("num_cpus", [1, 3, 32])
@pytest.mark.parametrize("pageout_lead", [0, 2])
def test_no_table_is_read_while_it_is_replaced(num_cpus: int, pageout_lead: int):
    """Every access finds a mapping, no replacement meets another's lock, and addresses come back with another file."""
    options = {"num_mapped": 32, "num_tables": 64, "remap_period": 700, "pageout_lead": pageout_lead}
    trace = build("table_cache", options, num_cpus=num_cpus, seed=0, num_events=30_000)
    mapped, backing = trace.page_vma[0] >= 0, trace.page_backing[0].copy()
    calls = {int(op): 0 for op in (Op.MUNMAP, Op.MMAP, Op.RECLAIM)}
    for _, op, vpn, arg, _ in trace.events.tolist():
        calls[op] = calls.get(op, 0) + 1
        if op in (Op.LOAD, Op.STORE):
            assert mapped[vpn]
        elif op == Op.MUNMAP:
            assert mapped[vpn]
            mapped[vpn] = False
        elif op == Op.MMAP:
            assert not mapped[vpn]
            assert backing[vpn] != arg
            mapped[vpn], backing[vpn] = True, arg
    assert calls[Op.MUNMAP] >= calls[Op.MMAP] > 100
    assert (calls[Op.RECLAIM] > 100) == (pageout_lead > 0)
