"""What a kernel touches does not grow with the machine, and a lane of the default machine is small."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import jax
import numpy as np
import pytest

from lufjax.backends.native import lane_arrays, trace_kernel
from lufjax.backends.primitives import read_p
from lufjax.backends.rollout import KERNELS
from lufjax.benchmark import work
from lufjax.config import load_run_config
from lufjax.engine import bytes_per_lane
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.state import init_state
from lufjax.sweeps.grid import plan
from lufjax.sweeps.traces import TraceSource
from lufjax.trace import EMPTY_TRACE
from tests.contract.small_run import build_trace, small_run

SMALL = MachineShape(
    num_cpus=4, num_processes=2, num_vpns=64, num_frames=32, num_vmas=4, num_file_pages=48, num_anon=32, l1=TlbGeometry(4, 4),
    l2=TlbGeometry(8, 4), rmap_slots=2, gather_slots=8, batch_slots=8, pcp_slots=8, quarantine_slots=8,
)  # fmt: skip
LARGE = replace(
    SMALL, num_vpns=2**18, num_frames=2**16, num_vmas=512, num_file_pages=2**18, num_anon=2**12, l1=TlbGeometry(64, 4),
    l2=TlbGeometry(1024, 4), gather_slots=512, pcp_slots=256, quarantine_slots=256,
)  # fmt: skip
"""``batch_slots`` stays: breaking copy-on-write looks through the reclaim batch (at most SWAP_CLUSTER_MAX pages) for its page."""
SCANS_HELD = {"lazyfree", "mremap"}
"""MADV_FREE and mremap look through the frames that their gather holds already, at most ``gather_slots``; other calls cannot meet one twice."""
LANE_LIMIT = 512 * 1024


def elements_touched(group: str, shape: MachineShape) -> tuple[int, int]:
    """Elements that a kernel reads, and elements that it writes if every write is enabled."""
    arrays = lane_arrays(init_state(shape, MachineParams(1, 0, 0, 0, 1, 0, 1, 0, 0, 1, FlushPolicy()), EMPTY_TRACE))
    closed, targets = trace_kernel(group, shape, arrays)
    outs, written = iter(closed.out_avals), 0
    for array, _, index in targets:
        dynamic = [next(outs).shape for part in index if part is None]
        next(outs)
        enabled = next(outs).shape
        sizes = arrays[array][0]
        kept = [len(range(*part.indices(n))) for part, n in zip(index, sizes, strict=False) if part is not None]
        written += prod((*np.broadcast_shapes(enabled, *dynamic), *kept, *sizes[len(index) :]))
    return elements_read(closed.jaxpr), written


def elements_read(jaxpr: Any) -> int:
    """Elements that a jaxpr reads from the state, the parameters and the trace."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "read":
            total += prod(eqn.outvars[0].aval.shape)
        elif "jaxpr" in eqn.params and eqn.primitive.name != "reduce":
            total += elements_read(eqn.params["jaxpr"].jaxpr)
    return total


@pytest.mark.parametrize("group", KERNELS)
def test_elements_touched_do_not_grow_with_sets_pages_frames_or_lists(group: str) -> None:
    large = replace(LARGE, gather_slots=SMALL.gather_slots) if group in SCANS_HELD else LARGE
    assert elements_touched(group, SMALL) == elements_touched(group, large)


def test_counting_sees_reads_writes_and_ways() -> None:
    read, written = elements_touched("fetch", SMALL)
    more_read, more_written = elements_touched("fetch", replace(SMALL, l2=TlbGeometry(8, 16)))
    assert read > 0
    assert written > 0
    assert more_read == read + (16 - 4) * 4
    assert more_written == written


@pytest.mark.parametrize("group", ["fetch", "reclaim", "flush"])
def test_counted_work_is_what_the_kernel_touches_less_what_it_does_not_use(group: str) -> None:
    counted, (read, written) = work.kernel_work(group, SMALL), elements_touched(group, SMALL)
    assert counted.written == work.ELEMENT * written
    assert 0 < counted.read < work.ELEMENT * (read + written)
    assert counted.gathers + counted.scatters <= counted.sectors <= counted.touched // work.ELEMENT


def test_reads_that_nothing_uses_are_not_counted() -> None:
    def kernel(used: bool) -> list[tuple[int, int]]:
        def body() -> jax.Array:
            first, second = (read_p.bind(array=name, pattern=(), size=(6,), dtype=np.dtype(np.int32)) for name in ("a", "b"))
            return first + second if used else first

        return list(work.reads(jax.make_jaxpr(body)().jaxpr))

    assert kernel(used=True) == [(1, 6), (1, 6)]
    assert kernel(used=False) == [(1, 6)]


def test_visits_are_those_of_the_events() -> None:
    run = small_run([build_trace("llm", 2, 0, 3000, file_pages=96, layer_pages=12)], ("linux", "luf_v10"))
    visits = work.count_visits(run.shape, run.params, run.traces, run.trace_index, 3000)
    assert visits["fetch"] >= 1
    counted = run.samples().counters
    assert visits["install"] * 2 * 3000 == counted["pgfault"].sum()
    assert visits["cow"] == 0
    assert work.count_visits(run.shape, run.params, run.traces, run.trace_index, 3000) == visits


def test_a_lane_of_the_default_machine_fits_in_512_kib() -> None:
    words = ["machine=default", "workload=llm", "workload.file_pages=3968", "num_cpus=8", "pressure=4", "num_events=20000"]
    config = load_run_config(words)
    (group,) = plan(config, TraceSource(config.workloads, config.num_events, 2**30))
    assert (group.shape.num_cpus, group.shape.num_frames, group.shape.num_vpns) == (8, 1024, 4096)
    assert bytes_per_lane(group.shape) <= LANE_LIMIT
    roomy = replace(group.shape, num_processes=1, num_vmas=64, num_file_pages=4096, num_anon=4096, rmap_slots=8)
    assert bytes_per_lane(roomy) <= LANE_LIMIT
