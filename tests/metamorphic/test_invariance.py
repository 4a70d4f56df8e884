"""What must not change a result, bit for bit: unused CPUs, blocks, cores, devices, backends, order of lanes, sample points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lufjax.engine import Samples
from tests.contract.small_run import SmallRun, assert_same, build_trace, pick_lanes, small_run
from tests.metamorphic.devices import COUNTS

NUM_EVENTS = 4000
POLICIES = ("linux", "linux_6_15", "luf_v10", "luf_naive", "fpr", "latr")
SMALL_CHURN = {"num_files": 64, "hot_pages": 2, "ranges": 8}
PRESSURE = 6


@pytest.fixture(scope="module")
def run() -> SmallRun:
    """Six policies on two traces of a workload that maps, reclaims and switches nothing off."""
    return small_run([build_trace("churn", 4, seed, NUM_EVENTS, **SMALL_CHURN) for seed in (0, 1)], POLICIES, pressure=PRESSURE)


@pytest.fixture(scope="module")
def whole(run: SmallRun) -> Samples:
    samples = run.samples([1000, NUM_EVENTS], num_devices=1)
    assert (samples.counters["nr_tlb_remote_flush"][:, -1] > 0).all()
    assert (samples.counters["pgsteal_kswapd"][:, -1] > 0).all()
    return samples


def test_cpus_that_a_trace_does_not_use_change_nothing(run: SmallRun, whole: Samples) -> None:
    wide = small_run([build_trace("churn", 4, seed, NUM_EVENTS, **SMALL_CHURN) for seed in (0, 1)], POLICIES, pressure=PRESSURE, num_cpus=40)
    samples = wide.samples([1000, NUM_EVENTS])
    assert not samples.received[..., 4:].any()
    cut = Samples(samples.counters, samples.histograms, samples.received[..., :4], samples.violations, samples.first_violation)
    assert_same(cut, whole)


@pytest.mark.parametrize(("block_lanes", "num_devices"), [(1, 1), (1, 2), (1, 4), (5, 1), (5, 2), (64, 2), (None, None)])
def test_blocks_and_cores_change_nothing(run: SmallRun, whole: Samples, block_lanes: int | None, num_devices: int | None) -> None:
    assert_same(run.samples([1000, NUM_EVENTS], block_lanes=block_lanes, num_devices=num_devices), whole)


def test_the_order_of_lanes_changes_nothing_else(run: SmallRun, whole: Samples) -> None:
    order = np.random.default_rng(0).permutation(run.num_lanes)
    assert_same(run.lanes(order).samples([1000, NUM_EVENTS]), pick_lanes(whole, order))


def test_grouping_of_lanes_changes_nothing(run: SmallRun, whole: Samples) -> None:
    for lanes in (range(3), range(3, run.num_lanes), [7]):
        assert_same(run.lanes(lanes).samples([1000, NUM_EVENTS]), pick_lanes(whole, lanes))


def test_sample_points_change_nothing(run: SmallRun, whole: Samples) -> None:
    points = [1, 2, 500, 999, 1000, 1001, 3333, NUM_EVENTS]
    kept = [points.index(1000), points.index(NUM_EVENTS)]
    many = run.samples(points)
    chosen = Samples(
        {name: values[:, kept] for name, values in many.counters.items()}, {name: values[:, kept] for name, values in many.histograms.items()},
        many.received[:, kept], many.violations[:, kept], many.first_violation,
    )  # fmt: skip
    assert_same(chosen, whole)


def test_larger_compiled_sizes_change_nothing(run: SmallRun, whole: Samples) -> None:
    shape = run.shape
    traces = [build_trace("churn", 4, seed, NUM_EVENTS, **SMALL_CHURN) for seed in (0, 1)]
    larger = small_run(
        traces, POLICIES, pressure=PRESSURE, num_frames=shape.num_frames + 33, num_vpns=shape.num_vpns + 7, num_processes=shape.num_processes + 1,
        rmap_slots=shape.rmap_slots + 3, gather_slots=shape.gather_slots + 5, batch_slots=20, pcp_slots=19,
    )  # fmt: skip
    assert_same(larger.samples([1000, NUM_EVENTS]), whole)


def test_device_counts_and_backends_change_nothing() -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "tests.metamorphic.devices"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    digests = json.loads(done.stdout.splitlines()[-1])
    ways = {f"{backend} {count}" for backend in ("native", "xla") for count in COUNTS}
    assert set(digests) == ways | {"cuda", "native stripped", "xla stripped", "cuda stripped"}
    assert len(set(digests.values())) == 1, digests
