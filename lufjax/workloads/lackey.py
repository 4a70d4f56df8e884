"""Import of a lackey recording: text in, NetCDF out, in one pass over the text and memory bounded by the pages it touches.

Consecutive accesses of a thread to one page become a *run*. Runs are spooled to a temporary file until all mappings are known.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lufjax.events import Op
from lufjax.workloads.address_space import follow_calls
from lufjax.workloads.dense import TimedCall, choose_vpns
from lufjax.workloads.expand import ragged_arange
from lufjax.workloads.lackey_calls import PAGE_SHIFT, Call, CallReader
from lufjax.workloads.lackey_text import BLOCK_BYTES, Block, read_blocks
from lufjax.workloads.page_ranges import PageRanges
from lufjax.workloads.recording import MAX_REPEAT, RowWriter

RUN = np.dtype([("page", "<i8"), ("thread", "<i4"), ("loads", "<i4"), ("stores", "<i4"), ("store_first", "?")])
_SPOOL_RUNS = 1 << 15
_NO_LIMIT = 2**62


@dataclass
class _Runs:
    """What one pass over the text leaves behind."""

    spool: BinaryIO
    skip_runs: int
    max_runs: int
    seen: int = 0
    spooled: int = 0
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=RUN))
    calls: list[TimedCall] = field(default_factory=list)
    known: PageRanges = field(default_factory=PageRanges)
    touched: set[int] = field(default_factory=set)
    initial: dict[int, bool] = field(default_factory=dict)
    threads: dict[int, int] = field(default_factory=dict)
    lines: int = 0
    accesses: int = 0
    unmapped_runs: int = 0

    @property
    def is_full(self) -> bool:
        return self.seen + self.pending.size >= self.skip_runs + self.max_runs

    def thread_number(self, thread: int) -> int:
        """Number valgrind's threads as they appear in the recording."""
        return self.threads.setdefault(thread, len(self.threads))


def import_lackey(
    text: str | Path,
    output: str | Path,
    *,
    with_fetches: bool = False,
    skip_runs: int = 0,
    max_runs: int = _NO_LIMIT,
    index_bits: int = 4,
    command: str = "",
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, int]:
    """Import the output of ``valgrind --tool=lackey --trace-mem=yes --trace-syscalls=yes --trace-sched=yes``.

    Args:
        text: the recording; may be a pipe, ``-`` for standard input, or gzipped with the suffix ``.gz``.
        output: NetCDF file to write, docs/TRACES.md.
        with_fetches: import instruction fetches too, as loads.
        skip_runs: runs to leave out at the start; mapping calls before the cut become initial state.
        max_runs: runs to keep; reading stops there.
        index_bits: low bits of a page number that a dense vpn keeps.
        command: the recorded command line, for the record.
        block_bytes: text held in memory at a time.

    Returns:
        Counts, also attributes of the file: lines, accesses, rows, calls, threads, vpns, touched pages, accesses to unmapped pages.
    """
    text, output = Path(text), Path(output)
    limits = {"skip_runs": (skip_runs, 0), "max_runs": (max_runs, 1), "index_bits": (index_bits, 0), "block_bytes": (block_bytes, 64)}
    for name, (value, low) in limits.items():
        if value < low:
            raise ValueError(f"{name}={value}: must be at least {low}")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: no such directory {str(output.parent)!r}")
    with tempfile.TemporaryFile(dir=output.parent) as spool:
        runs = _Runs(spool, skip_runs, max_runs)
        _read(runs, text, with_fetches, block_bytes)
        if not runs.touched:
            raise ValueError(f"{text}: no data accesses after run {skip_runs}; expected a lackey recording with --trace-mem=yes")
        touched = np.array(sorted(runs.touched), dtype=np.int64)
        initial = {page: written for page, written in runs.initial.items() if page in runs.touched}
        table = choose_vpns(runs.calls, touched, np.array(sorted(initial), dtype=np.int64), index_bits)
        space = follow_calls(table, runs.calls, initial)
        counts = {
            "lines": runs.lines,
            "accesses": runs.accesses,
            "unmapped_runs": runs.unmapped_runs,
            "num_threads": len(runs.threads),
        }
        spool.seek(0)
        attrs = {"command": command, "source": text.name, "index_bits": index_bits, "skip_runs": skip_runs}
        with RowWriter(output, space, attrs | counts) as writer:
            while data := spool.read(_SPOOL_RUNS * RUN.itemsize):
                _write_runs(writer, np.frombuffer(data, dtype=RUN))
            return counts | writer.counts()


def _read(runs: _Runs, text: Path, with_fetches: bool, block_bytes: int) -> None:
    reader = CallReader(str(text))
    for block in read_blocks(text, with_fetches=with_fetches, block_bytes=block_bytes):
        _take_block(runs, reader, block)
        runs.lines += block.num_lines
        if runs.is_full:
            break
    _spool(runs, runs.pending)
    runs.pending = runs.pending[:0]


