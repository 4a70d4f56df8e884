"""One run from config to report: plan, check that it fits, simulate what is not done yet, write results and figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lufjax import engine, provenance
from lufjax.backends.runners import device_facts
from lufjax.counters import HISTOGRAMS
from lufjax.faults import EngineFault
from lufjax.params import MachineParams
from lufjax.policy import FlushPolicy
from lufjax.progress import Progress
from lufjax.resolve import identity, to_mapping
from lufjax.results import dataset
from lufjax.results.store import COUNTERS, Store
from lufjax.settings import RunConfig
from lufjax.sweeps import capacity, run_id
from lufjax.sweeps.grid import Group, plan, strips
from lufjax.sweeps.traces import TraceSource, fit

COMPILED_AHEAD = 2
"""Programs that wait to be run, at most."""


def run(config: RunConfig, overrides: Sequence[str] = ()) -> Path:
    """Simulate every lane that is not done, and write the run's directory.

    Returns:
        The run directory.

    Raises:
        ValueError: the config cannot be run; nothing is written then.
        EngineFault: a lane faulted; finished chunks are kept, no results are written.
    """
    began, started = provenance.now(), time.monotonic()
    engine.use_all_cores()
    capacity.refuse_long_traces(config, capacity.memory_limit())
    source = TraceSource(config.workloads, config.num_events, config.engine.trace_cache_mib * 2**20)
    groups = plan(config, source)
    needed = capacity.need(config, groups, engine.bytes_per_lane)
    capacity.refuse_if_too_large(config, needed, capacity.memory_limit())
    digest = provenance.run_digest(identity(config), [group.trace_digest for group in groups])
    run_dir = run_id.choose_directory(config, digest)
    _announce(config, groups, needed, run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with run_id.locked(run_dir):
        store = _open_store(config, groups, run_dir, digest)
        simulate(config, groups, source, store)
        device = device_facts(config.engine.backend)
        facts = provenance.describe(to_mapping(config), run_dir.name, list(overrides), began, time.monotonic() - started)
        facts |= {"device": device["kind"], "backend": device["platform"]}
        finish(config, groups, store, run_dir, facts)
    return run_dir


def simulate(config: RunConfig, groups: Sequence[Group], source: TraceSource, store: Store) -> None:
    """Run every chunk that is not marked done, and mark it."""
    todo = [(g, int(c)) for g in range(len(groups)) for c in np.flatnonzero(~store.done(g))]
    total = config.num_events * sum(group.num_lanes for group in groups)
    left = config.num_events * sum(store.chunk_slice(g, c).stop - store.chunk_slice(g, c).start for g, c in todo)
    progress = Progress(total, total - left)
    done = total - left
    programs = _Programs(config, [groups[g] for g in dict.fromkeys(g for g, _ in todo)])
    try:
        for g, c in todo:
            programs.wait_for(groups[g])
            lanes = store.chunk_slice(g, c)
            events = config.num_events * (lanes.stop - lanes.start)
            values = simulate_lanes(config, groups[g], source, lanes, lambda share, at=done, n=events: progress.at(at + int(n * share)))
            store.write(g, c, values)
            done += events
            progress.at(done)
    finally:
        programs.close()
        progress.close()


class _Programs:
    """Compiles the programs of groups, in this order, on another core than that which waits for the first of them or simulates with it."""

    def __init__(self, config: RunConfig, groups: Sequence[Group]) -> None:
        self._backend, self._groups, self._pool = config.engine.backend, groups, ThreadPoolExecutor(1)
        self._compiled: list[Future[None]] = []

    def wait_for(self, group: Group) -> None:
        """Return when the program of a group is there; those of the groups behind it are begun."""
        number = next(n for n, other in enumerate(self._groups) if other is group)
        for later in self._groups[len(self._compiled) : number + 1 + COMPILED_AHEAD]:
            self._compiled.append(self._pool.submit(engine.compile_ahead, later.shape, later.params, later.ops, self._backend))
        self._compiled[number].result()

    def close(self) -> None:
        """Begin no other."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def simulate_lanes(config: RunConfig, group: Group, source: TraceSource, lanes: slice, report: Any) -> dict[str, np.ndarray]:
    """Simulate some lanes of a group; returns the arrays of :func:`lufjax.results.store.array_specs`."""
    used, local = np.unique(group.trace_index[lanes], return_inverse=True)
    traces = [fit(source.get(group.trace_keys[t]), group.shape) for t in used]
    leaves = [leaf[lanes] for leaf in group.params[:-1]]
    params = MachineParams(*leaves, policy=FlushPolicy(*(leaf[lanes] for leaf in group.params.policy)))
    try:
        samples = engine.simulate(
            group.shape,
            params,
            traces,
            local.ravel().astype(np.int32),
            sample_points=config.sample_points,
            block_lanes=config.engine.block_lanes,
            num_devices=config.engine.num_devices,
            backend=config.engine.backend,
            strip=strips(config, [group.trace_keys[t] for t in used]),
            ops=group.ops,
            progress=lambda events, of: report(events / of),
        )
    except EngineFault as fault:
        raise SweepFault(f"{fault} ({point_name(config, group, lanes.start + fault.lane)}); no results are written") from fault
    except ValueError as error:
        raise RuntimeError("the engine refused a plan that was checked before; this is a mistake in lufjax, not in the config") from error
    return {
        "counters": np.stack([samples.counters[name] for name in COUNTERS], axis=-1),
        "histograms": np.stack([samples.histograms[name] for name in HISTOGRAMS], axis=-2),
        "received": samples.received,
        "violations": samples.violations,
        "first_violation": samples.first_violation,
    }


class SweepFault(RuntimeError):
    """A lane of a run faulted; the message names its point."""


def point_name(config: RunConfig, group: Group, lane: int) -> str:
    """Coordinates of a lane in words."""
    w, p, c, m, s = group.index[lane]
    return (
        f"workload={list(config.workloads)[w]} policy={list(config.policies)[p]} num_cpus={config.num_cpus[c]} "
        f"pressure={config.pressures[m]} seed={config.seeds[s]}"
    )


def finish(config: RunConfig, groups: Sequence[Group], store: Store, run_dir: Path, facts: dict[str, Any]) -> None:
    """Write ``results.nc``, then the figures and the report."""
    frames = {number: np.asarray(group.params.frames_in_use) for number, group in enumerate(groups)}
    footprints = {number: group.footprints for number, group in enumerate(groups)}
    results = dataset.assemble(config, store, frames, footprints)
    dataset.write_netcdf(dataset.describe(results, facts, config), run_dir / run_id.RESULTS)
    if config.figures:
        from lufjax.results import plots, report

        plots.plot_run(run_dir, None)
        report.write_report(run_dir)


def _open_store(config: RunConfig, groups: Sequence[Group], run_dir: Path, digest: str) -> Store:
    path = run_dir / run_id.STORE
    if Store.read_attrs(path) is not None:
        return Store(path)
    run_id.write_config(run_dir, to_mapping(config))
    return Store.create(path, groups, config.engine.chunk_lanes, len(config.sample_points), {"digest": digest})


def _announce(config: RunConfig, groups: Sequence[Group], needed: capacity.Need, run_dir: Path) -> None:
    print(
        f"lufjax: {config.num_lanes} lanes of {config.num_events} events in {len(groups)} compiled shapes",
        f"lufjax: {needed.smallest_lane} to {needed.largest_lane} bytes per lane, peak host memory {needed.total // capacity.MIB} MiB",
        f"lufjax: {'going on with' if run_dir.exists() else 'writing'} {run_dir}",
        sep="\n",
        file=sys.stderr,
        flush=True,
    )
