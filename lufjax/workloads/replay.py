"""``replay``: a recorded program (docs/TRACES.md) on many CPUs.

Copies of the recording run side by side, each from its own start: ``threads`` as threads of one process, which share the lasting
read-only file mappings and have the rest in vpns of their own; ``rate`` as processes. File pages are shared. Within a copy the
recorded order is kept, among copies it is seeded. At the end of the recording a copy unmaps everything of its own in one call, maps
what was mapped at the start, and begins again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lufjax.events import ANON, FIRST_PAGE, IDLE, Op
from lufjax.trace import Trace
from lufjax.workloads.draws import Draws
from lufjax.workloads.expand import GATHER_SLOTS, access_rows, gather_pages, mmap_calls, ragged_arange, rows_of
from lufjax.workloads.interleave import Script, rows_between_ticks, rows_needed
from lufjax.workloads.layout import Workload, run_scripts
from lufjax.workloads.options import SKEW, TICK_PERIOD, Option
from lufjax.workloads.recording import Recording, read_recording
from lufjax.workloads.replay_layout import most_mappers, shared_pages, vpns_of_threads

TRACES = Path(__file__).parent / "traces"
OPTIONS = {
    "path": Option("table_lookup", "a recording that comes with lufjax, or a NetCDF file (docs/TRACES.md)"),
    "mode": Option(
        "threads", "copies are threads of one process, which share lasting read-only mappings, or processes", choices=("threads", "rate")
    ),
    "copies": Option(0, "copies of the recording; 0: as many as there are CPUs for", 0, 256),
    "share_files": Option(True, "copies map the same files; false: each its own, and threads share no mapping"),
    "tick_period": TICK_PERIOD,
    "skew": SKEW,
}


@dataclass(frozen=True)
class _Loop:
    """The events of one round of a recording: what was recorded, then the reset.

    Attributes:
        is_shared: ``bool[num_vpns]`` pages that are mapped once for all copies; no row maps or unmaps them.
        rows: ``int32[n, 4]`` op, vpn, arg, repeat.
        thread: ``int[n]``.
        turn: ``int[n]``, a call is one turn.
        num_recorded: rows before the reset.
        row_of_call: ``int[num_ranges]`` first row of the call that each range belongs to.
        longest_turn: rows.
    """

    recording: Recording
    is_shared: np.ndarray
    rows: np.ndarray
    thread: np.ndarray
    turn: np.ndarray
    num_recorded: int
    row_of_call: np.ndarray
    longest_turn: int


def build(options: Mapping[str, Any], num_cpus: int, draws: Draws, num_events: int) -> Trace:
    """Build the trace; options as in ``OPTIONS``."""
    path = recording_path(options["path"])
    is_rate, share_files = options["mode"] == "rate", options["share_files"]
    loop = _load(str(path), path.stat().st_mtime_ns if path.is_file() else 0, share_files and not is_rate)
    recording = loop.recording
    cpus_per_copy = min(recording.number("num_threads"), num_cpus)
    copies = options["copies"] or num_cpus // cpus_per_copy
    if copies * cpus_per_copy > num_cpus:
        most = num_cpus // cpus_per_copy
        raise ValueError(f"workload.copies={copies}: at most {most}, of {cpus_per_copy} CPUs each, fit num_cpus={num_cpus}")
    vpns, num_vpns = vpns_of_threads(recording, loop.is_shared, 1 if is_rate else copies)
    page_vma = np.full((copies if is_rate else 1, num_vpns), -1, dtype=np.int32)
    page_backing = np.full_like(page_vma, ANON)
    num_rows = rows_needed(rows_between_ticks(num_events, options["tick_period"], num_cpus), copies, options["skew"], loop.longest_turn)
    scripts = []
    for copy in range(copies):
        start = _start(loop, draws, copy, copies)
        vpn_of, first_vma = vpns[0 if is_rate else copy], copy * recording.vmas.size
        first_file_page = 0 if share_files else copy * recording.number("num_file_pages")
        vma, backing = _mapped_at(recording, int(np.searchsorted(loop.row_of_call, start)))
        mapped = np.flatnonzero((vma >= 0) & (~loop.is_shared | (copy == 0)))
        where = copy if is_rate else 0, vpn_of[mapped]
        page_vma[where] = vma[mapped] + first_vma
        page_backing[where] = np.where(backing[mapped] >= 0, backing[mapped] + first_file_page, ANON)
        scripts.append(_script(loop, start, num_rows, copy * cpus_per_copy, cpus_per_copy, vpn_of, first_vma, first_file_page))
    events = run_scripts(scripts, draws, num_events=num_events, num_cpus=num_cpus, tick_period=options["tick_period"], skew=options["skew"])
    process = np.repeat(np.arange(copies) if is_rate else np.zeros(copies, dtype=int), cpus_per_copy)
    num_file_pages = recording.number("num_file_pages") * (1 if share_files else copies)
    return Trace(
        events=events,
        vmas=np.tile(recording.vmas, copies).astype(np.int32),
        page_vma=page_vma,
        page_backing=page_backing,
        loaded=np.concatenate([process, np.full(num_cpus - process.size, IDLE)]).astype(np.int32),
        num_file_pages=num_file_pages,
        num_anon=copies * (recording.number("num_anon") + GATHER_SLOTS),
        attrs={
            "rmap_slots": most_mappers(events, page_vma, page_backing, process, num_file_pages),
            "gather_slots": GATHER_SLOTS,
            "recorded_command": str(recording.attrs["command"]),
        },
    )


def recording_path(name: str) -> Path:
    """Return the file of a recording: one that comes with lufjax, by its name, or any path."""
    shipped = sorted(path.stem for path in TRACES.glob("*.nc"))
    if name in shipped:
        return TRACES / f"{name}.nc"
    if not name.endswith(".nc"):
        raise ValueError(f"workload.path={name!r}: allowed are {', '.join(shipped)} or a path that ends in .nc")
    return Path(name)


@lru_cache(maxsize=8)
def _load(path: str, changed: int, share: bool) -> _Loop:
    """Expand a file into rows; ``changed`` (its time stamp) is part of the key so that a new file is read anew."""
    recording = read_recording(Path(path))
    is_shared = shared_pages(recording) & share
    calls = recording.calls
    accesses = access_rows(recording.rows[:, 1] == 1, recording.rows[:, 2], recording.rows[:, 3])
    ends = np.flatnonzero(calls["last"]).tolist()
    parts, threads, starts = [], [], []
    done = num_rows = begin = 0
    row_of_call = np.zeros(calls["row"].size, dtype=np.int64)
    for end in ends:
        row = int(calls["row"][begin])
        call = _call_rows(recording, slice(begin, end + 1))
        parts += [accesses[done:row], call]
        threads += [recording.rows[done:row, 0], np.full(call.shape[0], calls["thread"][begin])]
        starts += [np.ones(row - done, dtype=bool), np.arange(call.shape[0]) == 0]
        row_of_call[begin : end + 1] = num_rows + row - done
        num_rows += row - done + call.shape[0]
        done, begin = row, end + 1
    reset = _reset_rows(recording, is_shared)
    parts += [accesses[done:], reset]
    threads += [recording.rows[done:, 0], np.zeros(reset.shape[0], dtype=np.int64)]
    starts += [np.ones(accesses.shape[0] - done, dtype=bool), np.arange(reset.shape[0]) == 0]
    turn = np.cumsum(np.concatenate(starts))
    num_recorded = num_rows + accesses.shape[0] - done
    longest_turn = int(np.bincount(turn).max())
    return _Loop(recording, is_shared, np.concatenate(parts), np.concatenate(threads), turn, num_recorded, row_of_call, longest_turn)


def _call_rows(recording: Recording, part: slice) -> np.ndarray:
    """Expand the ranges of one call."""
    calls = {name: values[part] for name, values in recording.calls.items()}
    op = Op(int(calls["op"][0]))
    page = ragged_arange(calls["num_pages"])
    vpns = np.repeat(calls["vpn"], calls["num_pages"]) + page
    values = np.repeat(calls["value"], calls["num_pages"])
    if op is not Op.MMAP:
        return gather_pages(op, vpns, values, int(calls["free_tables"][-1]))
    rows, _ = mmap_calls(calls["vpn"], calls["num_pages"], calls["vma"], calls["value"])
    rows[:, 3] = calls["vma"][0]
    rows[0, 3] += FIRST_PAGE
    return rows


def _reset_rows(recording: Recording, is_shared: np.ndarray) -> np.ndarray:
    """Unmap what is mapped at the end, as an exit does, and map what is mapped at the start, one call for each VMA.

    What the copies share stays.
    """
    vma, _ = _mapped_at(recording, recording.calls["row"].size)
    mapped = np.flatnonzero((vma >= 0) & ~is_shared)
    parts = [gather_pages(Op.MUNMAP, mapped, 0, 1)] if mapped.size else []
    for number in np.unique(recording.initial_vma[(recording.initial_vma >= 0) & ~is_shared]).tolist():
        vpns = np.flatnonzero(recording.initial_vma == number)
        rows = rows_of(int(Op.MMAP), vpns, recording.initial_backing[vpns], number)
        rows[0, 3] += FIRST_PAGE
        parts.append(rows)
    return np.concatenate([np.zeros((0, 4), dtype=np.int32), *parts])


def _mapped_at(recording: Recording, num_ranges: int) -> tuple[np.ndarray, np.ndarray]:
    """Return VMA id and backing of every vpn after the first ``num_ranges`` call ranges."""
    vma, backing, calls = recording.initial_vma.copy(), recording.initial_backing.copy(), recording.calls
    for index in range(num_ranges):
        pages = slice(calls["vpn"][index], calls["vpn"][index] + calls["num_pages"][index])
        match calls["op"][index]:
            case Op.MMAP:
                first = calls["value"][index]
                vma[pages] = calls["vma"][index]
                backing[pages] = ANON if first == ANON else np.arange(first, first + calls["num_pages"][index])
            case Op.MUNMAP:
                vma[pages] = -1
            case Op.MPROTECT:
                vma[pages] = calls["value"][index]
    return vma, backing


def _start(loop: _Loop, draws: Draws, copy: int, copies: int) -> int:
    """Return the row at which a copy starts: the beginning of a turn in its share of the recording."""
    first, last = loop.num_recorded * copy // copies, loop.num_recorded * (copy + 1) // copies
    row = first + int(draws.below(max(1, last - first), 1)[0])
    return int(np.searchsorted(loop.turn, loop.turn[row]))


def _script(
    loop: _Loop, start: int, num_rows: int, first_cpu: int, num_cpus: int, vpn_of: np.ndarray, first_vma: int, first_file_page: int
) -> Script:
    """Return the rows of one copy from ``start`` on, round after round."""
    index = start + np.arange(num_rows)
    round_, row = np.divmod(index, loop.rows.shape[0])
    rows = loop.rows[row]
    op = rows[:, 0]
    rows[:, 1] = np.where(op == int(Op.GATHER_FINISH), 0, vpn_of[rows[:, 1]])
    rows[op == int(Op.MPROTECT), 2] += first_vma
    rows[op == int(Op.MMAP), 3] += first_vma
    rows[(op == int(Op.MMAP)) & (rows[:, 2] != ANON), 2] += first_file_page
    return Script(first_cpu + loop.thread[row] % num_cpus, rows, loop.turn[row] + round_ * (loop.turn[-1] + 1))


WORKLOAD = Workload("a recorded program, copies of it on all CPUs", OPTIONS, build)
