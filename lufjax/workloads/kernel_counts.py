"""The modes of the kernel measurement that the ``linux`` policy is calibrated on.

One process. CPUs ``0 .. actors-1`` run the mode, the next ``busy`` spin on a page of their own, the next ``sleepers`` ran
once and are idle with the mm loaded lazily, the rest never ran the process. All in anonymous memory but the two ``ro_`` modes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from lufjax.events import IDLE, Op
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import GATHER_SLOTS, access_rows, gather_calls, in_order, mmap_calls, ragged_arange, rows_of
from lufjax.workloads.interleave import Script, rows_between_ticks, rows_needed
from lufjax.workloads.layout import ANON_MEMORY, READ_ONLY_ANON, READ_ONLY_FILE, Layout, Workload, run_scripts
from lufjax.workloads.options import REPEAT, SKEW, Option

_PLACEMENT = {
    "actors": Option(1, "CPUs that run the mode", 1, 64),
    "busy": Option(-1, "CPUs of the same process that spin in user space; -1: all that are neither actors nor sleepers", -1, 63),
    "sleepers": Option(0, "CPUs that ran the process once and sleep", 0, 63),
    "repeat": REPEAT,
    "tick_period": Option(0, "events between two timer ticks of a CPU; 0 for none", 0, 2**30),
    "skew": SKEW,
}
_CALL = _PLACEMENT | {"k": Option(8, "pages of one call", 1, 4096)}
OPTIONS = {
    "ro_slice": _PLACEMENT | {"file_pages": Option(4096, "pages of the file; each actor cycles over its own slice", 1)},
    "ro_rand": _PLACEMENT | {"file_pages": Option(4096, "pages of the file; each access takes a random one", 1)},
    "munmap": _CALL | {"free_tables": Option(False, "each munmap frees a page table")},
    "mprotect": _CALL,
    "madvise": _CALL
    | {"concurrent": Option(False, "the calls of all actors overlap: no call finishes while it is the only one open")},
}

Cycles = tuple[np.ndarray, np.ndarray]
"""Rows of one actor and the turn of each."""


def build(mode: str, options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace of one mode; options as in ``OPTIONS[mode]``."""
    actors, sleepers = options["actors"], options["sleepers"]
    busy = num_cpus - actors - sleepers if options["busy"] < 0 else options["busy"]
    if busy < 0 or actors + busy + sleepers > num_cpus:
        raise ValueError(f"workload.actors={actors}: actors + busy + sleepers must be at most num_cpus={num_cpus}")
    layout = Layout(1)
    own_page = [layout.place(0, 1, layout.vma(ANON_MEMORY)) for _ in range(actors + busy + sleepers)]
    is_concurrent = options.get("concurrent", False)
    longest_turn = 2 * options.get("k", 0) + 2
    total_rows = rows_between_ticks(num_events, options["tick_period"], num_cpus)
    num_rows = rows_needed(total_rows, (1 if is_concurrent else actors) + busy, options["skew"], longest_turn)
    if is_concurrent:
        scripts = [_overlapping_madvise(options, layout, draws, num_rows)]
    else:
        make = partial(_MODES[mode], options, layout, draws, num_rows)
        scripts = [_script(cpu, make(cpu)) for cpu in range(actors)]
    spin = access_rows(np.zeros(num_rows, dtype=bool), 0, options["repeat"])
    for cpu in range(actors, actors + busy):
        spin[:, 1] = own_page[cpu]
        scripts.append(Script(cpu, spin.copy()))
    for cpu in range(actors + busy, actors + busy + sleepers):
        scripts.append(Script(cpu, np.concatenate([access_rows(np.zeros(1, dtype=bool), own_page[cpu]), rows_of(int(Op.SWITCH), 0, IDLE)])))
    events = run_scripts(
        scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"]
    )
    loaded = np.where(np.arange(num_cpus) < actors + busy + sleepers, 0, IDLE)
    return layout.trace(
        events, loaded, num_file_pages=options.get("file_pages", 0), more_anon=actors * options.get("k", 0)
    )


def _script(cpu: int, cycles: Cycles) -> Script:
    """Make every call one turn and every access one."""
    rows, call = cycles
    is_access = (rows[:, 0] == int(Op.LOAD)) | (rows[:, 0] == int(Op.STORE))
    starts = np.ones(call.size, dtype=bool)
    starts[1:] = is_access[1:] | is_access[:-1] | (call[1:] != call[:-1])
    return Script(cpu, rows, np.cumsum(starts))


