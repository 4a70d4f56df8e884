"""The mapping calls of a recording, carried out on dense vpns: VMA ids, file pages, what is mapped at the start, which calls remain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lufjax.events import ANON, Op, VmaFlag
from lufjax.workloads.dense import PageTable, TimedCall
from lufjax.workloads.lackey_calls import PROT_EXEC, PROT_READ, PROT_WRITE, Call
from lufjax.workloads.layout import ANON_MEMORY
from lufjax.workloads.page_ranges import PageRanges

_TABLE_PAGES = 512
"""Pages that one page-table page maps."""
_IMAGE = ""
"""File of untracked pages that are never stored to: the image of the program, mapped before the recording begins."""
_IMAGE_FLAGS = VmaFlag.READ | VmaFlag.MAYWRITE
_PERMISSION = int(VmaFlag.READ | VmaFlag.WRITE)


@dataclass(frozen=True)
class Segment:
    """A part of a call that is one range of vpns.

    Attributes:
        position, thread: runs before it, and who calls.
        op, vpn, num_pages: what on which pages.
        value: MMAP: first file page, or ``ANON``; MPROTECT: the new VMA id; else 0.
        vma: MMAP: VMA id; else 0.
        first, last: whether it is the first, the last segment of its call.
        free_tables: last segment: the call frees page tables.
    """

    position: int
    thread: int
    op: int
    vpn: int
    num_pages: int
    value: int = 0
    vma: int = 0
    first: bool = False
    last: bool = False
    free_tables: bool = False


@dataclass
class AddressSpace:
    """State of the walk over the calls, and at its end the result.

    Attributes:
        table: which page has which vpn.
        vma, backing: ``int64[num_vpns]`` now; -1 where nothing is mapped, ``ANON``.
        initial_vma, initial_backing: the same at the start of the recording, once it ``has_begun``.
        flags: VMA flags by id.
        file_page: (file, page of it) -> number.
        segments: the calls within the recording that touch kept pages.
        mappers: most pages that mapped one file page at the same time.
        ever_anon: ``bool[num_vpns]`` pages that may have been anonymous.
    """

    table: PageTable
    file_page: Mapping[tuple[str, int], int]
    vma: np.ndarray
    backing: np.ndarray
    ever_anon: np.ndarray
    initial_vma: np.ndarray
    initial_backing: np.ndarray
    has_begun: bool = False
    flags: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    mappers: int = 1
    mapped: PageRanges = field(default_factory=PageRanges)

    def take_vma(self, flags: int) -> int:
        """Return an id with these flags that no page has; a new one if there is none."""
        used = set(np.unique(self.vma).tolist())
        for vma, known in enumerate(self.flags):
            if known == flags and vma not in used:
                return vma
        self.flags.append(int(flags))
        return len(self.flags) - 1

    def set_pages(self, vpns: np.ndarray, vma: int, backing: np.ndarray) -> None:
        """Map pages."""
        self.vma[vpns], self.backing[vpns] = vma, backing
        flags = self.flags[vma]
        if flags & VmaFlag.ANON or (flags & VmaFlag.WRITE and not flags & VmaFlag.SHARED):
            self.ever_anon[vpns] = True
        files = self.backing[(self.vma >= 0) & (self.backing != ANON)]
        if files.size:
            self.mappers = max(self.mappers, int(np.bincount(files).max()))

    def begin(self) -> None:
        """The recording begins: what is mapped now is mapped at the start."""
        if not self.has_begun:
            self.initial_vma, self.initial_backing = self.vma.copy(), np.where(self.vma >= 0, self.backing, ANON)
        self.has_begun = True

    def emit(self, timed: TimedCall, op: Op, parts: Sequence[tuple[int, int, int, int]], free_tables: bool = False) -> None:
        """Add the segments (vpn, num_pages, value, vma) of a call, if the recording has begun."""
        if timed.position < 0:
            return
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            self.segments.append(Segment(timed.position, timed.thread, int(op), *part, number == 0, is_last, is_last and free_tables))


def follow_calls(table: PageTable, calls: Sequence[TimedCall], initial: Mapping[int, bool]) -> AddressSpace:
    """Carry out the calls.

    Args:
        table: which page has which vpn.
        calls: in order.
        initial: kept page mapped before anything is known -> whether it is stored to. It is anonymous memory if it is, else a
            private read-only page of the program's image.
    """
    empty = np.full(table.num_vpns, -1, dtype=np.int64)
    file_page = _number_file_pages(table, calls, initial)
    space = AddressSpace(table, file_page, empty, empty.copy(), np.zeros(table.num_vpns, dtype=bool), empty.copy(), empty.copy())
    _map_initially(space, initial)
    for timed in calls:
        if timed.position >= 0:
            space.begin()
        _STEPS[timed.call.op](space, timed, timed.call)
    space.begin()
    _drop_unused_vmas(space)
    return space


def _number_file_pages(table: PageTable, calls: Sequence[TimedCall], initial: Mapping[int, bool]) -> dict[tuple[str, int], int]:
    """Number the file pages that kept pages map: file after file as first mapped, each in order of its pages."""
    files: dict[str, set[int]] = {_IMAGE: {page for page, written in initial.items() if not written}}
    for timed in calls:
        call = timed.call
        if call.op == Op.MMAP and call.file is not None:
            pages = table.pages[table.between(call.start, call.end)]
            files.setdefault(call.file, set()).update((pages - call.start + call.file_page).tolist())
    keys = [(file, page) for file, pages in files.items() for page in sorted(pages)]
    return {key: number for number, key in enumerate(keys)}


def _map_initially(space: AddressSpace, initial: Mapping[int, bool]) -> None:
    previous, vma = (-2, False), -1
    for page, written in sorted(initial.items()):
        if previous != (page - 1, written):
            vma = space.take_vma(int(ANON_MEMORY if written else _IMAGE_FLAGS))
        backing = ANON if written else space.file_page[_IMAGE, page]
        space.set_pages(space.table.vpn_of(np.array([page])), vma, np.array([backing]))
        space.mapped.add(page, page + 1)
        previous = (page, written)


def _ranges(*columns: np.ndarray) -> Iterator[slice]:
    """Yield the slices in which the first column rises by one and the others stay, or rise by one too (-1 stays)."""
    first = columns[0]
    breaks = np.zeros(max(first.size - 1, 0), dtype=bool)
    breaks |= np.diff(first) != 1
    for column in columns[1:]:
        step = np.diff(column)
        breaks |= (step != 1) & ~((step == 0) & (column[1:] == ANON))
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), first.size]
    yield from (slice(low, high) for low, high in itertools.pairwise(edges) if low < high)


def _mapped_vpns(space: AddressSpace, call: Call) -> np.ndarray:
    vpns = space.table.vpns[space.table.between(call.start, call.end)]
    return vpns[space.vma[vpns] >= 0]


def _mmap(space: AddressSpace, timed: TimedCall, call: Call) -> None:
    """Map pages; what was mapped there is unmapped first, in one call, as Linux 6.1 ``mmap_region`` does."""
    _munmap(space, timed, call)
    space.mapped.add(call.start, call.end)
    kept = space.table.between(call.start, call.end)
    if not kept.size:
        return
    vpns, pages = space.table.vpns[kept], space.table.pages[kept]
    if call.file is None:
        backing = np.full(kept.size, ANON)
    else:
        backing = np.array([space.file_page[call.file, page] for page in (pages - call.start + call.file_page).tolist()])
    vma = space.take_vma(_mmap_flags(call))
    space.set_pages(vpns, vma, backing)
    parts = [(int(vpns[part][0]), vpns[part].size, int(backing[part][0]), vma) for part in _ranges(vpns, backing)]
    space.emit(timed, Op.MMAP, parts)


def _mmap_flags(call: Call) -> int:
    flags = _permission(call.prot)
    flags |= int(VmaFlag.MAYWRITE) if call.may_write else 0
    flags |= int(VmaFlag.SHARED) if call.shared else 0
    return flags | (int(VmaFlag.ANON) if call.file is None else 0)


def _permission(prot: int) -> int:
    readable = prot & (PROT_READ | PROT_WRITE | PROT_EXEC)
    return (int(VmaFlag.READ) if readable else 0) | (int(VmaFlag.WRITE) if prot & PROT_WRITE else 0)


def _munmap(space: AddressSpace, timed: TimedCall, call: Call) -> None:
    vpns = _mapped_vpns(space, call)
    space.mapped.remove(call.start, call.end)
    space.vma[vpns] = -1
    free_tables = call.op == Op.MUNMAP and _frees_tables(space, call)
    space.emit(timed, Op.MUNMAP, [(int(vpns[part][0]), vpns[part].size, 0, 0) for part in _ranges(vpns)], free_tables)


def _frees_tables(space: AddressSpace, call: Call) -> bool:
    """Whether the call leaves a page table without a VMA (Linux 6.1 ``free_pgtables``) that a touched page of it had needed."""
    before, after = space.mapped.neighbours(call.start, call.end)
    low, high = -(-before // _TABLE_PAGES) * _TABLE_PAGES, after // _TABLE_PAGES * _TABLE_PAGES
    freed = space.table.between(max(low, call.start), max(low, min(high, call.end)))
    return bool(space.table.touched[freed].any())


def _madvise(space: AddressSpace, timed: TimedCall, call: Call) -> None:
    vpns = _mapped_vpns(space, call)
    space.emit(timed, Op.MADVISE_DONTNEED, [(int(vpns[part][0]), vpns[part].size, 0, 0) for part in _ranges(vpns)])


def _mprotect(space: AddressSpace, timed: TimedCall, call: Call) -> None:
    """Move pages to a VMA with the new permission, one for each old VMA; VMAs that have it already are left alone."""
    vpns = _mapped_vpns(space, call)
    old = space.vma[vpns]
    parts = []
    for vma in dict.fromkeys(old.tolist()):
        flags = space.flags[vma] & ~_PERMISSION | _permission(call.prot)
        if flags != space.flags[vma]:
            moved = vpns[old == vma]
            new = _adjacent_vma(space, moved, flags)
            space.set_pages(moved, new, space.backing[moved])
            parts += [(int(moved[part][0]), moved[part].size, new, 0) for part in _ranges(moved)]
    space.emit(timed, Op.MPROTECT, parts)


def _adjacent_vma(space: AddressSpace, vpns: np.ndarray, flags: int) -> int:
    """Return the VMA with these flags that ends or begins at the pages (Linux merges them), else an unused id."""
    table = space.table
    moved = np.flatnonzero(np.isin(table.vpns, vpns))
    for outside, edge in ((int(moved[0]) - 1, int(moved[0])), (int(moved[-1]) + 1, int(moved[-1]))):
        if 0 <= outside < table.pages.size and abs(table.pages[outside] - table.pages[edge]) == 1:
            vma = int(space.vma[table.vpns[outside]])
            if vma >= 0 and space.flags[vma] == flags:
                return vma
    return space.take_vma(flags)


def _drop_unused_vmas(space: AddressSpace) -> None:
    """Number the VMAs that the recording names, from 0 upwards."""
    named = set(space.initial_vma[space.initial_vma >= 0].tolist())
    named |= {segment.vma for segment in space.segments if segment.op == Op.MMAP}
    named |= {segment.value for segment in space.segments if segment.op == Op.MPROTECT}
    number = {old: new for new, old in enumerate(sorted(named))}
    space.flags = [space.flags[old] for old in sorted(named)]
    space.initial_vma = np.array([number.get(vma, -1) for vma in space.initial_vma.tolist()], dtype=np.int64)
    for index, segment in enumerate(space.segments):
        if segment.op == Op.MMAP:
            space.segments[index] = replace(segment, vma=number[segment.vma])
        elif segment.op == Op.MPROTECT:
            space.segments[index] = replace(segment, value=number[segment.value])


_STEPS = {Op.MMAP: _mmap, Op.MUNMAP: _munmap, Op.MPROTECT: _mprotect, Op.MADVISE_DONTNEED: _madvise}
