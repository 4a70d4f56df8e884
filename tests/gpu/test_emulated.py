"""The GPU program, emulated on the CPU: the same bits as every other backend, however its threads are arranged."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from lufjax import engine
from lufjax.backends import rollout, runners
from lufjax.backends.gpu import device, lanes, rows
from lufjax.config import load_run_config
from lufjax.engine import Machines, Samples
from lufjax.state import MachineState, init_state
from lufjax.sweeps import capacity
from lufjax.sweeps.grid import plan
from lufjax.sweeps.traces import TraceSource
from tests.contract.small_run import SmallRun, assert_same, build_trace, pick_lanes, small_run
from tests.differential.pair import states_after
from tests.gpu.emulated import emulate

NUM_EVENTS = 1500
POINTS = [700, NUM_EVENTS]
POLICIES = ("linux", "luf_v10", "luf_v12", "fpr", "latr", "never")


@pytest.fixture(scope="module")
def run() -> SmallRun:
    """Six policies on two traces that map, unmap and reclaim."""
    traces = [build_trace("churn", 4, seed, NUM_EVENTS, num_files=64, hot_pages=2, ranges=8) for seed in (0, 1)]
    return small_run(traces, POLICIES, pressure=6)


@pytest.fixture(scope="module")
def whole(run: SmallRun) -> Samples:
    samples = run.samples(POINTS)
    assert (samples.counters["pgsteal_kswapd"][:, -1] > 0).all()
    assert samples.violations[:, -1].any()
    return samples


@pytest.mark.parametrize(("num_lanes", "num_processors", "blocks", "threads"), [(12, 4, 1, 32), (1, 4, 1, 32), (150, 3, 3, 64), (150, 1, 1, 256)])
def test_thread_blocks_change_nothing(
    run: SmallRun, whole: Samples, monkeypatch: pytest.MonkeyPatch, num_lanes: int, num_processors: int, blocks: int, threads: int
) -> None:
    emulated = emulate(monkeypatch, num_processors=num_processors)
    order = np.random.default_rng(0).integers(0, run.num_lanes, num_lanes)
    assert_same(run.lanes(order).samples(POINTS, backend="cuda"), pick_lanes(whole, order))
    assert emulated.launches == [
        ("start_lanes", num_lanes, lanes.COPIERS), *[("run_lanes", blocks, threads), ("take_lanes", num_lanes, lanes.COPIERS)] * len(POINTS),
    ]  # fmt: skip


def test_lanes_that_do_not_fit_in_memory_run_in_equal_parts(run: SmallRun, whole: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = emulate(monkeypatch)
    layout = rows.layout_of(run.shape)
    emulated.memory = int(5.5 * 4 * (layout.width + layout.taken) / lanes.SHARE)
    assert_same(run.samples(POINTS, backend="cuda"), whole)
    assert [blocks for kernel, blocks, _ in emulated.launches if kernel == "start_lanes"] == [4, 4, 4]
    emulated.memory = 1000
    with pytest.raises(ValueError, match=r"backend=cuda: a lane takes 0 MiB, and emulated has 0 MiB for lanes"):
        run.samples(POINTS, backend="cuda")


def test_the_whole_state_is_the_same_with_every_kernel(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = lanes.load(emulate(monkeypatch), run.shape, tuple(rollout.KERNELS))
    first = [int(np.flatnonzero(run.trace_index == number)[0]) for number in (0, 1)]
    params = jax.tree.map(lambda leaf: leaf[first], run.params)
    own = [jax.tree.map(lambda leaf, i=lane: int(leaf[i]), run.params) for lane in first]
    starts = [init_state(run.shape, p, trace) for p, trace in zip(own, run.traces, strict=True)]
    begun = gpu.start(params, jax.tree.map(lambda *leaves: np.stack(leaves), *starts), np.arange(2))
    events = rollout.pack_events(np.stack([trace.events for trace in run.traces]))
    stop = np.array([NUM_EVENTS, 800], np.int32)
    ended = gpu.run(params, begun, events, np.arange(2, dtype=np.int32), stop)
    ours = gpu.layout.unpack(gpu.device.get(ended.rows), MachineState._fields)
    for lane in (0, 1):
        (theirs,) = states_after(run.shape, own[lane], run.traces[lane], [int(stop[lane])])
        for name, value in theirs._asdict().items():
            np.testing.assert_array_equal(ours[name][lane], value, err_msg=name)


def test_a_phase_that_is_not_compiled_in_ends_the_run(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    monkeypatch.setattr(rollout, "program_for", lambda ops, has_slow: ("fetch", "store"))
    with pytest.raises(RuntimeError, match="a lane stopped before event 700"):
        run.samples(POINTS, backend="cuda")


@pytest.mark.parametrize(("platforms", "backend"), [(None, "cuda"), ("cuda,cpu", "cuda"), ("cpu", "native")])
def test_auto_takes_the_device_unless_jax_was_told_otherwise(monkeypatch: pytest.MonkeyPatch, platforms: str | None, backend: str) -> None:
    emulate(monkeypatch)
    monkeypatch.setattr(runners, "platforms_of_jax", lambda: platforms)
    assert engine.resolve_backend("auto") == backend


def test_machines_stepped_by_hand_run_natively(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = emulate(monkeypatch)
    params = jax.tree.map(lambda leaf: int(leaf[0]), run.params)
    machines = Machines(run.shape, [params], [run.traces[0]], backend="cuda")
    machines.step(run.traces[0].events[:1])
    assert emulated.launches == []


def test_a_lane_beyond_32_bit_offsets_is_refused(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    width = rows.layout_of(run.shape).width
    monkeypatch.setattr(rows, "LARGEST_ROW", width)
    with pytest.raises(ValueError, match=r"backend=cuda: a lane of this machine takes 0 MiB; allowed are less than 0"):
        rows.layout_of.__wrapped__(run.shape)
    monkeypatch.setattr(rows, "LARGEST_ROW", width + 1)
    assert rows.layout_of.__wrapped__(run.shape).width == width


def test_without_cupy_or_a_device_one_line_says_so(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    device.open_device.cache_clear()
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"backend=cuda: needs CuPy; pip install 'lufjax\[gpu\]'"):
        run.samples(backend="cuda")

    def no_driver() -> None:
        raise RuntimeError("cudaErrorInsufficientDriver\nmore")

    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(device, "CudaDevice", no_driver)
    with pytest.raises(ValueError, match=r"^backend=cuda: no CUDA device can be used: cudaErrorInsufficientDriver$"):
        run.samples(backend="cuda")
    assert not device.is_there()


@pytest.mark.parametrize(("found", "capability"), [(70, "sm_70"), (87, "sm_86"), (90, "sm_90"), (120, "sm_90")])
def test_a_newer_gpu_takes_what_is_made_for_an_older_one(found: int, capability: str) -> None:
    assert device.capability_for(found, "some GPU") == capability


def test_a_gpu_that_is_too_old_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend=cuda: K80 has compute capability 3\.7; allowed are 7\.0 and later"):
        device.capability_for(37, "K80")


def test_memory_of_the_host_is_asked_for_one_copy_of_each_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    config = load_run_config(["experiment=quick", "engine.chunk_lanes=65536", "axes.policy=[linux,luf_v10,luf_v12,fpr]"])
    source = TraceSource(config.workloads, config.num_events, 2**30)
    groups = plan(config, source)
    by_xla, on_device = (
        capacity.need(replace(config, engine=replace(config.engine, backend=backend)), groups, engine.bytes_per_lane) for backend in ("xla", "cuda")
    )
    assert on_device.state < by_xla.state / 2
    assert on_device.state > 0
