"""Lanes, blocks and devices: the only module that says jit, shard_map or device. Results do not depend on any of them.

``simulate`` runs many lanes; ``Machine`` runs one, an event at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lufjax import counters as names
from lufjax import rollout
from lufjax import state as st
from lufjax.events import ANON, FIRST_PAGE, IDLE, OP, Op
from lufjax.faults import EngineFault
from lufjax.params import MachineParams, MachineShape
from lufjax.snapshot import snapshot
from lufjax.state import MachineState, bytes_of, init_state
from lufjax.trace import Trace

LANES = "lanes"
BLOCK_LANES = 1024
"""Lanes of one device that advance together: more lanes fill the slots of a phase better, fewer stay in the cache."""
SLOT_SHARE = 4
"""A phase runs on one lane in this many at a time."""


@dataclass(frozen=True)
class Samples:
    """What lanes counted, cumulative at each sample point. L lanes, S sample points, C CPUs.

    Attributes:
        counters: scalar counters and gauges by name, ``int64[L, S]``.
        histograms: by name, ``int64[L, S, 16]``.
        received: flush functions run for another CPU, ``int64[L, S, C]``.
        violations: by class and access (load, store), ``int64[L, S, 6, 2]``.
        first_violation: now, cpu, process, vpn of the first of each class, ``int64[L, 6, 4]``; now is 0 where there was none.
    """

    counters: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]
    received: np.ndarray
    violations: np.ndarray
    first_violation: np.ndarray


def use_all_cores() -> None:
    """Make each CPU core a device, unless JAX has started or was told otherwise. XLA's own threading is no substitute."""
    if "jax_num_cpu_devices" in os.environ.get("XLA_FLAGS", "") or os.environ.get("JAX_NUM_CPU_DEVICES"):
        return
    try:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    except RuntimeError:
        return


def bytes_per_lane(shape: MachineShape) -> int:
    """Bytes of state of one lane."""
    empty = Trace(
        events=np.zeros((0, 5), np.int32), vmas=np.zeros(1, np.int32), page_vma=np.full((1, 1), -1, np.int32),
        page_backing=np.full((1, 1), -1, np.int32), loaded=np.zeros(1, np.int32), num_file_pages=0, num_anon=0,
    )  # fmt: skip
    from lufjax.policy import FlushPolicy

    return bytes_of(init_state(shape, MachineParams(1, 0, 0, 0, 1, 0, 1, 0, 0, FlushPolicy()), empty))


