"""The engine, stripping, against the oracle over the first 100,000 events of the shipped recordings, on a machine with too little memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lufjax import counters as names
from lufjax import workloads
from lufjax.engine import Samples, simulate
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.sweeps.traces import measure
from lufjax.trace import Trace
from tests.differential.pair import Sizes, engine_record, first_difference, oracle_record, states_after
from tests.golden.page_stream import RECORDINGS
from tests.oracle import Oracle
from tests.oracle.policies import PRESETS

NUM_EVENTS = 100_000
SAMPLES = list(range(2_500, NUM_EVENTS + 1, 2_500))
CHECKPOINTS = SAMPLES[3::4]
"""Numbers of events after which the whole state is compared; the last ends the run."""
POLICIES = ("linux", "luf_v10")
L1, L2 = (8, 2), (16, 4)


def small_machine(trace: Trace) -> tuple[MachineShape, dict[str, int]]:
    """A machine with memory for two thirds of the pages that the trace touches."""
    need = measure(trace)
    frames = max(40, need.footprint * 2 // 3)
    shape = MachineShape(
        num_cpus=trace.num_cpus, num_processes=need.num_processes, num_vpns=need.num_vpns, num_frames=frames, num_vmas=need.num_vmas,
        num_file_pages=need.num_file_pages, num_anon=need.num_anon, l1=TlbGeometry(*L1), l2=TlbGeometry(*L2), rmap_slots=need.rmap_slots,
        gather_slots=need.gather_slots, batch_slots=8, pcp_slots=8, quarantine_slots=64,
    )  # fmt: skip
    params = {
        "frames_in_use": frames, "wmark_min": 2, "wmark_low": 6, "wmark_high": 10, "pcp_batch": 2, "pcp_high": 4, "reclaim_batch": 8,
        "kswapd_cpu": 0, "load_mode": 1, "fast_frames": frames,
    }  # fmt: skip
    return shape, params


def oracle_sizes(shape: MachineShape) -> Sizes:
    """The oracle's sizes of the engine's shape."""
    levels = {level: vars(getattr(shape, level)) for level in ("l1", "l2")}
    return {name: value for name, value in vars(shape).items() if name not in levels} | levels


def oracle_counts(oracle: Oracle) -> dict[str, Any]:
    """What :func:`engine_counts` reads from samples."""
    return oracle.counters() | {kind: oracle.violations()[kind] for kind in ("loads", "stores")} | {"loads_issued": oracle.counters()["loads"]}


def engine_counts(samples: Samples, lane: int, sample: int) -> dict[str, Any]:
    """Counters and violations of a lane at a sample point."""
    found: dict[str, Any] = {name: int(values[lane, sample]) for name, values in samples.counters.items()}
    found |= {name: values[lane, sample].tolist() for name, values in samples.histograms.items()}
    found |= {"received": samples.received[lane, sample].tolist(), "loads_issued": found["loads"]}
    loads, stores = samples.violations[lane, sample].T.tolist()
    return found | {"loads": loads, "stores": stores}


@pytest.mark.parametrize("num_cpus", [4])
@pytest.mark.parametrize("recording", RECORDINGS)
def test_engine_and_oracle_agree_over_a_recording(recording: str, num_cpus: int) -> None:
    trace = workloads.build("replay", {"path": recording}, num_cpus=num_cpus, seed=0, num_events=NUM_EVENTS)
    shape, numbers = small_machine(trace)
    records = [PRESETS[name] for name in POLICIES]
    params = MachineParams(
        *(np.full(len(records), value, np.int32) for value in numbers.values()),
        policy=FlushPolicy(**{field: np.array([record[field] for record in records], np.int32) for field in records[0]}),
    )
    assert tuple(numbers) == MachineParams._fields[:-1]
    samples = simulate(shape, params, [trace], np.zeros(len(records), np.int32), sample_points=SAMPLES, backend="native", strip=True)
    initial = {name: getattr(trace, name).tolist() for name in ("vmas", "page_vma", "page_backing", "loaded")}
    for lane, record in enumerate(records):
        states = iter(states_after(shape, MachineParams(**numbers, policy=FlushPolicy(**record)), trace, CHECKPOINTS))
        oracle, done = Oracle(oracle_sizes(shape), numbers, record, initial), 0
        for sample, point in enumerate(SAMPLES):
            for row in trace.events[done:point].tolist():
                oracle.step(row)
            done = point
            what = f"{recording}, {POLICIES[lane]}, event {point}"
            assert not (found := first_difference(engine_counts(samples, lane, sample), oracle_counts(oracle))), f"{what}: {found}"
            if point in CHECKPOINTS:
                assert not (found := first_difference(engine_record(shape, next(states)), oracle_record(oracle))), f"{what}: {found}"
        assert samples.first_violation[lane].tolist() == [list(x) for x in oracle.violations()["first"]]
        assert oracle.counters()["pgsteal_kswapd"] > 0, "no memory pressure"


def test_counts_compared_are_all_there_are() -> None:
    sizes = oracle_sizes(MachineShape(1, 1, 2, 2, 1, 1, 1))
    params = {**dict.fromkeys(MachineParams._fields[:-1], 1), "frames_in_use": 2, "fast_frames": 2, "kswapd_cpu": 0}
    empty = {"vmas": [1], "page_vma": [[-1, -1]], "page_backing": [[-1, -1]], "loaded": [0]}
    counts = oracle_counts(Oracle(sizes, params, PRESETS["linux"], empty))
    assert set(counts) - {"loads_issued", "received"} == {*names.SCALARS, *names.GAUGES, *names.HISTOGRAMS}