def _file(options: Mapping[str, Any], layout: Layout, cpu: int) -> int:
    """Return the first vpn of this actor's slice; the slices together are the file, mapped once."""
    first, last = (options["file_pages"] * n // options["actors"] for n in (cpu, cpu + 1))
    return layout.place(0, last - first, layout.vma(READ_ONLY_FILE), first)


def _ro_slice(options: Mapping[str, Any], layout: Layout, draws: Draws, num_rows: int, cpu: int) -> Cycles:
    first = _file(options, layout, cpu)
    num_pages = options["file_pages"] * (cpu + 1) // options["actors"] - options["file_pages"] * cpu // options["actors"]
    start = int(draws.below(num_pages, 1)[0])
    page = (start + np.arange(num_rows)) % num_pages
    return rows_of(int(Op.LOAD), first + page, 0, options["repeat"]), np.arange(num_rows)


def _ro_rand(options: Mapping[str, Any], layout: Layout, draws: Draws, num_rows: int, cpu: int) -> Cycles:
    first = _file(options, layout, cpu) - options["file_pages"] * cpu // options["actors"]
    page = draws.below(options["file_pages"], num_rows)
    return rows_of(int(Op.LOAD), first + page, 0, options["repeat"]), np.arange(num_rows)


def _munmap(options: Mapping[str, Any], layout: Layout, draws: Draws, num_rows: int, cpu: int) -> Cycles:
    k = options["k"]
    first, vma = layout.reserve(0, k), layout.vma(ANON_MEMORY)
    calls = np.arange(-(-num_rows // (3 * k + 1)))
    pages = np.full(calls.size, k)
    return in_order(
        mmap_calls(first, pages, vma, -1),
        _stores(options, first, calls),
        gather_calls(Op.MUNMAP, first, pages, free_tables=int(options["free_tables"])),
    )


def _mprotect(options: Mapping[str, Any], layout: Layout, draws: Draws, num_rows: int, cpu: int) -> Cycles:
    k = options["k"]
    writable, read_only = layout.vma(ANON_MEMORY), layout.vma(READ_ONLY_ANON)
    first = layout.place(0, k, writable)
    calls = np.arange(-(-num_rows // (3 * k + 2)))
    pages = np.full(calls.size, k)
    freeze, freeze_call = gather_calls(Op.MPROTECT, first, pages, new_vma=read_only)
    thaw, thaw_call = gather_calls(Op.MPROTECT, first, pages, new_vma=writable)
    stores, cycle = _stores(options, first, calls)
    return in_order((stores, 3 * cycle), (freeze, 3 * freeze_call + 1), (thaw, 3 * thaw_call + 2))


def _madvise(options: Mapping[str, Any], layout: Layout, draws: Draws, num_rows: int, cpu: int) -> Cycles:
    k = options["k"]
    first = layout.place(0, k, layout.vma(ANON_MEMORY))
    calls = np.arange(-(-num_rows // (2 * k + 1)))
    return in_order(_stores(options, first, calls), gather_calls(Op.MADVISE_DONTNEED, first, np.full(calls.size, k)))


def _stores(options: Mapping[str, Any], first: int, calls: np.ndarray) -> Cycles:
    """Store to each of the k pages, once per cycle."""
    cycle = np.repeat(calls, options["k"])
    page = ragged_arange(np.full(calls.size, options["k"]))
    return access_rows(np.ones(cycle.size, dtype=bool), first + page, options["repeat"]), cycle


def _overlapping_madvise(options: Mapping[str, Any], layout: Layout, draws: Draws, num_rows: int) -> Script:
    """Return one script for all actors: in a random order each finishes its call, writes its pages and opens the next call.

    So every finish meets the gathers of all other actors open. The actors together advance as fast as one busy CPU.
    """
    actors, k = options["actors"], options["k"]
    if actors < 2:
        raise ValueError(f"workload.actors={actors}: concurrent calls need at least 2")
    if k > GATHER_SLOTS:
        raise ValueError(f"workload.k={k}: concurrent calls are not split, at most {GATHER_SLOTS} pages")
    first = np.array([layout.place(0, k, layout.vma(ANON_MEMORY)) for _ in range(actors)])
    rounds = -(-num_rows // (actors * (2 * k + 1))) + 1
    cpu = np.argsort(draws.raw(rounds * actors).reshape(rounds, actors), axis=1, kind="stable").ravel()
    stores, _ = _stores(options, 0, np.arange(cpu.size))
    opened, turn = gather_calls(Op.MADVISE_DONTNEED, 0, np.full(cpu.size, k))
    is_finish = opened[:, 0] == int(Op.GATHER_FINISH)
    rows, turn = in_order(
        (opened[is_finish], turn[is_finish]), (stores, np.repeat(np.arange(cpu.size), k)), (opened[~is_finish], turn[~is_finish])
    )
    rows[rows[:, 0] != int(Op.GATHER_FINISH), 1] += first[np.repeat(cpu, 2 * k)].astype(np.int32)
    keep = (turn >= actors) | (rows[:, 0] != int(Op.GATHER_FINISH))
    return Script(cpu[turn[keep]], rows[keep], turn[keep])


_MODES: dict[str, Callable[..., Cycles]] = {
    "ro_slice": _ro_slice,
    "ro_rand": _ro_rand,
    "munmap": _munmap,
    "mprotect": _mprotect,
    "madvise": _madvise,
}
_ABOUT = {
    "ro_slice": "kernel count: each actor cycles over its slice of a read-only file",
    "ro_rand": "kernel count: actors read random pages of a read-only file",
    "munmap": "kernel count: mmap k pages, write them, munmap",
    "mprotect": "kernel count: write k pages, make them read-only, make them writable",
    "madvise": "kernel count: write k pages, MADV_DONTNEED",
}
MODES = {mode: Workload(_ABOUT[mode], OPTIONS[mode], partial(build, mode)) for mode in _MODES}
