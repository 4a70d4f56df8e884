"""Measure what run-length events and stripping gain on the recordings that come with lufjax: original accesses per second of CPU time.

``python -m experiments.benchmarks.stripping [machine=default] [pressure=0.75] [policies=linux,luf_v10] [cpus=1] [lanes=5] [repeats=5]``, from the
repository root; prints one JSON object. Without ``cpus``, as many as the recording has threads.

The same lanes, so many for each policy, all on the one trace, run in turns: with one event for each access (as many as ``repeat`` says), with
run-length events, and stripped. All on one thread; checking and packing the trace and finding its stretches count, once for all lanes. Nothing is
printed unless stripped and unstripped lanes counted the same.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from lufjax import engine
from lufjax.benchmark.cases import Batch
from lufjax.benchmark.facts import device_facts, versions
from lufjax.benchmark.options import POLICIES
from lufjax.benchmark.turns import Disagreement, refuse_difference
from lufjax.config import load_run_config
from lufjax.events import OP, REPEAT, Op
from lufjax.stripping import leaning
from lufjax.sweeps.grid import plan
from lufjax.sweeps.traces import TraceSource, fit
from lufjax.trace import Trace
from lufjax.workloads.recording import read_recording
from lufjax.workloads.replay import TRACES, recording_path

KINDS = ("one_event_per_access", "run_length", "stripped")


def accesses_of(events: np.ndarray) -> np.ndarray:
    """Accesses of each event, 0 for any other operation."""
    return np.where(np.isin(events[:, OP], (Op.LOAD, Op.STORE)), events[:, REPEAT], 0)


def unrolled(trace: Trace) -> Trace:
    """The same accesses, one event each."""
    accesses = accesses_of(trace.events)
    events = np.repeat(trace.events, np.maximum(accesses, 1), axis=0)
    events[np.isin(events[:, OP], (Op.LOAD, Op.STORE)), REPEAT] = 1
    return replace(trace, events=events)


def build(path: str, given: dict[str, str]) -> Batch:
    """Lanes of the recording for each policy: as many lanes a trace as ``experiment=scaling`` has."""
    cpus = given.get("cpus") or read_recording(recording_path(path)).number("num_threads")
    words = {"machine": "default", "pressure": "0.75", "num_events": "400000", "num_cpus": cpus}
    words |= {key: given[key] for key in ("machine", "pressure") if key in given}
    policies = given.get("policies", ",".join(POLICIES))
    overrides = [f"{key}={value}" for key, value in words.items()]
    config = load_run_config([*overrides, "workload=replay", f"workload.path={path}", f"axes.policy=[{policies}]", "machine.reclaim_batch=8"])
    source = TraceSource(config.workloads, config.num_events, 2**40)
    (group,) = plan(config, source)
    traces = tuple(fit(source.get(key), group.shape) for key in group.trace_keys)
    batch = Batch(group.shape, group.params, traces, group.trace_index, group.index[:, 1], config.num_events)
    return batch.take(np.tile(np.arange(group.num_lanes), int(given.get("lanes", 5))))


def run(batch: Batch, *, strip: bool) -> tuple[float, engine.Samples]:
    """CPU seconds, and what was counted."""
    begin, points = time.process_time(), [batch.traces[0].num_events]
    samples = engine.simulate(
        batch.shape, batch.params, batch.traces, batch.trace_index, sample_points=points, backend="native", num_devices=1, strip=strip
    )
    return time.process_time() - begin, samples


def measure(path: str, given: dict[str, str]) -> dict[str, Any]:
    """Every way to run one recording, in turns."""
    batch = build(path, given)
    (trace,) = batch.traces
    whole = unrolled(trace)
    batches = {"one_event_per_access": (replace(batch, traces=(whole,)), False), "run_length": (batch, False), "stripped": (batch, True)}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(1 + int(given.get("repeats", 5))):
        found = {kind: run(one, strip=strip) for kind, (one, strip) in batches.items()}
        refuse_difference(path, found["stripped"][1], found["run_length"][1])
        for kind in KINDS if turn else ():
            seconds[kind].append(found[kind][0])
    is_redundant = leaning(trace.events, trace.num_vpns, batch.shape.l1) > 0
    steps = int((~is_redundant).sum() + (is_redundant[1:] & ~is_redundant[:-1]).sum())
    accesses, lanes = int(accesses_of(trace.events).sum()), len(batch.trace_index)
    first = seconds[KINDS[0]]
    return {
        "cpus": trace.num_cpus, "accesses": accesses, "events_one_per_access": whole.num_events, "events_run_length": trace.num_events,
        "steps_stripped_at_best": steps, "page_faults_per_event": float(found["stripped"][1].counters["pgfault"].mean() / trace.num_events),
        "accesses_per_s": {kind: round(lanes * accesses / statistics.median(seconds[kind])) for kind in KINDS},
        "ratio": {kind: statistics.median(a / b for a, b in zip(first, seconds[kind], strict=True)) for kind in KINDS[1:]},
        "ratio_extremes": {kind: [f(a / b for a, b in zip(first, seconds[kind], strict=True)) for f in (min, max)] for kind in KINDS[1:]},
    }  # fmt: skip


def main(words: list[str]) -> int:
    """Measure every recording. Returns the exit code."""
    given = dict(word.split("=", 1) for word in words)
    allowed = ("machine", "pressure", "policies", "cpus", "lanes", "repeats")
    for key in given:
        if key not in allowed:
            print(f"stripping: {key}={given[key]}: no such key; allowed are {', '.join(allowed)}", file=sys.stderr)
            return 2
    engine.use_all_cores()
    try:
        found = {path.stem: measure(path.stem, given) for path in sorted(TRACES.glob("*.nc"))}
    except Disagreement as error:
        print(f"stripping: {error}; nothing is reported", file=sys.stderr)
        return 1
    print(json.dumps({"recordings": found, "options": given, "device": device_facts("native"), "versions": versions()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
