"""The same machine for the engine and for the oracle, and where their states differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lufjax import rollout
from lufjax import state as st
from lufjax.event_check import check_rows
from lufjax.machines import counters_of, violations_of
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.runners import make_runner
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
    """The engine's states after each of the numbers of events ``points``, on the host; one lane for each, run natively."""
    check_rows(shape, trace.events)
    runner = make_runner("native", shape, tuple(rollout.KERNELS), len(points), len(points), 1)
    start = init_state(shape, params, trace)

    def lanes(leaf: Any) -> jax.Array:
        return runner.put(np.repeat(np.asarray(leaf)[None], len(points), axis=0))

    own = MachineParams(*(lanes(np.int32(x)) for x in params[:-1]), policy=FlushPolicy(*(lanes(np.int32(x)) for x in params.policy)))
    events = runner.put_shared(rollout.pack_events(trace.events[None]))
    which, stop = runner.put(np.zeros(len(points), np.int32)), runner.put(np.array(points, np.int32))
    state = runner.run(own, jax.tree.map(lanes, start), events, which, stop)
    host = jax.tree.map(np.array, jax.device_get(state))
    return [jax.tree.map(lambda leaf, i=lane: leaf[i], host) for lane in range(len(points))]


def fault_of(state: MachineState) -> int:
    """The fault word of one machine."""
    return int(st.scalar(state, "fault"))
