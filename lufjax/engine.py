"""Lanes through their traces, and what they counted: what the sweep, the scenarios and the tests call.

``simulate`` runs many lanes; ``Machine`` and ``Machines`` run a few, an event at a time. ``runners`` knows devices; results do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

import jax
import numpy as np

from lufjax import counters as names
from lufjax import state as st
from lufjax.backends import rollout
from lufjax.backends.runners import (
    BACKENDS,
    NATIVE_BLOCK_LANES,
    Runner,
    device_facts,
    make_runner,
    num_cores,
    resolve_backend,
    use_all_cores,
    xla_program,
)
from lufjax.event_check import check_rows
from lufjax.faults import EngineFault
from lufjax.machines import Machine, Machines, counters_of, violations_of
from lufjax.params import MachineParams, MachineShape, has_slow
from lufjax.policy import FlushPolicy
from lufjax.state import MachineState, bytes_of, init_state
from lufjax.stripping import write_records
from lufjax.trace import EMPTY_TRACE, Trace, ops_of

__all__ = [
    "BACKENDS", "NATIVE_BLOCK_LANES", "Machine", "Machines", "Runner", "Samples", "bytes_per_lane", "check_rows", "compile_ahead", "counters_of",
    "device_facts", "make_runner", "num_cores", "resolve_backend", "simulate", "start_facts", "use_all_cores", "violations_of", "xla_program",
]  # fmt: skip


def start_facts(params: MachineParams, trace_index: np.ndarray) -> np.ndarray:
    """All that the state in which a lane starts depends on: ``int[lanes, facts]``."""
    return np.stack([trace_index, params.frames_in_use, params.fast_frames, params.policy.trim_period], -1)


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


def bytes_per_lane(shape: MachineShape) -> int:
    """Bytes of state of one lane."""
    return bytes_of(init_state(shape, MachineParams(1, 0, 0, 0, 1, 0, 1, 0, 0, 1, FlushPolicy()), EMPTY_TRACE))


def program_for(params: MachineParams, ops: Set[int]) -> tuple[str, ...]:
    """Groups of kernels that these machines can reach by these operations."""
    return rollout.program_for(ops, has_slow=has_slow(params))


def compile_ahead(shape: MachineShape, params: MachineParams, ops: Set[int], backend: str) -> None:
    """Compile what :func:`simulate` runs for these arguments, so that it is there; but for ``native``, programs are compiled when first run."""
    if resolve_backend(backend) == "native":
        from lufjax.backends import native

        native.compile_for(shape, program_for(params, ops))


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
    strip: bool = False,
    ops: Set[int] | None = None,
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
        num_devices: devices (``xla``) or cores (``native``) to use; all by default. ``cuda`` has one.
        backend: ``native``, ``cuda``, ``xla`` or ``auto``: cuda where there is such a device, else native where JAX runs on the CPU, else XLA.
        strip: pass over accesses that provably change nothing but sums (docs/MODEL.md section 12); the result is the same.
        ops: operations to compile in, at least those of the traces, which are the default; the result is the same.
        progress: called with (lane events done, lane events in all), from one thread at a time.

    Raises:
        ValueError: an argument or a trace row is outside the machine.
        EngineFault: a lane faulted; nothing is returned.
    """
    use_all_cores()
    trace_index = np.asarray(trace_index, np.int32)
    _check_arguments(shape, traces, trace_index, sample_points)
    program = program_for(params, ops_of(traces) if ops is None else ops)
    runner = make_runner(resolve_backend(backend), shape, program, len(trace_index), block_lanes, num_devices)
    job = _Job(shape, params, list(traces), trace_index, list(sample_points), runner, strip, progress)
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


def pack_traces(shape: MachineShape, traces: Sequence[Trace], points: Sequence[int] | None) -> np.ndarray:
    """``int32[num_traces, rows, 4]``: packed events, behind them their records of what can be passed over between ``points`` (None: nothing is)."""
    num_events = traces[0].num_events
    packed = np.zeros((len(traces), num_events if points is None else 2 * num_events + 1, 4), np.int32)
    for trace, part in zip(traces, packed, strict=True):
        part[:num_events] = rollout.pack_events(trace.events)
        if points is None:
            continue
        write_records(part[num_events:], trace.events, trace.num_vpns, shape.l1, points)
        begins = np.flatnonzero(part[num_events:-1, 1])
        part[begins, 2] = num_events + begins
    return packed



class _Job:
    """One call of :func:`simulate`: what its blocks share."""

    def __init__(
        self, shape: MachineShape, params: MachineParams, traces: list[Trace], trace_index: np.ndarray, sample_points: list[int], runner: Runner,
        strip: bool, progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.shape, self.traces, self.trace_index, self.points = shape, traces, trace_index, sample_points
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.int32), params)
        self.runner, self._progress = runner, progress
        self.events = runner.put_shared(pack_traces(shape, traces, self.points if strip else None))
        self._done, self._lock, self.stopped = 0, Lock(), Event()

    def block(self, start: int) -> Samples:
        """Run lanes ``start .. start + block - 1``; lanes beyond the last are padding and never move."""
        num_lanes = len(self.trace_index)
        lanes = np.arange(start, start + self.runner.block)
        index, is_real = np.minimum(lanes, num_lanes - 1), lanes < num_lanes
        params = jax.tree.map(lambda leaf: self.runner.put(leaf[index]), self.params)
        distinct, which = self._distinct(index)
        state = self.runner.start(params, self._initial(distinct), which)
        where = self.runner.put(self.trace_index[index])
        collected, before = [], 0
        for point in self.points:
            if self.stopped.is_set():
                break
            stop = self.runner.put(np.where(is_real, point, 0).astype(np.int32))
            state = self.runner.run(params, state, self.events, where, stop)
            state, counted = self.runner.take(state)
            _check_faults(counted, index, point, is_real)
            collected.append(counted)
            self._report(int(is_real.sum()) * (point - before))
            before = point
        return _accumulate(collected, int(is_real.sum()))

    def _distinct(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lanes of which no two start in the same state, and for each lane of ``index`` the position of the one that starts as it does."""
        facts = start_facts(self.params, self.trace_index)[index]
        _, first, which = np.unique(facts, axis=0, return_index=True, return_inverse=True)
        return index[first], which.reshape(-1)

    def _initial(self, index: np.ndarray) -> MachineState:
        """Initial states: one per trace used, then the few numbers that depend on the lane."""
        used, local = np.unique(self.trace_index[index], return_inverse=True)
        first = jax.tree.map(lambda leaf: int(leaf[index[0]]), self.params)
        bases = [init_state(self.shape, first, self.traces[i]) for i in used]
        state = jax.tree.map(lambda *leaves: np.stack(leaves)[local], *bases)
        for name, value in st.free_frames(self.params).items():
            bank, column = st.BANK_OF[name]
            getattr(state, bank)[:, column] = value[index]
        state.frame[:, :, st.ON_FREE] = np.arange(self.shape.num_frames) < self.params.fast_frames[index][:, None]
        state.mm[:, :, st.NEXT_TRIM] = self.params.policy.trim_period[index][:, None]
        return state

    def _report(self, events: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += events
                self._progress(self._done, len(self.trace_index) * self.points[-1])


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
