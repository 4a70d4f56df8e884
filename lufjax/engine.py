"""Lanes, blocks and devices: the only module that says jit, shard_map or device. Results do not depend on any of them.

``simulate`` runs many lanes; ``Machine`` runs one, an event at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Event, Lock
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lufjax import counters as names
from lufjax import rollout
from lufjax import state as st
from lufjax.events import ANON, FIRST_PAGE, IDLE, OP, Op
from lufjax.faults import EngineFault
from lufjax.params import MachineParams, MachineShape
from lufjax.policy import FlushPolicy
from lufjax.snapshot import snapshot
from lufjax.state import MachineState, bytes_of, init_state
from lufjax.trace import EMPTY_TRACE, Trace

LANES = "lanes"
BACKENDS = ("auto", "native", "xla")
NATIVE_BLOCK_LANES = 32
"""Lanes that a core has in memory at a time; it runs them one after the other."""
XLA_BLOCK_LANES = 1024
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
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:
        return


def bytes_per_lane(shape: MachineShape) -> int:
    """Bytes of state of one lane."""
    return bytes_of(init_state(shape, MachineParams(1, 0, 0, 0, 1, 0, 1, 0, 0, FlushPolicy()), EMPTY_TRACE))


def simulate(
    shape: MachineShape,
    params: MachineParams,
    traces: Sequence[Trace],
    trace_index: np.ndarray,
    *,
    sample_points: Sequence[int],
    block_lanes: int | None = None,
    num_devices: int | None = None,
    backend: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Run every lane through its trace.

    Args:
        shape: static sizes, the same for all lanes.
        params: every leaf ``int32[num_lanes]``.
        traces: the traces used; all have the same number of events.
        trace_index: ``int[num_lanes]``, which trace drives each lane.
        sample_points: numbers of events after which counters are read; increasing, the last one ends the run.
        block_lanes: lanes that are in memory and advance together, per device; chosen by the backend if None.
        num_devices: devices (``xla``) or cores (``native``) to use; all by default.
        backend: ``native``, ``xla`` or ``auto``: native where JAX runs on the CPU, XLA on an accelerator.
        progress: called with (lane events done, lane events in all), from one thread at a time.

    Raises:
        ValueError: an argument or a trace row is outside the machine.
        EngineFault: a lane faulted; nothing is returned.
    """
    use_all_cores()
    trace_index = np.asarray(trace_index, np.int32)
    _check_arguments(shape, traces, trace_index, sample_points)
    program = rollout.program_for({int(op) for trace in traces for op in np.unique(trace.events[:, OP])})
    runner = make_runner(resolve_backend(backend), shape, program, len(trace_index), block_lanes, num_devices)
    job = _Job(shape, params, list(traces), trace_index, list(sample_points), runner, progress)
    starts = range(0, len(trace_index), runner.block)
    if runner.workers == 1:
        return _join([job.block(start) for start in starts])
    with ThreadPoolExecutor(runner.workers) as pool:
        futures = [pool.submit(job.block, start) for start in starts]
        try:
            return _join([future.result() for future in futures])
        except BaseException:
            job.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def resolve_backend(backend: str) -> str:
    """``native`` or ``xla`` for ``auto``."""
    if backend not in BACKENDS:
        raise ValueError(f"engine.backend={backend}: allowed are {', '.join(BACKENDS)}")
    return backend if backend != "auto" else ("native" if jax.default_backend() == "cpu" else "xla")


