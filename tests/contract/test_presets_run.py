"""Every policy preset and every workload runs, and records of rules keep their structure on the way."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lufjax import counters
from lufjax.backends import native, rollout
from lufjax.machines import Machines
from lufjax.params import MachineParams
from lufjax.policy import CHOICES, RANGES, FlushPolicy, from_words, to_words
from lufjax.presets import load_policy, preset_names
from lufjax.state import MachineState
from tests.contract.small_run import build_trace, small_run
from tests.golden.page_stream import RECORDINGS

NUM_EVENTS = 3000
POLICIES = preset_names("policy")


@pytest.mark.parametrize("workload", [name for name in preset_names("workload") if name != "replay"])
def test_every_workload_runs_under_every_policy(workload: str) -> None:
    samples = small_run([build_trace(workload, 3, 0, NUM_EVENTS)], POLICIES).samples()
    assert set(samples.counters) == {*counters.SCALARS, *counters.GAUGES}
    assert set(samples.histograms) == set(counters.HISTOGRAMS)
    assert (samples.counters["events"] == NUM_EVENTS).all()
    assert not samples.counters["events_disabled"].any()
    assert not samples.counters["segv"].any()
    assert all(values.dtype == np.int64 and (values >= 0).all() for values in samples.counters.values())


@pytest.mark.parametrize("recording", RECORDINGS)
def test_every_recording_runs_under_every_policy(recording: str) -> None:
    samples = small_run([build_trace("replay", 2, 0, NUM_EVENTS, path=recording)], POLICIES).samples()
    assert (samples.counters["accesses"] > 0).all()
    assert not samples.counters["events_disabled"].any()


@pytest.mark.parametrize("name", POLICIES)
def test_a_preset_is_a_full_record_of_integers(name: str) -> None:
    record = load_policy(name)
    assert isinstance(record, FlushPolicy)
    assert all(type(value) is int for value in record)
    assert from_words(to_words(record)) == record
    assert set(CHOICES) | set(RANGES) == set(FlushPolicy._fields)


def test_state_and_rules_keep_structure_and_dtypes() -> None:
    run = small_run([build_trace("churn", 2, 0, 64)], ["linux"])
    params = jax.tree.map(lambda leaf: int(leaf[0]), run.params)
    machines = Machines(run.shape, [params], run.traces)
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), machines.state)
    for row in run.traces[0].events[:8]:
        machines.step(row[None])
    assert isinstance(machines.state, MachineState)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), machines.state) == before
    assert {str(leaf.dtype) for leaf in machines.state} == {"int32", "uint32"}


def test_a_sweep_over_policies_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    trace_kernel = native.trace_kernel
    monkeypatch.setattr(native, "trace_kernel", lambda group, *rest: traced.append(group) or trace_kernel(group, *rest))
    run = small_run([build_trace("churn", 2, seed, 500) for seed in (0, 1)], POLICIES, num_frames=333)
    run.samples([100, 500])
    run.lanes(range(3)).samples()
    assert sorted(traced) == sorted(rollout.program_for({int(op) for trace in run.traces for op in trace.events[:, 1]}))


def test_lanes_of_a_batch_are_those_run_alone() -> None:
    run = small_run([build_trace("churn", 2, 0, 500)], ["linux", "luf_v10", "latr"])
    together = run.samples()
    assert isinstance(run.params, MachineParams)
    for lane in range(run.num_lanes):
        alone = run.lanes([lane]).samples()
        assert all((alone.counters[name][0] == together.counters[name][lane]).all() for name in alone.counters)
