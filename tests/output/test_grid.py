"""Every lane is the point it should be, in a shape that holds it."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.events import ANON, Op
from lufjax.sweeps.grid import DIMS, memory, plan, watermarks
from lufjax.sweeps.traces import TraceKey, TraceSource, fit, footprint, measure
from lufjax.trace import Trace
from tests.output.small import small_config


def planned(config):
    return plan(config, TraceSource(config.workloads, config.num_events, 2**26))


def toy_trace(rows, page_vma, page_backing, loaded=(0, 0), vmas=(3,)):
    as_int = lambda values: np.array(values, np.int32)  # noqa: E731
    return Trace(
        as_int(rows), as_int(vmas), as_int(page_vma), as_int(page_backing), as_int(loaded), 4, 4, {"rmap_slots": 1, "gather_slots": 1}
    )


def test_every_point_is_there_once():
    config = small_config("-m", "policy=linux,luf_v10,never", "num_cpus=1,2,4", "pressure=1.5,2", "seed=range(0,3)")
    groups = planned(config)
    index = np.concatenate([group.index for group in groups])
    assert len(np.unique(index, axis=0)) == len(index) == config.num_lanes
    assert (index.max(axis=0) + 1).tolist() == [1, 3, 3, 2, 3]


def test_groups_are_by_cpu_count_and_ordered_by_policy():
    config = small_config("-m", "policy=linux,luf_v10", "num_cpus=4,1,2", "seed=0,1")
    groups = planned(config)
    assert [group.shape.num_cpus for group in groups] == [1, 2, 4]
    for group in groups:
        assert (np.diff(group.index[:, DIMS.index("policy")]) >= 0).all()


def test_cpu_groups_join_counts_into_one_shape():
    config = small_config("-m", "num_cpus=1,2,4", "engine.cpu_groups=[2,8]")
    groups = planned(config)
    assert [(group.shape.num_cpus, group.num_lanes) for group in groups] == [(2, 2), (8, 1)]


def test_lanes_of_all_policies_share_traces():
    config = small_config("-m", "policy=linux,luf_v10,never", "pressure=1.5,2", "seed=0,1")
    (group,) = planned(config)
    assert group.trace_keys == (TraceKey("llm", 8, 0), TraceKey("llm", 8, 1))
    for lane, trace in zip(group.index, group.trace_index, strict=True):
        assert group.trace_keys[trace].seed == config.seeds[lane[DIMS.index("seed")]]


def test_frames_follow_pressure():
    config = small_config("-m", "pressure=1.25,2")
    (group,) = planned(config)
    size = group.footprints[0]
    assert group.params.frames_in_use.tolist() == [int(size / 1.25), int(size / 2)]
    assert group.shape.num_frames >= group.params.frames_in_use.max()


@pytest.mark.parametrize("frames", [64, 100, 576, 1024, 65536, 2**22])
@pytest.mark.parametrize("num_cpus", [1, 8, 64])
def test_watermarks_and_lists_leave_room(frames, num_cpus):
    config = small_config("machine=default", f"num_cpus={num_cpus}", "machine.reclaim_batch=16", "pressure=1")
    if frames < 4 * num_cpus:
        return
    used, least, low, high, batch, most, fast = memory(config, TraceKey("llm", num_cpus, 0), frames, 1.0)
    assert used == fast == frames
    assert 1 <= least < low < high <= 3 * frames // 16 + 3
    assert 1 <= batch <= most
    assert most * num_cpus <= max(frames // 8, num_cpus)


def test_watermarks_and_lists_are_those_of_the_fast_tier():
    one, two = (small_config("machine=default", "num_cpus=8", "machine.reclaim_batch=16", f"machine.slow_percent={p}") for p in (0, 75))
    key = TraceKey("llm", 8, 0)
    small, large = memory(one, key, 1024, 1.0), memory(two, key, 4096, 1.0)
    assert (large[0], large[1:]) == (4096, small[1:])
    with pytest.raises(ValueError, match=r"leaves 63 fast frames; allowed are pressures up to 0.977 \(at least 64 fast frames"):
        memory(two, key, 250, 1.0)


def test_watermarks_of_a_large_machine_are_those_of_linux():
    """4 GiB: min 2048 pages, low and high a quarter of min, or 0.1 % of memory, apart."""
    machine = small_config("machine=default").machine
    assert watermarks(machine, 2**20) == (2048, 2048 + 1048, 2048 + 2 * 1048)


def test_scaling_memory_is_four_times_the_tlb_reach():
    from lufjax.config import load_run_config

    config = load_run_config(["experiment=scaling", "num_cpus=1", "seed=0", "axes.policy=[linux]"])
    for group in planned(config):
        assert group.params.frames_in_use.min() >= 4 * config.machine.tlb_reach


def test_footprint_counts_touched_pages_once():
    load, store, mmap, switch = Op.LOAD, Op.STORE, Op.MMAP, Op.SWITCH
    rows = [
        (0, load, 0, 0, 1),  # file page 0
        (1, load, 1, 0, 1),  # file page 0 again, at another address
        (0, store, 2, 0, 1),  # anonymous
        (0, switch, 0, 1, 0),
        (0, store, 2, 0, 1),  # the same address of the other process: another anonymous page
        (1, mmap, 3, 3, 65536),
        (1, load, 3, 0, 1),  # file page 3
        (1, switch, 0, -1, 0),
    ]
    trace = toy_trace(rows, [[0, 0, 0, -1]] * 2, [[0, 0, ANON, ANON]] * 2)
    assert footprint(trace) == 4


def test_fitting_pads_with_nothing():
    (group,) = planned(small_config("num_cpus=2", "engine.cpu_groups=[4]", "machine.num_processes=3", "machine.num_vpns=2000"))
    source = TraceSource({"llm": small_config().workloads["llm"]}, 1200, 2**26)
    trace = source.get(group.trace_keys[0])
    padded = fit(trace, group.shape)
    assert (padded.num_cpus, padded.num_processes, padded.num_vpns) == (4, 3, 2000)
    assert padded.loaded[2:].tolist() == [-1, -1]
    assert (padded.page_vma[:, trace.num_vpns :] == -1).all()
    assert measure(padded).footprint == measure(trace).footprint


def test_the_cache_of_traces_is_bounded_and_harmless():
    options = small_config().workloads
    small, large = TraceSource(options, 1200, 0), TraceSource(options, 1200, 2**30)
    for key in [TraceKey("llm", 2, seed) for seed in (0, 1, 0)]:
        assert np.array_equal(small.get(key).events, large.get(key).events)
    assert len(small._kept) == 1
