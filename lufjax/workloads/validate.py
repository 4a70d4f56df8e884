"""Whether a trace is well-formed: every event would be enabled, every access allowed, every size sufficient.

The walk follows the program's side of docs/MODEL.md (mappings, locks, gathers, identities of anonymous pages), not the
machine's: no TLB, no frames, no policy.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from lufjax.events import ANON, EVENT_FIELDS, FIRST_PAGE, IDLE, Op, VmaFlag
from lufjax.trace import Trace

_SHARED = (Op.MADVISE_DONTNEED, Op.MADVISE_FREE)
_EXCLUSIVE = (Op.MUNMAP, Op.MPROTECT, Op.MREMAP, Op.FORK, Op.EXIT)
_GATHERED = (*_EXCLUSIVE, *_SHARED)
_HALVES = (Op.FAULT_INSTALL, Op.FAULT_FINISH, Op.TAKE_OFF, Op.DISCHARGE)
_MAX_ANON = 1 << 40


def check_trace(trace: Trace) -> None:
    """Raise ``ValueError`` naming the row and the field (or the array) of the first thing that is wrong."""
    _check_arrays(trace)
    walk = _Walk(trace)
    for row, event in enumerate(trace.events.tolist()):
        walk.step(row, *event)
    walk.check_sizes()


def _check_arrays(trace: Trace) -> None:
    if trace.events.ndim != 2 or trace.events.shape[1] != len(EVENT_FIELDS):
        raise ValueError(f"events: shape {trace.events.shape}, expected (num_events, {len(EVENT_FIELDS)})")
    for name in ("events", "vmas", "page_vma", "page_backing", "loaded"):
        if getattr(trace, name).dtype != np.int32:
            raise ValueError(f"{name}: dtype {getattr(trace, name).dtype}, expected int32")
    if trace.page_backing.shape != trace.page_vma.shape:
        raise ValueError(f"page_backing: shape {trace.page_backing.shape}, expected {trace.page_vma.shape} of page_vma")
    for name in ("rmap_slots", "gather_slots"):
        if name not in trace.attrs:
            raise ValueError(f"attrs: {name} is missing")
    _check_range("vmas", trace.vmas, 0, 31)
    _check_range("page_vma", trace.page_vma, -1, len(trace.vmas) - 1)
    _check_range("page_backing", trace.page_backing[trace.page_vma >= 0], ANON, trace.num_file_pages - 1)
    _check_range("loaded", trace.loaded, IDLE, trace.num_processes - 1)
    _check_range("events cpu", trace.events[:, 0], 0, trace.num_cpus - 1)
    _check_range("events op", trace.events[:, 1], 0, max(Op))
    _check_range("events vpn", trace.events[:, 2], 0, trace.num_vpns - 1)


def _check_range(name: str, values: np.ndarray, low: int, high: int) -> None:
    bad = np.argwhere((values < low) | (values > high))
    if bad.size:
        where = tuple(int(index) for index in bad[0])
        raise ValueError(f"{name}{list(where)}={int(values[where])}: allowed are {low} .. {high}")


class _Walk:
    """The program's state: who runs where, what is mapped, which calls are open, which anonymous ids are in use."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.flags: list[int] = trace.vmas.tolist()
        self.loaded: list[int] = trace.loaded.tolist()
        self.lazy = [process == IDLE for process in self.loaded]
        self.vma: list[list[int]] = trace.page_vma.tolist()
        self.backing: list[list[int]] = trace.page_backing.tolist()
        self.promise: list[list[int | None]] = [[None] * trace.num_vpns for _ in range(trace.num_processes)]
        self.gather: list[tuple[int, int, set[int]] | None] = [None] * trace.num_cpus
        self.pages_of_vma = Counter[int]()
        self.mappers = Counter[int]()
        self.users = Counter[int]()
        self.file_of: dict[int, int] = {}
        self.gone: set[int] = set()
        self.anon_in_use = 0
        self.next_anon = _MAX_ANON
        self.peak = Counter[str]()
        for process, vpn in np.argwhere(trace.page_vma >= 0).tolist():
            self.attach(process, vpn, self.vma[process][vpn], self.backing[process][vpn])
            self.promise[process][vpn] = self.backing[process][vpn]

    def fail(self, row: int, field: str, message: str) -> None:
        event = ", ".join(f"{name}={value}" for name, value in zip(EVENT_FIELDS, self.trace.events[row].tolist(), strict=True))
        raise ValueError(f"row {row}, field {field}: {message} ({event})")

    def attach(self, process: int, vpn: int, vma: int, backing: int) -> None:
        """Map a page; ``backing`` ANON takes a fresh id (ids of anonymous pages are large numbers here)."""
        self.vma[process][vpn] = vma
        self.backing[process][vpn] = self.fresh() if backing == ANON else backing
        self.pages_of_vma[vma] += 1
        self.count_mapper(self.backing[process][vpn], 1)

    def fresh(self, parent: int | None = None) -> int:
        self.next_anon += 1
        self.users[self.next_anon] = 1
        self.anon_in_use += 1
        self.peak["anon"] = max(self.peak["anon"], self.anon_in_use)
        if parent is not None:
            self.file_of[self.next_anon] = parent
        return self.next_anon

    def release(self, backing: int) -> None:
        """A page does not refer to an anonymous id any more."""
        self.users[backing] -= 1
        self.anon_in_use -= self.users[backing] == 0

    def count_mapper(self, backing: int, change: int) -> None:
        self.mappers[backing] += change
        self.peak["mappers"] = max(self.peak["mappers"], self.mappers[backing])

    def step(self, row: int, cpu: int, op: int, vpn: int, arg: int, repeat: int) -> None:
        if op in (Op.LOAD, Op.STORE):
            self.access(row, cpu, op, vpn, repeat)
        elif op in _GATHERED:
            self.page_event(row, cpu, op, vpn, arg, repeat)
        elif op == Op.MMAP:
            self.mmap(row, cpu, vpn, arg, repeat)
        elif op == Op.GATHER_FINISH:
            self.finish(row, cpu, arg)
        elif op == Op.SWITCH:
            self.switch(row, cpu, arg)
        elif op in _HALVES:
            self.fail(row, "op", f"{Op(op).name} is enabled under some policies only")
        elif op in (Op.FILE_WRITE, Op.REMOTE_WRITE, Op.TRUNCATE):
            self.file(row, op, arg)

    def access(self, row: int, cpu: int, op: int, vpn: int, repeat: int) -> None:
        if self.lazy[cpu]:
            self.fail(row, "cpu", "access on an idle CPU")
        if self.gather[cpu] is not None:
            self.fail(row, "cpu", "access on a CPU with an open gather")
        if repeat < 1:
            self.fail(row, "repeat", "an access repeats at least once")
        process = self.loaded[cpu]
        vma = self.vma[process][vpn]
        if vma < 0:
            self.fail(row, "vpn", f"page is not mapped in process {process}")
        needed = VmaFlag.READ if op == Op.LOAD else VmaFlag.READ | VmaFlag.WRITE
        if self.flags[vma] & needed != needed:
            self.fail(row, "vpn", f"VMA {vma} does not allow this access")
        backing = self.backing[process][vpn]
        if backing in self.gone:
            self.fail(row, "vpn", f"file page {backing} is beyond the end of its file")
        is_copied = backing < _MAX_ANON or self.mappers[backing] > 1
        if op == Op.STORE and is_copied and not self.flags[vma] & VmaFlag.SHARED:
            self.count_mapper(backing, -1)
            copy = self.fresh(self.file_of.get(backing) if backing >= _MAX_ANON else backing)
            if backing >= _MAX_ANON:
                self.release(backing)
            self.count_mapper(copy, 1)
            self.backing[process][vpn] = self.promise[process][vpn] = copy

    def locked(self, process: int, cpu: int, kinds: tuple[Op, ...]) -> bool:
        """Whether another CPU has a gather of one of these kinds open on the process."""
        return any(
            gather is not None and other != cpu and gather[1] == process and gather[0] in kinds for other, gather in enumerate(self.gather)
        )

    def page_event(self, row: int, cpu: int, op: int, vpn: int, arg: int, repeat: int) -> None:
        if self.lazy[cpu]:
            self.fail(row, "cpu", "mapping call on an idle CPU")
        process, gather = self.loaded[cpu], self.gather[cpu]
        if self.locked(process, cpu, _EXCLUSIVE if op in _SHARED else _GATHERED):
            self.fail(row, "cpu", f"process {process} is locked by another CPU")
        if op == Op.EXIT and any(self.loaded[c] == process and not self.lazy[c] for c in range(len(self.lazy)) if c != cpu):
            self.fail(row, "cpu", f"process {process} still runs on another CPU")
        if op == Op.FORK and (not 0 <= arg < self.trace.num_processes or arg == process):
            self.fail(row, "arg", f"child: allowed are 0 .. {self.trace.num_processes - 1} without {process}")
        if op == Op.FORK and any(other is not None and other[1] == arg for other in self.gather):
            self.fail(row, "arg", f"process {arg} is locked by a mapping call")
        if gather is None:
            gather = self.gather[cpu] = (op, process, set())
        if gather[0] != op:
            self.fail(row, "op", f"a gather of kind {Op(gather[0]).name} is open")
        if op in _SHARED and gather[2] and vpn <= max(gather[2]):
            self.fail(row, "vpn", f"page of a call that has come to page {max(gather[2])}; it goes upwards")
        gather[2].add(vpn)
        if max(gather[2]) - min(gather[2]) >= self.trace.attrs["gather_slots"]:
            self.fail(row, "vpn", f"gather that spans more than gather_slots={self.trace.attrs['gather_slots']} pages")
        vma = self.vma[process][vpn]
        if vma < 0:
            return
        if op in (Op.MUNMAP, Op.EXIT):
            self.detach(process, vpn)
        elif op == Op.MPROTECT:
            if not 0 <= arg < len(self.flags):
                self.fail(row, "arg", f"VMA id: allowed are 0 .. {len(self.flags) - 1}")
            self.pages_of_vma[vma] -= 1
            self.pages_of_vma[arg] += 1
            self.vma[process][vpn] = arg
        elif op == Op.MREMAP:
            self.move(row, process, vpn, arg)
        elif op == Op.FORK:
            self.copy(row, process, vpn, arg, repeat)
        elif op == Op.MADVISE_DONTNEED:
            self.dontneed(process, vpn)

    def copy(self, row: int, process: int, vpn: int, child: int, vma: int) -> None:
        if not 0 <= vma < len(self.flags) or self.flags[vma] != self.flags[self.vma[process][vpn]]:
            self.fail(row, "repeat", f"VMA id: allowed are those with the flags of VMA {self.vma[process][vpn]}")
        if self.vma[child][vpn] >= 0 or self.promise[child][vpn] is not None:
            self.fail(row, "vpn", f"page {vpn} of process {child} is mapped")
        backing = self.backing[process][vpn]
        self.users[backing] += backing >= _MAX_ANON
        self.attach(child, vpn, vma, backing)
        self.promise[child][vpn] = backing

    def move(self, row: int, process: int, vpn: int, to: int) -> None:
        if not 0 <= to < self.trace.num_vpns:
            self.fail(row, "arg", f"vpn: allowed are 0 .. {self.trace.num_vpns - 1}")
        if self.vma[process][to] >= 0 or self.promise[process][to] is not None:
            self.fail(row, "arg", f"page {to} of process {process} is mapped")
        self.vma[process][to], self.backing[process][to] = self.vma[process][vpn], self.backing[process][vpn]
        self.promise[process][to] = self.promise[process][vpn]
        self.vma[process][vpn] = -1

    def detach(self, process: int, vpn: int) -> None:
        self.pages_of_vma[self.vma[process][vpn]] -= 1
        self.count_mapper(self.backing[process][vpn], -1)
        self.vma[process][vpn] = -1

    def dontneed(self, process: int, vpn: int) -> None:
        old = self.backing[process][vpn]
        if old < _MAX_ANON:
            return
        parent = self.file_of.get(old)
        self.count_mapper(old, -1)
        self.backing[process][vpn] = self.fresh() if parent is None else parent
        self.count_mapper(self.backing[process][vpn], 1)
        if old != self.promise[process][vpn]:
            self.release(old)

    def file(self, row: int, op: int, page: int) -> None:
        if not 0 <= page < self.trace.num_file_pages:
            self.fail(row, "arg", f"file page: allowed are 0 .. {self.trace.num_file_pages - 1}")
        if op != Op.TRUNCATE:
            self.gone.discard(page)
            return
        self.gone.add(page)
        for process, backings in enumerate(self.backing):
            for vpn, backing in enumerate(backings):
                if self.vma[process][vpn] >= 0 and self.file_of.get(backing) == page:
                    self.backing[process][vpn] = page
                    self.count_mapper(backing, -1)
                    self.count_mapper(page, 1)
                    self.release(backing)
                    if self.promise[process][vpn] == backing:
                        self.promise[process][vpn] = page

    def mmap(self, row: int, cpu: int, vpn: int, arg: int, repeat: int) -> None:
        if self.lazy[cpu] or self.gather[cpu] is not None:
            self.fail(row, "cpu", "MMAP on an idle CPU or one with an open gather")
        process, (first, vma) = self.loaded[cpu], divmod(repeat, FIRST_PAGE)
        if self.locked(process, cpu, _GATHERED):
            self.fail(row, "cpu", f"process {process} is locked by another CPU")
        if vma >= len(self.flags) or first not in (0, 1):
            self.fail(row, "repeat", f"VMA id: allowed are 0 .. {len(self.flags) - 1}, with FIRST_PAGE on the first page")
        if not ANON <= arg < self.trace.num_file_pages:
            self.fail(row, "arg", f"backing: allowed are -1 .. {self.trace.num_file_pages - 1}")
        if (arg == ANON) != bool(self.flags[vma] & VmaFlag.ANON):
            self.fail(row, "arg", f"VMA {vma} is {'anonymous' if arg != ANON else 'a file'}")
        if self.vma[process][vpn] >= 0:
            if self.backing[process][vpn] >= _MAX_ANON:
                self.release(self.backing[process][vpn])
            self.detach(process, vpn)
        if (self.pages_of_vma[vma] > 0) == bool(first):
            self.fail(row, "repeat", f"VMA {vma} has {self.pages_of_vma[vma]} pages; only a free id starts a call")
        self.attach(process, vpn, vma, arg)
        self.promise[process][vpn] = self.backing[process][vpn]

    def finish(self, row: int, cpu: int, arg: int) -> None:
        gather = self.gather[cpu]
        if gather is None:
            return self.fail(row, "op", "no gather is open on this CPU")
        if arg not in (0, 1):
            self.fail(row, "arg", "allowed are 0, and 1 if page tables are freed")
        op, process, pages = gather
        for vpn in pages if op not in (Op.MPROTECT, Op.MADVISE_FREE, Op.FORK) else ():
            promise, is_mapped = self.promise[process][vpn], self.vma[process][vpn] >= 0
            if op != Op.MREMAP and promise is not None and promise >= _MAX_ANON and (not is_mapped or promise != self.backing[process][vpn]):
                self.release(promise)
            self.promise[process][vpn] = self.backing[process][vpn] if is_mapped else None
        self.gather[cpu] = None
        if op == Op.EXIT and arg:
            self.loaded[cpu], self.lazy[cpu] = IDLE, True

    def switch(self, row: int, cpu: int, arg: int) -> None:
        if self.gather[cpu] is not None:
            self.fail(row, "cpu", "SWITCH on a CPU with an open gather")
        if not IDLE <= arg < self.trace.num_processes:
            self.fail(row, "arg", f"process: allowed are -1 .. {self.trace.num_processes - 1}")
        self.lazy[cpu] = arg == IDLE
        if arg != IDLE:
            self.loaded[cpu] = arg

    def check_sizes(self) -> None:
        if self.peak["anon"] > self.trace.num_anon:
            raise ValueError(f"num_anon={self.trace.num_anon}: the trace needs {self.peak['anon']} anonymous backings at once")
        if self.peak["mappers"] > self.trace.attrs["rmap_slots"]:
            raise ValueError(f"attrs rmap_slots={self.trace.attrs['rmap_slots']}: a page is mapped {self.peak['mappers']} times")
