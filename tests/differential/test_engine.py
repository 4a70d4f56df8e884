"""The engine against the oracle: whole state, counters and violations after every event, on tiny machines and many rule records."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings

from lufjax.machines import Machines
from tests.differential.drawing import SKIP, Drawn, machines, row_of
from tests.differential.pair import (
    engine_record,
    fault_of,
    first_difference,
    oracle_record,
    params_of,
    shape_of,
    states_after,
    states_of,
    trace_of,
)  # fmt: skip
from tests.oracle import Oracle
from tests.oracle.generate import SHAPES, random_events, random_machine
from tests.oracle.generate_events import ALLOCATIONS, FORKS
from tests.oracle.policies import NUM_CHOICES, PRESETS

NUM_MACHINES = 36
"""Machines of a shape that step side by side: twice every preset, the others with rule records at random."""
NUM_EVENTS = 70
XLA_MACHINES, XLA_EVENTS = 16, 64
"""Under XLA, which needs a power of two of lanes: one lane for every machine and event."""
NUM_EXAMPLES = 120
"""Machines of a shape that Hypothesis draws."""


def drawn_machines(rng: random.Random, index: int) -> list[tuple[Any, ...]]:
    """Machines of one shape; every preset runs twice, once with its own numbers."""
    drawn = [random_machine(rng, index) for _ in range(NUM_MACHINES)]
    for lane, name in enumerate(sorted(PRESETS) * 2):
        sizes, params, policy, trace = drawn[lane]
        slots = min(PRESETS[name]["quarantine_slots"], sizes["quarantine_slots"])
        own = {"quarantine_slots": slots} if lane < len(PRESETS) else {"trim_period": 7, "flush_ceiling": 1, "quarantine_slots": 2}
        drawn[lane] = (sizes, params, PRESETS[name] | own, trace)
        assert set(policy) == set(drawn[lane][2])
    return drawn


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_engine_and_oracle_agree_after_every_event(index: int) -> None:
    rng = random.Random(1000 + index)
    drawn = drawn_machines(rng, index)
    compare_every_event(drawn, [random_events(rng, drawn[0][0], trace, NUM_EVENTS) for _, _, _, trace in drawn])


def test_engine_and_oracle_agree_on_every_way_to_owe_and_to_allocate() -> None:
    rng, drawn = random.Random(3000), []
    ways = ("debt_merge", "targets", "pending_to", "buddy_tag", "buddy_merge", "refill_tag", "atomic_alloc")
    for _ in range(NUM_MACHINES):
        sizes, params, policy, trace = random_machine(rng, 1)
        small = {field: policy[field] for field in ("trim_period", "flush_ceiling", "latr_ticks", "quarantine_slots", "gen_bits")}
        mixed = {field: rng.randrange(NUM_CHOICES[field]) for field in ways}
        drawn.append((sizes, params, PRESETS["luf_v10"] | small | mixed, trace))
    compare_every_event(drawn, [random_events(rng, drawn[0][0], trace, NUM_EVENTS, ALLOCATIONS) for _, _, _, trace in drawn])


@pytest.mark.parametrize("index", [0, 2])
def test_engine_and_oracle_agree_on_what_a_fork_shares(index: int) -> None:
    rng = random.Random(4000 + index)
    drawn = drawn_machines(rng, index)
    compare_every_event(drawn, [random_events(rng, drawn[0][0], trace, NUM_EVENTS, FORKS) for _, _, _, trace in drawn])


def compare_every_event(drawn: list[tuple[Any, ...]], events: list[list[list[int]]]) -> None:
    """Step machines of one shape side by side, and compare whole state, counters and violations after every event."""
    sizes = drawn[0][0]
    shape = shape_of(sizes)
    params = [params_of(numbers, policy) for _, numbers, policy, _ in drawn]
    together = Machines(shape, params, [trace_of(trace, sizes) for _, _, _, trace in drawn], backend="native")
    oracles = [Oracle(*machine) for machine in drawn]
    for step in range(NUM_EVENTS):
        together.step(np.array([rows[step] for rows in events]))
        for lane, (state, oracle) in enumerate(zip(together.host(), oracles, strict=True)):
            oracle.step(events[lane][step])
            what = f"machine {lane}, event {step + 1} {events[lane][step]}, policy {drawn[lane][2]}"
            assert not (found := first_difference(engine_record(shape, state), oracle_record(oracle))), f"{what}: {found}"


def test_engine_and_oracle_agree_after_every_event_under_xla() -> None:
    rng = random.Random(2000)
    drawn = drawn_machines(rng, 0)[:XLA_MACHINES]
    sizes = drawn[0][0]
    shape, params = shape_of(sizes), [params_of(numbers, policy) for _, numbers, policy, _ in drawn]
    events = [random_events(rng, sizes, trace, XLA_EVENTS) for _, _, _, trace in drawn]
    traces = [trace_of(trace, sizes, rows) for (_, _, _, trace), rows in zip(drawn, events, strict=True)]
    states = states_of(params, shape, traces, range(1, XLA_EVENTS + 1), backend="xla")
    for lane, (machine, rows) in enumerate(zip(drawn, events, strict=True)):
        oracle = Oracle(*machine)
        for row, state in zip(rows, states[lane], strict=True):
            oracle.step(row)
            found = first_difference(engine_record(shape, state), oracle_record(oracle))
            assert not found, f"machine {lane}, event {oracle.state.now} {row}, policy {machine[2]}: {found}"


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_engine_and_oracle_agree_on_drawn_machines(index: int) -> None:
    @settings(max_examples=NUM_EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example])
    @given(drawn=machines(index))
    def check(drawn: Drawn) -> None:
        check_drawn(drawn)

    check()


def check_drawn(drawn: Drawn) -> None:
    """Let the oracle turn wishes into rows and execute them, then compare the engine's state after every row."""
    oracle = Oracle(drawn.sizes, drawn.params, drawn.policy, drawn.trace)
    rows, records = [], []
    for wish in drawn.wishes:
        if wish.op == SKIP:
            continue
        rows.append(row_of(wish, oracle, drawn.sizes))
        oracle.step(rows[-1])
        if oracle.faults:
            break
        records.append(oracle_record(oracle))
    if not rows:
        return
    note(f"policy={drawn.policy}\nparams={drawn.params}\ntrace={drawn.trace}\nrows={rows}")
    shape = shape_of(drawn.sizes)
    states = states_after(shape, params_of(drawn.params, drawn.policy), trace_of(drawn.trace, drawn.sizes, rows), range(1, len(rows) + 1))
    assert bool(fault_of(states[-1])) == bool(oracle.faults)
    for number, (state, theirs) in enumerate(zip(states, records, strict=False), start=1):
        found = first_difference(engine_record(shape, state), theirs)
        assert not found, f"event {number} {rows[number - 1]}: {found}"