def simulate(
    shape: MachineShape,
    params: MachineParams,
    traces: Sequence[Trace],
    trace_index: np.ndarray,
    *,
    sample_points: Sequence[int],
    block_lanes: int = BLOCK_LANES,
    num_devices: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Run every lane through its trace.

    Args:
        shape: static sizes, the same for all lanes.
        params: every leaf ``int32[num_lanes]``.
        traces: the traces used; all have the same number of events.
        trace_index: ``int[num_lanes]``, which trace drives each lane.
        sample_points: numbers of events after which counters are read; increasing, the last one ends the run.
        block_lanes: lanes per device that advance together.
        num_devices: devices to use; all by default.
        progress: called with (lane events done, lane events in all).

    Raises:
        ValueError: an argument or a trace row is outside the machine.
        EngineFault: a lane faulted; nothing is returned.
    """
    use_all_cores()
    trace_index = np.asarray(trace_index, np.int32)
    _check_arguments(shape, traces, trace_index, sample_points)
    devices = jax.devices()[:num_devices]
    num_lanes = len(trace_index)
    per_device = min(block_lanes, _ceil_power(-(-num_lanes // len(devices))))
    block = per_device * len(devices)
    ops = frozenset(int(op) for trace in traces for op in np.unique(trace.events[:, OP]))
    slots = min(per_device, max(64, per_device // SLOT_SHARE))
    run = _runner(shape, rollout.program_for(set(ops)), slots, tuple(devices))
    lanes = NamedSharding(Mesh(np.array(devices), (LANES,)), PartitionSpec(LANES))
    total, parts = num_lanes * sample_points[-1], []
    for start in range(0, num_lanes, block):
        index = np.minimum(np.arange(start, start + block), num_lanes - 1)
        is_real = np.arange(start, start + block) < num_lanes
        local_params = jax.tree.map(lambda leaf, i=index: jax.device_put(np.asarray(leaf, np.int32)[i], lanes), params)
        used, local_index = np.unique(trace_index[index], return_inverse=True)
        state = _initial(shape, params, index, [traces[i] for i in used], local_index, lanes)
        events = jnp.asarray(rollout.pack_events(np.stack([traces[i].events for i in used])))
        where = jax.device_put(local_index.astype(np.int32), lanes)
        collected = []
        for point in sample_points:
            stop = jax.device_put(np.where(is_real, point, 0).astype(np.int32), lanes)
            state = run(local_params, state, events, where, stop)
            state, counted = _take_counters(state)
            _check_faults(counted, index, point, is_real)
            collected.append(counted)
            if progress is not None:
                done = min(start + block, num_lanes) - start
                progress(start * sample_points[-1] + done * point, total)
        parts.append(_accumulate(collected, int(is_real.sum())))
    return _join(parts)


def _ceil_power(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


@lru_cache(maxsize=16)
def _runner(shape: MachineShape, program: tuple[str, ...], slots: int, devices: tuple[Any, ...]) -> Callable[..., MachineState]:
    """The compiled program: lanes sharded over devices, state arrays updated in place."""
    mesh = Mesh(np.array(devices), (LANES,))
    lanes, everywhere = PartitionSpec(LANES), PartitionSpec()
    sharded = jax.shard_map(
        partial(rollout.advance, shape, program, slots), mesh=mesh, in_specs=(lanes, lanes, everywhere, lanes, lanes), out_specs=lanes, check_vma=False
    )  # fmt: skip
    options = {"xla_cpu_copy_insertion_use_region_analysis": True} if devices[0].platform == "cpu" else None
    return jax.jit(sharded, donate_argnums=(1,), compiler_options=options)


def _initial(
    shape: MachineShape, params: MachineParams, index: np.ndarray, traces: list[Trace], local_index: np.ndarray, lanes: NamedSharding
) -> MachineState:  # fmt: skip
    """Initial states of a block: one per trace, then the few numbers that depend on the lane."""
    first = jax.tree.map(lambda leaf: int(np.asarray(leaf)[index[0]]), params)
    bases = [init_state(shape, first, trace) for trace in traces]
    state = jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)[local_index], lanes), *bases)
    frames = jax.device_put(np.asarray(params.frames_in_use, np.int32)[index], lanes)
    trim = jax.device_put(np.asarray(params.policy.trim_period, np.int32)[index], lanes)
    bank, column = st.BANK_OF["free_count"]
    return state._replace(mm=state.mm.at[:, :, st.NEXT_TRIM].set(trim[:, None]), **{bank: getattr(state, bank).at[:, column].set(frames)})


@jax.jit
def _zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _take_counters(state: MachineState) -> tuple[MachineState, dict[str, Any]]:
    """Read and reset what was counted since the last sample, so that no device counter can wrap in a long run."""
    counting = {"counters": state.counters, "histograms": state.histograms, "received": state.received, "violations": state.violations}
    scalars = {name: st.scalar(state, name) for name in (*names.GAUGES, "fault", "cursor")}
    host = jax.device_get({**counting, **scalars, "first": state.first})
    return state._replace(**_zeros_like(counting)), host


def _check_faults(counted: dict[str, Any], index: np.ndarray, point: int, is_real: np.ndarray) -> None:
    faulted = np.flatnonzero((counted["fault"] != 0) & is_real)
    if len(faulted):
        lane = faulted[0]
        raise EngineFault(int(counted["fault"][lane]), int(index[lane]), int(counted["cursor"][lane]))
    if (counted["cursor"][is_real] != point).any():
        raise RuntimeError(f"a lane stopped before event {point}: a phase that its operations need is not compiled in")


def _accumulate(collected: list[dict[str, Any]], num_lanes: int) -> Samples:
    def total(pick: Callable[[dict[str, Any]], Any]) -> np.ndarray:
        return np.cumsum(np.stack([np.asarray(pick(c))[:num_lanes].astype(np.int64) for c in collected], axis=1), axis=1)

    def gauge(name: str) -> np.ndarray:
        return np.stack([np.asarray(c[name])[:num_lanes].astype(np.int64) for c in collected], axis=1)

    scalars = total(lambda c: c["counters"])
    counted = {name: scalars[..., column] for column, name in enumerate(names.SCALARS)} | {"events": gauge("cursor")}
    histograms = total(lambda c: c["histograms"])
    return Samples(
        counters=counted | {name: gauge(name) for name in names.GAUGES},
        histograms={name: histograms[:, :, row] for row, name in enumerate(names.HISTOGRAMS)},
        received=total(lambda c: c["received"]),
        violations=total(lambda c: c["violations"]),
        first_violation=np.asarray(collected[-1]["first"])[:num_lanes].astype(np.int64),
    )


def _join(parts: list[Samples]) -> Samples:
    def cat(pick: Callable[[Samples], np.ndarray]) -> np.ndarray:
        return np.concatenate([pick(part) for part in parts])

    return Samples(
        counters={name: cat(lambda p, n=name: p.counters[n]) for name in parts[0].counters},
        histograms={name: cat(lambda p, n=name: p.histograms[n]) for name in parts[0].histograms},
        received=cat(lambda p: p.received), violations=cat(lambda p: p.violations), first_violation=cat(lambda p: p.first_violation),
    )  # fmt: skip


def _check_arguments(shape: MachineShape, traces: Sequence[Trace], trace_index: np.ndarray, sample_points: Sequence[int]) -> None:
    if not len(trace_index) or trace_index.min() < 0 or trace_index.max() >= len(traces):
        raise ValueError(f"trace_index: needs at least one lane, and values from 0 to {len(traces) - 1}")
    lengths = {trace.num_events for trace in traces}
    if len(lengths) != 1:
        raise ValueError(f"traces: all need the same number of events, got {sorted(lengths)}")
    if list(sample_points) != sorted(set(sample_points)) or sample_points[0] < 1 or sample_points[-1] > lengths.pop():
        raise ValueError(f"sample_points={list(sample_points)}: allowed are increasing event numbers up to the length of the traces")
    for trace in traces:
        check_rows(shape, trace.events)


def check_rows(shape: MachineShape, events: np.ndarray) -> None:
    """Refuse an event row that names something outside the machine.

    Raises:
        ValueError: names the row, the field, the value and what is allowed.
    """
    cpu, op, vpn, arg, repeat = np.asarray(events, np.int64).reshape(-1, 5).T
    is_access = (op == Op.LOAD) | (op == Op.STORE)
    vma = np.where(op == Op.MMAP, repeat % FIRST_PAGE, 0)

    def need(bad: np.ndarray, field: str, values: np.ndarray, allowed: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"event {row + 1} ({Op(int(op[row])).name if op[row] in set(Op) else op[row]}): {field}={values[row]}: allowed are {allowed}")

    need((cpu < 0) | (cpu >= shape.num_cpus), "cpu", cpu, f"0 to {shape.num_cpus - 1}")
    need(~np.isin(op, list(Op)), "op", op, f"0 to {max(Op)}")
    need((vpn < 0) | (vpn >= shape.num_vpns), "vpn", vpn, f"0 to {shape.num_vpns - 1}")
    need(is_access & (repeat < 1), "repeat", repeat, "1 or more")
    need((op == Op.MMAP) & ((arg < ANON) | (arg >= shape.num_file_pages)), "arg", arg, f"{ANON} (anonymous) or a file page below {shape.num_file_pages}")
    need((op == Op.MMAP) & ((vma >= shape.num_vmas) | (repeat < 0)), "repeat", repeat, f"a VMA id below {shape.num_vmas}")
    need((op == Op.MPROTECT) & ((arg < 0) | (arg >= shape.num_vmas)), "arg", arg, f"a VMA id below {shape.num_vmas}")
    need((op == Op.GATHER_FINISH) & ((arg < 0) | (arg > 1)), "arg", arg, "0 or 1")
    need((op == Op.FILE_WRITE) & ((arg < 0) | (arg >= shape.num_file_pages)), "arg", arg, f"a file page below {shape.num_file_pages}")
    processes = (op == Op.SWITCH) | (op == Op.RECLAIM)
    need(processes & ((arg < IDLE) | (arg >= shape.num_processes)), "arg", arg, f"-1 or a process below {shape.num_processes}")


ALL_GROUPS = tuple(rollout.KERNELS)


@lru_cache(maxsize=8)
def _stepper(shape: MachineShape, num_lanes: int) -> Callable[..., MachineState]:
    return jax.jit(partial(rollout.advance, shape, ALL_GROUPS, num_lanes), donate_argnums=(1,))


class Machines:
    """A few machines of one shape, stepped by hand, one event each at a time."""

    def __init__(self, shape: MachineShape, params: Sequence[MachineParams], traces: Sequence[Trace]) -> None:
        use_all_cores()
        self.shape = shape
        states = [init_state(shape, p, trace) for p, trace in zip(params, traces, strict=True)]
        self.state: MachineState = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states)
        self.params = jax.tree.map(lambda *leaves: jnp.asarray(leaves, jnp.int32), *params)
        self.num_lanes = len(states)

    def step(self, rows: np.ndarray) -> None:
        """Execute one event per machine, ``int[num_machines, 5]``.

        Raises:
            EngineFault: a machine faulted.
        """
        rows = np.asarray(rows)
        check_rows(self.shape, rows)
        events = jnp.asarray(rollout.pack_events(rows[:, None, :]))
        lanes = jnp.arange(self.num_lanes, dtype=jnp.int32)
        self.state = _stepper(self.shape, self.num_lanes)(self.params, self.state, events, lanes, st.scalar(self.state, "cursor") + 1)
        fault = np.asarray(st.scalar(self.state, "fault"))
        if fault.any():
            lane = int(np.argmax(fault != 0))
            raise EngineFault(int(fault[lane]), lane, int(st.scalar(self.state, "cursor")[lane]))

    def host(self) -> list[MachineState]:
        """The states as NumPy arrays, one per machine."""
        host = jax.device_get(self.state)
        return [jax.tree.map(lambda leaf, i=lane: leaf[i], host) for lane in range(self.num_lanes)]


class Machine:
    """One machine, stepped by hand: scenarios and tests."""

    def __init__(self, shape: MachineShape, params: MachineParams, trace: Trace) -> None:
        self._machines = Machines(shape, [params], [trace])

    def step(self, row: Sequence[int]) -> None:
        """Execute one event row (cpu, op, vpn, arg, repeat)."""
        self._machines.step(np.asarray([row], np.int64))

    def snapshot(self) -> dict[str, Any]:
        """The whole state in the canonical form of :func:`lufjax.snapshot.snapshot`."""
        return snapshot(self._machines.shape, self._machines.host()[0])

    def counters(self) -> dict[str, Any]:
        """Counters and gauges as ints, histograms and ``received`` as lists."""
        return counters_of(self._machines.host()[0])

    def violations(self) -> dict[str, Any]:
        """``loads``, ``stores`` by class, and ``first`` (now, cpu, process, vpn) of each class."""
        return violations_of(self._machines.host()[0])


def counters_of(state: MachineState) -> dict[str, Any]:
    """Counters of one lane on the host."""
    counted: dict[str, Any] = {name: int(value) for name, value in zip(names.SCALARS, state.counters, strict=True)}
    counted |= {"events": int(st.scalar(state, "cursor"))} | {name: int(st.scalar(state, name)) for name in names.GAUGES}
    counted |= {name: row.tolist() for name, row in zip(names.HISTOGRAMS, state.histograms, strict=True)}
    return counted | {"received": state.received.tolist()}


def violations_of(state: MachineState) -> dict[str, Any]:
    """Violations of one lane on the host."""
    return {"loads": state.violations[:, 0].tolist(), "stores": state.violations[:, 1].tolist(), "first": state.first.tolist()}
