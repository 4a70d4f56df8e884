"""Axes -> lanes: which lane is which point, grouped by compiled shape, with the traced numbers of each lane.

Within a group lanes are ordered by policy first, because blocks of one policy run fastest; results do not depend on the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import isqrt

import numpy as np

from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import CHOICES, FlushPolicy, from_words
from lufjax.settings import MachineConfig, RunConfig
from lufjax.sweeps.traces import TraceKey, TraceSizes, TraceSource, measure

DIMS = ("workload", "policy", "num_cpus", "pressure", "seed")
"""Dimensions of results, and columns of ``Group.index``."""
PAGE_KIB = 4
TICKS = CHOICES["gather_flush"].index("ticks")


@dataclass(frozen=True)
class Group:
    """Lanes that share one compiled shape.

    Attributes:
        index: ``int32[num_lanes, 5]``, position of each lane on each axis of :data:`DIMS`.
        params: leaves are ``int32[num_lanes]``.
        trace_keys: the different traces of the group.
        trace_index: ``int32[num_lanes]`` into ``trace_keys``.
        ops: operations of the events of all traces.
        footprints: ``int64[num_lanes]``, pages that the trace of each lane touches.
        trace_bytes: the largest trace.
        trace_digest: hash of all traces of the group.
    """

    shape: MachineShape
    index: np.ndarray
    params: MachineParams
    trace_keys: tuple[TraceKey, ...]
    trace_index: np.ndarray
    ops: frozenset[int]
    footprints: np.ndarray
    trace_bytes: int
    trace_digest: str

    @property
    def num_lanes(self) -> int:
        return len(self.index)


def plan(config: RunConfig, source: TraceSource) -> list[Group]:
    """Lay out every lane of a run.

    Raises:
        ValueError: a point that no machine can run, named with the field to change.
    """
    policies = [from_words(words) for words in config.policies.values()]
    sizes: dict[TraceKey, TraceSizes] = {}
    for workload, num_cpus, seed in product(config.workloads, config.num_cpus, config.seeds):
        key = TraceKey(workload, num_cpus, seed)
        sizes[key] = measure(source.get(key))
    groups = []
    for cpus, workloads in _partition(config):
        index = _lane_index(config, cpus, workloads)
        groups.append(_group(config, index, policies, sizes))
    return groups


def strips(config: RunConfig, keys: Sequence[TraceKey]) -> bool:
    """Whether a run with these traces strips them: recordings gain by it, synthetic workloads have a page fault every few accesses."""
    return config.engine.strip and any(config.workloads[key.workload]["name"] == "replay" for key in keys)


def _partition(config: RunConfig) -> list[tuple[list[int], list[int]]]:
    """Positions on the CPU axis and on the workload axis of each group."""
    order = np.argsort(config.num_cpus, kind="stable")
    bounds = config.engine.cpu_groups or config.num_cpus
    by_bound: dict[int, list[int]] = {}
    for position in order:
        bound = min(b for b in bounds if b >= config.num_cpus[position])
        by_bound.setdefault(bound, []).append(int(position))
    each = range(len(config.workloads))
    workloads = [[w] for w in each] if config.engine.split_workloads else [list(each)]
    return [(cpus, chosen) for cpus in by_bound.values() for chosen in workloads]


def _lane_index(config: RunConfig, cpus: Sequence[int], workloads: Sequence[int]) -> np.ndarray:
    pressures, seeds = range(len(config.pressures)), range(len(config.seeds))
    axes = (range(len(config.policies)), workloads, cpus, pressures, seeds)
    lanes = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], axis=1).astype(np.int32)
    return lanes[:, [1, 0, 2, 3, 4]]


def _group(config: RunConfig, index: np.ndarray, policies: Sequence[FlushPolicy], sizes: dict[TraceKey, TraceSizes]) -> Group:
    names = list(config.workloads)
    triples, trace_index = np.unique(index[:, [0, 2, 4]], axis=0, return_inverse=True)
    keys = tuple(TraceKey(names[w], config.num_cpus[c], config.seeds[s]) for w, c, s in triples)
    per_trace = [[memory(config, key, sizes[key].footprint, pressure) for pressure in config.pressures] for key in keys]
    table = np.array(per_trace, dtype=np.int32)
    rows = table[trace_index.ravel(), index[:, DIMS.index("pressure")]]
    records = np.array(policies, dtype=np.int32)[index[:, 1]]
    machine, count = config.machine, len(index)
    params = MachineParams(
        *(np.ascontiguousarray(rows[:, column]) for column in range(6)),
        fast_frames=np.ascontiguousarray(rows[:, 6]),
        reclaim_batch=np.full(count, machine.reclaim_batch, np.int32),
        kswapd_cpu=np.full(count, machine.kswapd_cpu, np.int32),
        load_mode=np.full(count, int(machine.drive == "load"), np.int32),
        policy=FlushPolicy(*(np.ascontiguousarray(records[:, column]) for column in range(records.shape[1]))),
    )
    used = [sizes[key] for key in keys]
    shape = _shape(config, max(key.num_cpus for key in keys), used, params)
    digest = hashlib.sha256("".join(size.digest for size in used).encode()).hexdigest()
    trace_index = trace_index.ravel().astype(np.int32)
    footprints = np.array([size.footprint for size in used])[trace_index]
    ops = frozenset().union(*(size.ops for size in used))
    return Group(shape, index, params, keys, trace_index, ops, footprints, max(size.num_bytes for size in used), digest)


def memory(config: RunConfig, key: TraceKey, footprint: int, pressure: float) -> tuple[int, int, int, int, int, int, int]:
    """Frames in use, the three watermarks, batch and high mark of the per-CPU lists, and fast frames (rules: ``conf/machine/default.yaml``)."""
    machine = config.machine
    frames = max(1, int(footprint / Fraction(str(pressure))))
    fast = frames - frames * machine.slow_percent // 100
    low, high = watermarks(machine, fast)[1:]
    most = max(1, min(fast // (machine.pcp_share * key.num_cpus), machine.pcp_batch * machine.pcp_high_batches))
    least = max(4 * machine.reclaim_batch, 4 * key.num_cpus) if machine.drive == "load" else 1
    if fast < least or fast <= high + most * key.num_cpus:
        least = max(least, 16)
        most_pressure = footprint * (100 - machine.slow_percent) / (100 * least)
        kind = "fast frames" if machine.slow_percent else "frames"
        raise ValueError(
            f"pressure={pressure}: workload {key.workload} touches {footprint} pages on {key.num_cpus} CPUs, which leaves {fast} {kind}; "
            f"allowed are pressures up to {most_pressure:.3g} (at least {least} {kind}: 4 per CPU, 4 machine.reclaim_batch, "
            "more than the watermarks), or a larger workload"
        )
    wmark_min = watermarks(machine, fast)[0]
    return frames, wmark_min, low, high, max(1, min(most // machine.pcp_high_batches, machine.pcp_batch)), most, fast


def watermarks(machine: MachineConfig, frames: int) -> tuple[int, int, int]:
    """Watermarks min, low and high in frames."""
    largest = max(1, frames // 16)
    least = machine.min_free_frames or min(largest, max(1, isqrt(16 * frames * PAGE_KIB) // PAGE_KIB))
    linux_gap = max(least // 4, frames * machine.watermark_scale_factor // 10000)
    gap = max(1, linux_gap, min(largest, machine.reclaim_batch))
    return least, least + gap, least + 2 * gap


def _shape(config: RunConfig, num_cpus: int, used: Sequence[TraceSizes], params: MachineParams) -> MachineShape:
    machine = config.machine
    if config.engine.cpu_groups:
        num_cpus = min(bound for bound in config.engine.cpu_groups if bound >= num_cpus)
    ticks = params.policy.gather_flush == TICKS
    quarantine = int(params.policy.quarantine_slots[ticks].max()) if ticks.any() else 1
    return MachineShape(
        num_cpus=num_cpus,
        num_processes=max(machine.num_processes, *(size.num_processes for size in used)),
        num_vpns=max(machine.num_vpns, *(size.num_vpns for size in used)),
        num_frames=max(machine.num_frames, int(params.frames_in_use.max())),
        num_vmas=max(size.num_vmas for size in used),
        num_file_pages=max(size.num_file_pages for size in used),
        num_anon=_enough(machine.num_anon, max(size.num_anon for size in used), "num_anon"),
        l1=TlbGeometry(machine.l1.sets, machine.l1.ways, machine.l1.index, machine.l1.replacement),
        l2=TlbGeometry(machine.l2.sets, machine.l2.ways, machine.l2.index, machine.l2.replacement),
        rmap_slots=_enough(machine.rmap_slots, max(size.rmap_slots for size in used), "rmap_slots"),
        gather_slots=_enough(machine.gather_slots, max(size.gather_slots for size in used), "gather_slots"),
        batch_slots=machine.reclaim_batch,
        pcp_slots=max(int(params.pcp_high.max()) + 1, int(params.pcp_batch.max())),
        quarantine_slots=max(1, quarantine),
    )


def _enough(given: int | None, needed: int, field: str) -> int:
    if given is not None and given < needed:
        raise ValueError(f"machine.{field}={given}: the traces of this run need {needed}; allowed are null (as needed), {needed} or more")
    return given if given is not None else max(1, needed)
