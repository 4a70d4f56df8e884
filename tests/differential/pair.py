"""The same machine for the engine and for the oracle, and where their states differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lufjax import state as st
from lufjax.backends import rollout
from lufjax.backends.runners import make_runner
from lufjax.event_check import check_rows
from lufjax.machines import counters_of, violations_of
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.snapshot import snapshot
from lufjax.state import MachineState, init_state
from lufjax.trace import Trace
from tests.oracle import Oracle

Sizes = dict[str, Any]


def shape_of(sizes: Sizes) -> MachineShape:
    """The engine's shape of the oracle's sizes."""
    levels = {level: TlbGeometry(**sizes[level]) for level in ("l1", "l2")}
    return MachineShape(**{name: value for name, value in sizes.items() if name not in levels}, **levels)


def params_of(params: dict[str, int], policy: dict[str, int]) -> MachineParams:
    """The engine's parameters of the oracle's parameters and policy."""
    return MachineParams(**params, policy=FlushPolicy(**policy))


def trace_of(trace: dict[str, Any], sizes: Sizes, rows: Sequence[Sequence[int]] = ()) -> Trace:
    """The engine's trace of the oracle's initial mappings and of event rows."""
    return Trace(
        events=np.array(rows, np.int32).reshape(-1, 5), vmas=np.array(trace["vmas"], np.int32),
        page_vma=np.array(trace["page_vma"], np.int32), page_backing=np.array(trace["page_backing"], np.int32),
        loaded=np.array(trace["loaded"], np.int32), num_file_pages=sizes["num_file_pages"], num_anon=sizes["num_anon"],
    )  # fmt: skip


def oracle_record(oracle: Oracle) -> dict[str, Any]:
    """Everything that is compared."""
    return {"state": oracle.snapshot(), "counters": oracle.counters(), "violations": oracle.violations()}


def engine_record(shape: MachineShape, state: MachineState) -> dict[str, Any]:
    """Everything that is compared, of one machine's state on the host."""
    return {"state": snapshot(shape, state), "counters": counters_of(state), "violations": violations_of(state)}


def first_difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two records differ first; empty if nowhere."""
    if isinstance(ours, dict):
        assert set(ours) == set(theirs)
        return next((d for key in theirs if (d := first_difference(ours[key], theirs[key], f"{path}.{key}"))), "")
    if ours == theirs:
        return ""
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return f"{path}: engine has {len(ours)} entries, oracle {len(theirs)}"
        return next((d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if (d := first_difference(a, b, f"{path}[{i}]"))), "")
    return f"{path}: engine {ours}, oracle {theirs}"


def states_after(shape: MachineShape, params: MachineParams, trace: Trace, points: Sequence[int]) -> list[MachineState]:
    """The engine's states after each of the numbers of events ``points``, on the host; run natively."""
    return states_of([params], shape, [trace], points, backend="native")[0]


def states_of(
    params: Sequence[MachineParams], shape: MachineShape, traces: Sequence[Trace], points: Sequence[int], *, backend: str
) -> list[list[MachineState]]:  # fmt: skip
    """States of several machines after each of the numbers of events ``points``: one lane for each machine and point.

    Traces have the same length. XLA needs a power of two of lanes.
    """
    for trace in traces:
        check_rows(shape, trace.events)
    num_lanes = len(traces) * len(points)
    runner = make_runner(backend, shape, tuple(rollout.KERNELS), num_lanes, num_lanes, 1)

    def lanes(*leaves: Any) -> Any:
        return runner.put(np.repeat(np.stack([np.asarray(leaf) for leaf in leaves]), len(points), axis=0))

    start = jax.tree.map(lanes, *(init_state(shape, own, trace) for own, trace in zip(params, traces, strict=True)))
    numbers = [jax.tree.map(np.int32, own) for own in params]
    events = runner.put_shared(rollout.pack_events(np.stack([trace.events for trace in traces])))
    which, stop = lanes(*np.arange(len(traces), dtype=np.int32)), runner.put(np.tile(np.array(points, np.int32), len(traces)))
    host = jax.tree.map(np.array, jax.device_get(runner.run(jax.tree.map(lanes, *numbers), start, events, which, stop)))
    states = [jax.tree.map(lambda leaf, i=lane: leaf[i], host) for lane in range(num_lanes)]
    return [states[first : first + len(points)] for first in range(0, num_lanes, len(points))]


def fault_of(state: MachineState) -> int:
    """The fault word of one machine."""
    return int(st.scalar(state, "fault"))
