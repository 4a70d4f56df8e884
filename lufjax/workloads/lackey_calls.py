"""Valgrind's messages as mapping calls: system calls (``--trace-syscalls=yes``) and thread switches (``--trace-sched=yes``)."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace

from lufjax.events import Op

PAGE_SHIFT = 12
_PAGE = 1 << PAGE_SHIFT
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
_MAP_SHARED, _MAP_ANONYMOUS = 1, 32
_ACCESS_MODE, _READ_WRITE = 3, 2
_MADV_DONTNEED = 4

_SYSCALL = re.compile(r"SYSCALL\[(\d+),(\d+)\]\((\d+)\) (.*)")
_SCHED = re.compile(r"--(\d+)--\s+SCHED\[(\d+)\]:\s+acquired lock")
_ARGUMENTS = re.compile(r"\S+ \( (.*) \)")
_OPEN = re.compile(r"sys_open(?:at)? \( (?:-?\d+, )?0x[0-9a-f]+\((.*)\), (-?\d+)")
_SUCCESS = re.compile(r"Success\(0x([0-9a-f]+)\)")


class Syscall(enum.IntEnum):
    """Numbers of the x86-64 system calls that are followed."""

    OPEN = 2
    CLOSE = 3
    MMAP = 9
    MPROTECT = 10
    MUNMAP = 11
    BRK = 12
    MREMAP = 25
    MADVISE = 28
    DUP = 32
    DUP2 = 33
    OPENAT = 257
    DUP3 = 292


_FOLLOWED = frozenset(int(number) for number in Syscall)


@dataclass(frozen=True)
class Call:
    """A mapping call, in pages of the recorded address space.

    Attributes:
        op: MMAP, MUNMAP, MPROTECT or MADVISE_DONTNEED.
        start, end: page numbers, end excluded.
        prot: MMAP, MPROTECT: PROT_* bits.
        shared, may_write: MMAP: MAP_SHARED; a shared file that was opened for writing, or a private mapping.
        file: MMAP: what names the file; None for anonymous memory.
        file_page: MMAP: page of the file that the first page maps.
        grows: MMAP: start of the mapping that this one extends (``brk``), else ``start``.
    """

    op: Op
    start: int
    end: int
    prot: int = 0
    shared: bool = False
    may_write: bool = True
    file: str | None = None
    file_page: int = 0
    grows: int = -1


class CallReader:
    """Follows the messages of one process: which thread runs, which file a descriptor names, where the heap ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.thread = 1
        self._pid: str | None = None
        self._files: dict[int, tuple[str, bool]] = {}
        self._opening: dict[str, tuple[str, bool]] = {}
        self._mmaps: dict[int, Call] = {}
        self._heap_start = self._heap_end = 0

    def feed(self, line: int, text: str) -> list[Call]:
        """Read one message; return the mapping calls that it reports (usually none)."""
        if found := _SCHED.match(text):
            self._check_process(found[1], line)
            self.thread = int(found[2])
            return []
        found = _SYSCALL.match(text)
        if not found:
            return []
        self._check_process(found[1], line)
        thread, number, rest = found[2], int(found[3]), found[4]
        if number in (Syscall.OPEN, Syscall.OPENAT):
            self._open(thread, rest)
            return []
        success = _SUCCESS.search(rest)
        arguments = _ARGUMENTS.match(rest)
        if not success or not arguments or number not in _FOLLOWED:
            return []
        try:
            values = [int(word, 0) for word in arguments[1].split(",")]
        except ValueError:
            raise ValueError(f"{self.path}: line {line}: expected integer arguments of system call {number}, found {text!r}") from None
        return self._call(number, values, int(success[1], 16), line)

    def _check_process(self, pid: str, line: int) -> None:
        if self._pid not in (None, pid):
            raise ValueError(
                f"{self.path}: line {line}: process {pid} in a recording of process {self._pid}; expected a program that does not fork"
            )
        self._pid = pid

    def _open(self, thread: str, rest: str) -> None:
        if found := _OPEN.match(rest):
            self._opening[thread] = (found[1], int(found[2]) & _ACCESS_MODE == _READ_WRITE)
        success = _SUCCESS.search(rest)
        if success and thread in self._opening:
            self._files[int(success[1], 16)] = self._opening.pop(thread)

    def _call(self, number: int, values: list[int], result: int, line: int) -> list[Call]:
        match number:
            case Syscall.CLOSE:
                self._files.pop(values[0], None)
            case Syscall.DUP | Syscall.DUP2 | Syscall.DUP3:
                if values[0] in self._files:
                    self._files[result] = self._files[values[0]]
            case Syscall.MMAP:
                mmap = self._mmap(values, result, line)
                self._mmaps[mmap.start] = mmap
                return [mmap]
            case Syscall.MUNMAP:
                return [Call(Op.MUNMAP, *_pages(values[0], values[1]))]
            case Syscall.MPROTECT:
                return [Call(Op.MPROTECT, *_pages(values[0], values[1]), prot=values[2])]
            case Syscall.MADVISE if values[2] == _MADV_DONTNEED:
                return [Call(Op.MADVISE_DONTNEED, *_pages(values[0], values[1]))]
            case Syscall.BRK:
                return self._brk(result)
            case Syscall.MREMAP:
                return self._mremap(values, result)
        return []

    def _mmap(self, values: list[int], result: int, line: int) -> Call:
        _, length, prot, flags, descriptor, offset = values
        start, end = _pages(result, length)
        if flags & _MAP_ANONYMOUS:
            return Call(Op.MMAP, start, end, prot, grows=start)
        name, writable = self._files.get(descriptor, (f"descriptor {descriptor} at line {line}", False))
        shared = bool(flags & _MAP_SHARED)
        return Call(Op.MMAP, start, end, prot, shared, not shared or writable, name, offset >> PAGE_SHIFT, start)

    def _brk(self, result: int) -> list[Call]:
        end = -(-result // _PAGE)
        if not self._heap_start:
            self._heap_start = self._heap_end = end
        old, self._heap_end = self._heap_end, end
        if end > old:
            return [Call(Op.MMAP, old, end, PROT_READ | PROT_WRITE, grows=self._heap_start)]
        return [Call(Op.MUNMAP, end, old)] if end < old else []

    def _mremap(self, values: list[int], result: int) -> list[Call]:
        """A moved mapping is unmapped and mapped anew; anonymous pages thereby lose their identity (coarser)."""
        start, end = _pages(values[0], values[1])
        new_start, new_end = _pages(result, values[2])
        old = self._mmaps.get(start, Call(Op.MMAP, start, end, PROT_READ | PROT_WRITE, grows=start))
        self._mmaps[new_start] = replace(old, start=new_start, end=new_end, grows=new_start)
        if new_start != start:
            return [Call(Op.MUNMAP, start, end), self._mmaps[new_start]]
        if new_end > end:
            return [replace(old, start=end, end=new_end, file_page=old.file_page + end - start, grows=start)]
        return [Call(Op.MUNMAP, new_end, end)] if new_end < end else []


def _pages(address: int, length: int) -> tuple[int, int]:
    return address >> PAGE_SHIFT, -(-(address + length) // _PAGE)
