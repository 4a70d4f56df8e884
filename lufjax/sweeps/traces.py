"""Traces of a run: built when asked for, measured, and fitted to the compiled sizes of a group."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lufjax.events import ANON, ARG, CPU, IDLE, OP, VPN, Op
from lufjax.params import MachineShape
from lufjax.trace import Trace


class TraceKey(NamedTuple):
    """What a trace depends on within one run: never on the policy or on memory."""

    workload: str
    num_cpus: int
    seed: int


@dataclass(frozen=True)
class TraceSizes:
    """What a trace needs of the machine.

    Attributes:
        ops: operations of its events.
        footprint: different pages that it touches: file pages, and anonymous pages by address.
        num_bytes: size of its arrays.
        digest: hash of everything in it that a machine sees.
    """

    num_processes: int
    num_vpns: int
    num_vmas: int
    num_file_pages: int
    num_anon: int
    rmap_slots: int
    gather_slots: int
    ops: frozenset[int]
    footprint: int
    num_bytes: int
    digest: str


def build_trace(options: Mapping[str, Any], num_cpus: int, seed: int, num_events: int) -> Trace:
    """Build one trace from the options of a workload preset, ``name`` among them."""
    from lufjax import workloads

    if "name" not in options:
        raise ValueError(f"workload.name: missing; allowed are {', '.join(workloads.WORKLOADS)}")
    rest = {key: value for key, value in options.items() if key != "name"}
    return workloads.build(options["name"], rest, num_cpus=num_cpus, seed=seed, num_events=num_events)


class TraceSource:
    """Builds traces by key and keeps the most recent ones, up to a number of bytes."""

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Any]],
        num_events: int,
        cache_bytes: int,
        build: Callable[[Mapping[str, Any], int, int, int], Trace] = build_trace,
    ) -> None:
        self._options, self._num_events, self._room, self._build = options, num_events, cache_bytes, build
        self._kept: OrderedDict[TraceKey, Trace] = OrderedDict()
        self._kept_bytes = 0

    def get(self, key: TraceKey) -> Trace:
        """The trace of a key; the same bytes each time."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        trace = self._build(self._options[key.workload], key.num_cpus, key.seed, self._num_events)
        if trace.num_events != self._num_events:
            raise ValueError(f"num_events={self._num_events}: workload {key.workload} gives {trace.num_events}; allowed are at most those")
        self._kept[key] = trace
        self._kept_bytes += trace_bytes(trace)
        while self._kept_bytes > self._room and len(self._kept) > 1:
            self._kept_bytes -= trace_bytes(self._kept.popitem(last=False)[1])
        return trace


def trace_bytes(trace: Trace) -> int:
    """Host memory of the arrays of a trace."""
    return sum(array.nbytes for array in (trace.events, trace.vmas, trace.page_vma, trace.page_backing, trace.loaded))


def measure(trace: Trace) -> TraceSizes:
    """What a trace needs of the machine."""
    return TraceSizes(
        num_processes=trace.num_processes,
        num_vpns=trace.num_vpns,
        num_vmas=len(trace.vmas),
        num_file_pages=trace.num_file_pages,
        num_anon=trace.num_anon,
        rmap_slots=int(trace.attrs["rmap_slots"]),
        gather_slots=int(trace.attrs["gather_slots"]),
        ops=trace.ops,
        footprint=footprint(trace),
        num_bytes=trace_bytes(trace),
        digest=digest(trace),
    )


def footprint(trace: Trace) -> int:
    """Different pages that a trace loads or stores: file pages by backing, anonymous ones by process and address.

    Coarser: a private file page that is stored to counts once although its copy is another page.
    """
    process = running(trace)
    op, vpn = trace.events[:, OP], trace.events[:, VPN].astype(np.int64)
    access = ((op == Op.LOAD) | (op == Op.STORE)) & (process >= 0)
    maps = (op == Op.MMAP) & (process >= 0)
    page = process.astype(np.int64) * trace.num_vpns + vpn
    touched = np.zeros(trace.num_processes * trace.num_vpns, bool)
    touched[page[access]] = True
    at_start = (trace.page_vma >= 0).ravel()
    start_file = at_start & (trace.page_backing.ravel() != ANON)
    backings = [trace.page_backing.ravel()[start_file & touched]]
    anon = at_start & ~start_file
    file_maps = maps & (trace.events[:, ARG] != ANON)
    backings.append(trace.events[file_maps, ARG][touched[page[file_maps]]])
    anon[page[maps & ~file_maps]] = True
    return len(np.unique(np.concatenate(backings))) + int((anon & touched).sum())


def running(trace: Trace) -> np.ndarray:
    """The process that runs on the CPU of each event, ``int32[num_events]``; -1 where none is loaded."""
    cpu, op, arg = trace.events[:, CPU], trace.events[:, OP], trace.events[:, ARG]
    process = trace.loaded[cpu].copy()
    switches = (op == Op.SWITCH) & (arg != IDLE)
    for c in np.unique(cpu[switches]):
        rows = np.flatnonzero(cpu == c)
        last = np.maximum.accumulate(np.where(switches[rows], np.arange(len(rows)), -1))
        process[rows[last >= 0]] = arg[rows][last[last >= 0]]
    return process


def fit(trace: Trace, shape: MachineShape) -> Trace:
    """Pad a trace to the sizes of a shape: more CPUs (idle), processes, pages (unmapped), VMA ids and backings. Nothing it does changes."""
    pages = ((0, shape.num_processes - trace.num_processes), (0, shape.num_vpns - trace.num_vpns))
    return replace(
        trace,
        vmas=np.pad(trace.vmas, (0, shape.num_vmas - len(trace.vmas))),
        page_vma=np.pad(trace.page_vma, pages, constant_values=-1),
        page_backing=np.pad(trace.page_backing, pages, constant_values=-1),
        loaded=np.pad(trace.loaded, (0, shape.num_cpus - trace.num_cpus), constant_values=IDLE),
        num_file_pages=shape.num_file_pages,
        num_anon=shape.num_anon,
    )


def digest(trace: Trace) -> str:
    """A hash of everything in a trace that a machine sees."""
    found = hashlib.sha256()
    for array in (trace.events, trace.vmas, trace.page_vma, trace.page_backing, trace.loaded):
        found.update(np.ascontiguousarray(array).tobytes())
    found.update(f"{trace.num_file_pages} {trace.num_anon}".encode())
    return found.hexdigest()
