"""The engine against the oracle: whole state, counters and violations after every event, on random tiny machines and rule records."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lufjax.engine import Machines, counters_of, violations_of
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.snapshot import snapshot
from lufjax.trace import Trace
from tests.oracle import Oracle
from tests.oracle.generate import SHAPES, random_events, random_machine

NUM_MACHINES = 48
NUM_EVENTS = 70


def shape_of(sizes: dict[str, Any]) -> MachineShape:
    """The engine's shape of the oracle's sizes."""
    levels = {level: TlbGeometry(**sizes[level]) for level in ("l1", "l2")}
    return MachineShape(**{name: value for name, value in sizes.items() if name not in levels}, **levels)


def trace_of(trace: dict[str, Any], sizes: dict[str, Any]) -> Trace:
    """The engine's trace of the oracle's initial mappings."""
    return Trace(
        events=np.zeros((0, 5), np.int32), vmas=np.array(trace["vmas"], np.int32), page_vma=np.array(trace["page_vma"], np.int32),
        page_backing=np.array(trace["page_backing"], np.int32), loaded=np.array(trace["loaded"], np.int32),
        num_file_pages=sizes["num_file_pages"], num_anon=sizes["num_anon"],
    )  # fmt: skip


def first_difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two snapshots differ first."""
    if isinstance(ours, dict):
        return next((d for key in theirs if (d := first_difference(ours[key], theirs[key], f"{path}.{key}"))), "")
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return next((d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if (d := first_difference(a, b, f"{path}[{i}]"))), "")
    return "" if ours == theirs else f"{path}: engine {ours}, oracle {theirs}"


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_engine_and_oracle_agree_after_every_event(index: int) -> None:
    rng = random.Random(1000 + index)
    drawn = [random_machine(rng, index) for _ in range(NUM_MACHINES)]
    sizes = drawn[0][0]
    shape = shape_of(sizes)
    params = [MachineParams(**p, policy=FlushPolicy(**policy)) for _, p, policy, _ in drawn]
    machines = Machines(shape, params, [trace_of(trace, sizes) for _, _, _, trace in drawn])
    oracles = [Oracle(*machine) for machine in drawn]
    events = [random_events(rng, sizes, trace, NUM_EVENTS) for _, _, _, trace in drawn]
    for step in range(NUM_EVENTS):
        machines.step(np.array([rows[step] for rows in events]))
        for lane, (state, oracle) in enumerate(zip(machines.host(), oracles, strict=True)):
            oracle.step(events[lane][step])
            what = f"machine {lane}, event {step + 1} {events[lane][step]}, policy {drawn[lane][2]}"
            ours = {"state": snapshot(shape, state), "counters": counters_of(state), "violations": violations_of(state)}
            theirs = {"state": oracle.snapshot(), "counters": oracle.counters(), "violations": oracle.violations()}
            assert not (difference := first_difference(ours, theirs)), f"{what}: {difference}"