def _take_block(runs: _Runs, reader: CallReader, block: Block) -> None:
    """Cut the accesses of a block at thread switches and mapping calls."""
    begin = 0
    for at, line, message in block.messages:
        thread = reader.thread
        calls = reader.feed(line, message)
        if calls or reader.thread != thread:
            _take_accesses(runs, thread, block, begin, at)
            begin = at
        for call in calls:
            _take_call(runs, thread, call)
    _take_accesses(runs, reader.thread, block, begin, block.kind.size)


def _take_call(runs: _Runs, thread: int, call: Call) -> None:
    _spool(runs, runs.pending)
    runs.pending = runs.pending[:0]
    if call.op == Op.MMAP:
        runs.known.add(call.start, call.end)
    elif call.op == Op.MUNMAP:
        runs.known.remove(call.start, call.end)
    if runs.seen < runs.skip_runs:
        runs.calls.append(TimedCall(-1, 0, call))
    elif not runs.is_full:
        runs.calls.append(TimedCall(runs.spooled, runs.thread_number(thread), call))


def _take_accesses(runs: _Runs, thread: int, block: Block, begin: int, end: int) -> None:
    """Fold accesses of one thread into runs; the last one waits, because it may go on."""
    if begin == end:
        return
    kind, address, size = block.kind[begin:end], block.address[begin:end], block.size[begin:end]
    runs.accesses += end - begin
    page = address >> PAGE_SHIFT
    pages = ((address + size - 1) >> PAGE_SHIFT) - page + 1
    if pages.max() > 1:
        offset = np.arange(pages.sum()) - np.repeat(np.cumsum(pages) - pages, pages)
        page, kind = np.repeat(page, pages) + offset, np.repeat(kind, pages)
    start = np.flatnonzero(np.concatenate([[True], page[1:] != page[:-1]]))
    new = np.zeros(start.size, dtype=RUN)
    new["page"], new["thread"] = page[start], thread
    new["loads"] = np.add.reduceat((kind != ord("S")).astype(np.int32), start)
    new["stores"] = np.add.reduceat(((kind == ord("S")) | (kind == ord("M"))).astype(np.int32), start)
    new["store_first"] = kind[start] == ord("S")
    if runs.pending.size:
        last = runs.pending[-1]
        if last["page"] == new["page"][0] and last["thread"] == thread:
            for name in ("loads", "stores"):
                new[name][0] += last[name]
            new["store_first"][0] = last["store_first"]
            runs.pending = runs.pending[:-1]
    _spool(runs, runs.pending)
    _spool(runs, new[:-1])
    runs.pending = new[-1:]


def _spool(runs: _Runs, new: np.ndarray) -> None:
    """Write finished runs: those in the window, on pages that are mapped."""
    if not new.size:
        return
    is_mapped = _infer_initial(runs, new)
    window = np.arange(runs.seen, runs.seen + new.size) - runs.skip_runs
    in_window = (window >= 0) & (window < runs.max_runs)
    runs.seen += new.size
    runs.unmapped_runs += int((in_window & ~is_mapped).sum())
    kept = new[in_window & is_mapped]
    runs.touched.update(np.unique(kept["page"]).tolist())
    threads, where = np.unique(kept["thread"], return_inverse=True)
    kept["thread"] = np.array([runs.thread_number(thread) for thread in threads.tolist()], dtype=np.int32)[where]
    runs.spool.write(kept.tobytes())
    runs.spooled += kept.size


def _infer_initial(runs: _Runs, new: np.ndarray) -> np.ndarray:
    """Return which runs are on mapped pages; a page that no call has ever mapped was there before the recording."""
    pages, where = np.unique(new["page"], return_inverse=True)
    is_mapped = runs.known.contains(pages)
    is_stored = np.zeros(pages.size, dtype=bool)
    is_stored[where[new["stores"] > 0]] = True
    for index in np.flatnonzero(~is_mapped).tolist():
        page = int(pages[index])
        if page in runs.initial or not _was_mapped(runs, page):
            runs.initial[page] = runs.initial.get(page, False) or bool(is_stored[index])
            is_mapped[index] = True
    return is_mapped[where]


def _was_mapped(runs: _Runs, page: int) -> bool:
    return any(timed.call.op == Op.MMAP and timed.call.start <= page < timed.call.end for timed in runs.calls)


def _write_runs(writer: RowWriter, runs: np.ndarray) -> None:
    """Write a run as its loads and its stores, in the order of the first access; long ones as several rows."""
    is_store = np.stack([runs["store_first"], ~runs["store_first"]], axis=1)
    count = np.where(is_store, runs["stores"][:, None], runs["loads"][:, None])
    num_rows = -(-count // MAX_REPEAT)
    piece = ragged_arange(num_rows.ravel())
    writer.write(
        rows_per_run=num_rows.sum(axis=1),
        thread=np.repeat(runs["thread"], num_rows.sum(axis=1)),
        page=np.repeat(runs["page"], num_rows.sum(axis=1)),
        store=np.repeat(is_store.ravel(), num_rows.ravel()),
        repeat=np.minimum(np.repeat(count.ravel(), num_rows.ravel()) - piece * MAX_REPEAT, MAX_REPEAT),
    )