class _Job:
    """One call of :func:`simulate`: what its blocks share."""

    def __init__(
        self, shape: MachineShape, params: MachineParams, traces: list[Trace], trace_index: np.ndarray, sample_points: list[int], runner: Runner,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.shape, self.traces, self.trace_index, self.points = shape, traces, trace_index, sample_points
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.int32), params)
        self.runner, self._progress = runner, progress
        self.events = runner.put_shared(rollout.pack_events(np.stack([trace.events for trace in traces])))
        self._done, self._lock, self.stopped = 0, Lock(), Event()

    def block(self, start: int) -> Samples:
        """Run lanes ``start .. start + block - 1``; lanes beyond the last are padding and never move."""
        num_lanes = len(self.trace_index)
        lanes = np.arange(start, start + self.runner.block)
        index, is_real = np.minimum(lanes, num_lanes - 1), lanes < num_lanes
        params = jax.tree.map(lambda leaf: self.runner.put(leaf[index]), self.params)
        state = self._initial(index)
        where = self.runner.put(self.trace_index[index])
        collected, before = [], 0
        for point in self.points:
            if self.stopped.is_set():
                break
            stop = self.runner.put(np.where(is_real, point, 0).astype(np.int32))
            state = self.runner.run(params, state, self.events, where, stop)
            state, counted = _take_counters(state)
            _check_faults(counted, index, point, is_real)
            collected.append(counted)
            self._report(int(is_real.sum()) * (point - before))
            before = point
        return _accumulate(collected, int(is_real.sum()))

    def _initial(self, index: np.ndarray) -> MachineState:
        """Initial states: one per trace used, then the few numbers that depend on the lane."""
        used, local = np.unique(self.trace_index[index], return_inverse=True)
        first = jax.tree.map(lambda leaf: int(leaf[index[0]]), self.params)
        bases = [init_state(self.shape, first, self.traces[i]) for i in used]
        state = jax.tree.map(lambda *leaves: np.stack(leaves)[local], *bases)
        bank, column = st.BANK_OF["free_count"]
        getattr(state, bank)[:, column] = self.params.frames_in_use[index]
        state.mm[:, :, st.NEXT_TRIM] = self.params.policy.trim_period[index][:, None]
        return jax.tree.map(self.runner.put, state)

    def _report(self, events: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += events
                self._progress(self._done, len(self.trace_index) * self.points[-1])


@dataclass(frozen=True)
class Runner:
    """A way to advance a block of lanes.

    Attributes:
        block: lanes of a block. workers: blocks that run at the same time.
        put: NumPy array with a lane axis -> array of the runner. put_shared: the same for the traces, which all lanes share.
        run: (params, state, events, trace_index, stop) -> state; the state passed in is used up.
    """

    block: int
    workers: int
    put: Callable[[np.ndarray], Any]
    put_shared: Callable[[np.ndarray], Any]
    run: Callable[..., MachineState]


def make_runner(
    backend: str, shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None
) -> Runner:  # fmt: skip
    """The runner of a resolved backend."""
    make = _native_runner if backend == "native" else _xla_runner
    return make(shape, program, num_lanes, block_lanes, num_devices)


def _native_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    from lufjax import native

    compiled = native.compile_for(shape, program)
    workers = max(1, num_devices or num_cores())
    block = min(block_lanes or NATIVE_BLOCK_LANES, max(1, -(-num_lanes // workers)))
    device = jax.devices("cpu")[0]

    def put(array: np.ndarray) -> jax.Array:
        return jax.device_put(np.array(array), device)

    return Runner(block, min(workers, -(-num_lanes // block)), put, put, partial(native.run_block, compiled))


def _xla_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    devices = tuple(jax.devices()[:num_devices])
    per_device = min(block_lanes or XLA_BLOCK_LANES, _ceil_power(-(-num_lanes // len(devices))))
    slots = min(per_device, max(64, per_device // SLOT_SHARE))
    mesh = Mesh(np.array(devices), (LANES,))
    lanes, everywhere = NamedSharding(mesh, PartitionSpec(LANES)), NamedSharding(mesh, PartitionSpec())
    return Runner(
        per_device * len(devices), 1, partial(jax.device_put, device=lanes), partial(jax.device_put, device=everywhere),
        xla_program(shape, program, slots, devices),
    )  # fmt: skip


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ceil_power(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


@lru_cache(maxsize=16)
def xla_program(shape: MachineShape, program: tuple[str, ...], slots: int, devices: tuple[Any, ...]) -> Callable[..., MachineState]:
    """The XLA program: lanes sharded over devices, state arrays updated in place."""
    mesh = Mesh(np.array(devices), (LANES,))
    lanes, everywhere = PartitionSpec(LANES), PartitionSpec()
    sharded = jax.shard_map(
        partial(rollout.advance, shape, program, slots), mesh=mesh, in_specs=(lanes, lanes, everywhere, lanes, lanes), out_specs=lanes,
        check_vma=False,
    )  # fmt: skip
    options = {"xla_cpu_copy_insertion_use_region_analysis": True} if devices[0].platform == "cpu" else None
    return jax.jit(sharded, donate_argnums=(1,), compiler_options=options)


def _take_counters(state: MachineState) -> tuple[MachineState, dict[str, Any]]:
    """Read and reset what was counted since the last sample, so that no device counter can wrap in a long run."""
    counting = {"counters": state.counters, "histograms": state.histograms, "received": state.received, "violations": state.violations}
    scalars = {name: st.scalar(state, name) for name in (*names.GAUGES, "fault", "cursor")}
    host = jax.tree.map(np.array, jax.device_get({**counting, **scalars, "first": state.first}))
    return state._replace(**jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), counting)), host


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
            name = Op(int(op[row])).name if op[row] in set(Op) else op[row]
            raise ValueError(f"event {row + 1} ({name}): {field}={values[row]}: allowed are {allowed}")

    need((cpu < 0) | (cpu >= shape.num_cpus), "cpu", cpu, f"0 to {shape.num_cpus - 1}")
    need(~np.isin(op, list(Op)), "op", op, f"0 to {max(Op)}")
    need((vpn < 0) | (vpn >= shape.num_vpns), "vpn", vpn, f"0 to {shape.num_vpns - 1}")
    need(is_access & (repeat < 1), "repeat", repeat, "1 or more")
    is_mmap, files = op == Op.MMAP, shape.num_file_pages
    need(is_mmap & ((arg < ANON) | (arg >= files)), "arg", arg, f"{ANON} (anonymous) or a file page below {files}")
    need((op == Op.MMAP) & ((vma >= shape.num_vmas) | (repeat < 0)), "repeat", repeat, f"a VMA id below {shape.num_vmas}")
    need((op == Op.MPROTECT) & ((arg < 0) | (arg >= shape.num_vmas)), "arg", arg, f"a VMA id below {shape.num_vmas}")
    need((op == Op.GATHER_FINISH) & ((arg < 0) | (arg > 1)), "arg", arg, "0 or 1")
    need((op == Op.FILE_WRITE) & ((arg < 0) | (arg >= shape.num_file_pages)), "arg", arg, f"a file page below {shape.num_file_pages}")
    processes = (op == Op.SWITCH) | (op == Op.RECLAIM)
    need(processes & ((arg < IDLE) | (arg >= shape.num_processes)), "arg", arg, f"-1 or a process below {shape.num_processes}")


class Machines:
    """A few machines of one shape, stepped by hand, one event each at a time."""

    def __init__(self, shape: MachineShape, params: Sequence[MachineParams], traces: Sequence[Trace], *, backend: str = "auto") -> None:
        use_all_cores()
        self.shape, self.num_lanes = shape, len(params)
        self._runner = make_runner(resolve_backend(backend), shape, tuple(rollout.KERNELS), self.num_lanes, self.num_lanes, 1)
        states = [init_state(shape, p, trace) for p, trace in zip(params, traces, strict=True)]
        pad = range(self.num_lanes, self._runner.block)
        self._lanes = np.array([*range(self.num_lanes), *(0 for _ in pad)], np.int32)
        self.state: MachineState = jax.tree.map(lambda *leaves: self._runner.put(np.stack(leaves)[self._lanes]), *states)
        self._history = np.zeros((self.num_lanes, 0, 4), np.int32)
        self._params = jax.tree.map(lambda *leaves: self._runner.put(np.array(leaves, np.int32)[self._lanes]), *params)

    def step(self, rows: np.ndarray) -> None:
        """Execute one event per machine, ``int[num_machines, 5]``.

        Raises:
            EngineFault: a machine faulted.
        """
        rows = np.asarray(rows)
        check_rows(self.shape, rows)
        cursor = np.array(st.scalar(self.state, "cursor"))
        self._history = np.concatenate([self._history, rollout.pack_events(rows[:, None, :])], axis=1)
        events, stop = self._runner.put_shared(self._history), self._runner.put(cursor + 1)
        self.state = self._runner.run(self._params, self.state, events, self._runner.put(self._lanes), stop)
        fault = np.array(st.scalar(self.state, "fault"))
        if fault.any():
            lane = int(np.argmax(fault != 0))
            raise EngineFault(int(fault[lane]), lane, int(st.scalar(self.state, "cursor")[lane]))

    def host(self) -> list[MachineState]:
        """The states as NumPy arrays, one per machine."""
        host = jax.tree.map(np.array, jax.device_get(self.state))
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
