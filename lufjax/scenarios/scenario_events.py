"""Events in words, as a scenario file has them (``cpu0: munmap 0-3``), to event rows and back. Grammar: docs/SCENARIOS.md.

Range calls become page events and a GATHER_FINISH here, by the same expansion as in the workloads. What is mapped where is followed
through the list as if every event were enabled; that decides the VMA ids of ``mprotect`` and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lufjax.events import ANON, IDLE, Op, VmaFlag
from lufjax.workloads.expand import gather_calls, gather_pages, mmap_calls

PROTS = {"none": VmaFlag(0), "r": VmaFlag.READ, "rw": VmaFlag.READ | VmaFlag.WRITE}
KINDS = {
    "shared": VmaFlag.MAYWRITE | VmaFlag.SHARED, "readonly": VmaFlag.SHARED, "private": VmaFlag.MAYWRITE, "anon": VmaFlag.MAYWRITE | VmaFlag.ANON,
}  # fmt: skip
"""``readonly``: shared, of a file opened for reading only, so that it can never become writable."""
MAPPING_FIELDS = ("file", "prot", "flags")


class EventList:
    """Collects the rows of a scenario.

    Attributes:
        rows: event rows (cpu, op, vpn, arg, repeat).
        words: what each row does, in words.
        entries: for each row, the number of its entry in the file, from 1.
        vmas: flags by VMA id.
        page_vma, page_backing: ``int32[num_processes, num_vpns]``; before the first event, the initial mappings.
        mappers: file page -> the pages (process, vpn) that ever map it. has_fork: anonymous pages may have several mappers too.
    """

    def __init__(self, num_processes: int, num_vpns: int, num_file_pages: int, loaded: list[int]) -> None:
        self.num_processes, self.num_vpns, self.num_file_pages = num_processes, num_vpns, num_file_pages
        self.loaded = list(loaded)
        self.rows: list[list[int]] = []
        self.words: list[str] = []
        self.entries: list[int] = []
        self.vmas: list[int] = []
        self.page_vma = np.full((num_processes, num_vpns), -1, np.int32)
        self.page_backing = np.full((num_processes, num_vpns), ANON, np.int32)
        self.mappers: dict[int, set[tuple[int, int]]] = {}
        self.has_fork = False

    def map_pages(self, process: int, pages: Any, fields: Mapping[str, Any]) -> tuple[int, int, int, int]:
        """Give a range a VMA id of its own. Returns first vpn, number of pages, VMA id, first backing."""
        first, count = self._pages(pages)
        flags = _choice("flags", fields.get("flags", "shared"), tuple(KINDS))
        prot = _choice("prot", fields.get("prot", "rw" if flags == "anon" else "r"), tuple(PROTS))
        if flags == "readonly" and prot == "rw":
            raise ValueError("prot=rw: allowed with flags=readonly are none, r")
        backing = ANON
        if flags == "anon" and "file" in fields:
            raise ValueError(f"file={fields['file']}: flags=anon has no file")
        if flags != "anon":
            if "file" not in fields:
                raise ValueError("file: missing; allowed are file=NUMBER, or flags=anon")
            backing = _number("file", fields["file"], self.num_file_pages - count)
            for page in range(count):
                self.mappers.setdefault(backing + page, set()).add((process, first + page))
        vma = self._new_vma(int(PROTS[prot] | KINDS[flags]))
        self.page_vma[process, first : first + count] = vma
        self.page_backing[process, first : first + count] = ANON if backing == ANON else np.arange(backing, backing + count)
        return first, count, vma, backing

    def add(self, entry: int, cpu: int, text: str) -> None:
        """Add one entry of the file: an event, or several that nothing falls between, with ``;`` between them.

        Raises:
            ValueError: names the word, its value and what is allowed.
        """
        for event in str(text).split(";"):
            self._add_event(entry, cpu, event)

    def _add_event(self, entry: int, cpu: int, text: str) -> None:
        word, *arguments = text.split() or [""]
        if word not in GRAMMAR:
            raise ValueError(f"{word or 'an empty event'}: no such event; allowed are {', '.join(GRAMMAR)}")
        usage, expand = GRAMMAR[word]
        try:
            rows, words = expand(self, cpu, Op[word.upper()], arguments)
        except ValueError as error:
            raise ValueError(f"{error} (usage: {usage})") from error
        self.rows += [[cpu, *(int(x) for x in row)] for row in rows]
        self.words += words
        self.entries += [entry] * len(rows)

    def _new_vma(self, flags: int) -> int:
        self.vmas.append(flags)
        return len(self.vmas) - 1

    def _pages(self, text: Any) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(text))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < self.num_vpns:
            raise ValueError(f"pages={text}: allowed are a page or a range within 0-{self.num_vpns - 1}")
        return first, last - first + 1

    def _page(self, text: str) -> int:
        first, count = self._pages(text)
        if count > 1:
            raise ValueError(f"page={text}: allowed is one page")
        return first

    def _access(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        pages, *more = arguments or [""]
        repeat = 1
        if more:
            match = re.fullmatch(r"x([1-9]\d{0,8})", more[0])
            if not match or len(more) > 1:
                raise ValueError(f"{' '.join(more)}: allowed is xN, the number of accesses")
            repeat = int(match[1])
        first, count = self._pages(pages)
        suffix = "" if repeat == 1 else f" x{repeat}"
        vpns = range(first, first + count)
        return [[op, v, 0, repeat] for v in vpns], [f"{op.name.lower()} {v}{suffix}" for v in vpns]

    def _fault_install(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        page, *more = arguments or [""]
        if more not in ([], ["store"]):
            raise ValueError(f"{' '.join(more)}: allowed is store")
        return [[op, self._page(page), len(more), 0]], [" ".join(["fault_install", page, *more])]

    def _fault_finish(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        text = " ".join(arguments)
        return [[op, self._page(text), 0, 0]], [f"fault_finish {text}"]

    def _mmap(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        pages, *fields = arguments or [""]
        first, count, vma, backing = self.map_pages(self._process(cpu), pages, _fields(fields, MAPPING_FIELDS))
        rows, _ = mmap_calls(first, np.array([count]), vma, backing)
        return rows, [f"mmap {vpn} {self._mapping_words(vma, arg)}" for _, vpn, arg, _ in rows.tolist()]

    def _mapping_words(self, vma: int, backing: int) -> str:
        """A mapping of one page as it is written in a file."""
        flags = VmaFlag(self.vmas[vma])
        prot = "rw" if VmaFlag.WRITE in flags else "r" if VmaFlag.READ in flags else "none"
        if backing == ANON:
            return f"flags=anon prot={prot}"
        kind = "private" if VmaFlag.SHARED not in flags else "shared" if VmaFlag.MAYWRITE in flags else "readonly"
        return f"file={backing} prot={prot}{'' if kind == 'shared' else f' flags={kind}'}"

    def _gather(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        pages, *more = arguments or [""]
        fields = _fields([word for word in more if word not in ("open", "tables")], ("prot",) if op is Op.MPROTECT else ())
        if "open" in more and "tables" in more:
            raise ValueError("open tables: allowed is one of them; gather_finish takes tables too")
        first, count = self._pages(pages)
        process = self._process(cpu)
        rows, _ = gather_calls(op, first, np.array([count]), free_tables=int("tables" in more))
        name = op.name.lower()
        words = [f"{name} {vpn}" if code == op else f"gather_finish{' tables' if arg else ''}" for code, vpn, arg, _ in rows.tolist()]
        if op is Op.MPROTECT:
            prot = _choice("prot", fields.get("prot"), tuple(PROTS))
            rows[:count, 2] = self._protect(process, first, count, prot)
            words[:count] = [f"{text} prot={prot}" for text in words[:count]]
        if op is Op.MUNMAP:
            self.page_vma[process, first : first + count] = -1
        return _begun(rows, words) if "open" in more else (rows, words)

    def _mremap(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        pages, *more = arguments or [""]
        fields = _fields([word for word in more if word != "open"], ("to",))
        first, count = self._pages(pages)
        if "to" not in fields:
            raise ValueError("to: missing; allowed is to=PAGE")
        process, to = self._process(cpu), _number("to", fields["to"], self.num_vpns - count)
        rows, _ = gather_calls(op, first, np.array([count]))
        rows[:count, 2] = np.arange(to, to + count)
        for vpn, new in zip(range(first, first + count), range(to, to + count), strict=True):
            self.page_vma[process, new], self.page_vma[process, vpn] = self.page_vma[process, vpn], -1
            self.page_backing[process, new] = self.page_backing[process, vpn]
            self._note_mapper(process, new)
        words = [f"mremap {vpn} to={arg}" if code == op else "gather_finish" for code, vpn, arg, _ in rows.tolist()]
        return _begun(rows, words) if "open" in more else (rows, words)

    def _note_mapper(self, process: int, vpn: int) -> None:
        """A page has got the backing that it has; a file page counts who ever maps it."""
        backing = int(self.page_backing[process, vpn])
        if backing != ANON:
            self.mappers.setdefault(backing, set()).add((process, vpn))

    def _fork(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        pages, *more = arguments or [""]
        fields = _fields([word for word in more if word != "open"], ("to",))
        first, count = self._pages(pages)
        if "to" not in fields:
            raise ValueError("to: missing; allowed is to=PROCESS")
        process, child = self._process(cpu), _number("to", fields["to"], self.num_processes - 1)
        if child == process:
            raise ValueError(f"to={child}: allowed is another process")
        rows, _ = gather_calls(op, first, np.array([count]))
        self.has_fork = True
        new: dict[int, int] = {}
        for row, vpn in zip(rows, range(first, first + count), strict=False):
            old = int(self.page_vma[process, vpn])
            if old < 0:
                raise ValueError(f"pages={vpn}: nothing is mapped there")
            if old not in new:
                new[old] = self._new_vma(self.vmas[old])
            row[2:] = child, new[old]
            self.page_vma[child, vpn], self.page_backing[child, vpn] = new[old], self.page_backing[process, vpn]
            self._note_mapper(child, vpn)
        words = [f"fork {vpn} to={arg}" if code == op else "gather_finish" for code, vpn, arg, _ in rows.tolist()]
        return _begun(rows, words) if "open" in more else (rows, words)

    def _exit(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        if arguments:
            raise ValueError(f"{' '.join(arguments)}: nothing more is allowed")
        process = self._process(cpu)
        mapped = np.flatnonzero(self.page_vma[process] >= 0)
        if not mapped.size:
            raise ValueError(f"process {process} maps nothing")
        self.page_vma[process] = -1
        self.loaded[cpu] = IDLE
        rows = gather_pages(op, mapped, 0, 1)
        return rows, [f"exit {vpn}" if code == op else f"gather_finish{' tables' if arg else ''}" for code, vpn, arg, _ in rows.tolist()]

    def _protect(self, process: int, first: int, count: int, prot: str) -> list[int]:
        """VMA ids after an mprotect: one new id for each VMA in the range."""
        new: dict[int, int] = {}
        for vpn in range(first, first + count):
            old = int(self.page_vma[process, vpn])
            if old < 0:
                raise ValueError(f"pages={vpn}: nothing is mapped there")
            if prot == "rw" and not self.vmas[old] & VmaFlag.MAYWRITE:
                raise ValueError(f"pages={vpn}: mapped with flags=readonly; allowed are prot=none, prot=r")
            if old not in new:
                new[old] = self._new_vma(self.vmas[old] & ~int(PROTS["rw"]) | int(PROTS[prot]))
            self.page_vma[process, vpn] = new[old]
        return self.page_vma[process, first : first + count].tolist()

    def _finish(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        if arguments not in ([], ["tables"]):
            raise ValueError(f"{' '.join(arguments)}: allowed is tables")
        return [[op, 0, len(arguments), 0]], [" ".join(["gather_finish", *arguments])]

    def _file(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        page = _number("file", " ".join(arguments), self.num_file_pages - 1)
        return [[op, 0, page, 0]], [f"{op.name.lower()} {page}"]

    def _reclaim(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        if not arguments:
            return [[op, 0, -1, 0]], ["reclaim"]
        return self._of_process(op, arguments, ", or nothing for the oldest page")

    def _drain(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        if arguments not in ([], ["open"]):
            raise ValueError(f"{' '.join(arguments)}: allowed is open")
        return [[op, 0, len(arguments), 0]], [" ".join(["reclaim_flush", *arguments])]

    def _migrate(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        return self._of_process(op, arguments, "")

    def _of_process(self, op: Op, arguments: list[str], more: str) -> tuple[Any, list[str]]:
        if len(arguments) != 3 or arguments[1] != "of":
            raise ValueError(f"{' '.join(arguments) or 'nothing'}: allowed is PAGES of PROCESS{more}")
        first, count = self._pages(arguments[0])
        process = _number("process", arguments[2], self.num_processes - 1)
        vpns = range(first, first + count)
        return [[op, v, process, 0] for v in vpns], [f"{op.name.lower()} {v} of {process}" for v in vpns]

    def _switch(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        text = " ".join(arguments)
        process = IDLE if text == "idle" else _number("process", text, self.num_processes - 1, more="idle or ")
        self.loaded[cpu] = process if process != IDLE else self.loaded[cpu]
        return [[op, 0, process, 0]], [f"switch {text}"]

    def _plain(self, cpu: int, op: Op, arguments: list[str]) -> tuple[Any, list[str]]:
        if arguments:
            raise ValueError(f"{' '.join(arguments)}: nothing more is allowed")
        return [[op, 0, 0, 0]], [op.name.lower()]

    def _process(self, cpu: int) -> int:
        if self.loaded[cpu] == IDLE:
            raise ValueError(f"cpu{cpu}: has no process loaded")
        return self.loaded[cpu]


def _number(field: str, value: Any, last: int, more: str = "") -> int:
    if not re.fullmatch(r"\d+", str(value)) or int(value) > last:
        raise ValueError(f"{field}={value}: allowed are {more}0 to {last}")
    return int(value)


def _choice(field: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{field}{': missing;' if value is None else f'={value}:'} allowed are {', '.join(allowed)}")
    return value


def _fields(words: list[str], allowed: tuple[str, ...]) -> dict[str, str]:
    fields = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in allowed:
            raise ValueError(f"{word}: allowed are {', '.join(f'{name}=...' for name in allowed) or 'open, tables'}")
        fields[key] = value
    return fields


Expand = Callable[[EventList, int, Op, list[str]], tuple[Any, list[str]]]
_GATHER_USAGE = "PAGES [tables | open]"
def _begun(rows: Any, words: list[str]) -> tuple[Any, list[str]]:
    """A call without its end."""
    return rows[:-1], words[:-1]


GRAMMAR: dict[str, tuple[str, Expand]] = {
    "load": ("load PAGES [xN]", EventList._access),
    "store": ("store PAGES [xN]", EventList._access),
    "mmap": ("mmap PAGES file=F | flags=anon [prot=none|r|rw] [flags=shared|readonly|private|anon]", EventList._mmap),
    "munmap": (f"munmap {_GATHER_USAGE}", EventList._gather),
    "mprotect": (f"mprotect {_GATHER_USAGE} prot=none|r|rw", EventList._gather),
    "madvise_dontneed": (f"madvise_dontneed {_GATHER_USAGE}", EventList._gather),
    "madvise_free": (f"madvise_free {_GATHER_USAGE}", EventList._gather),
    "mremap": ("mremap PAGES to=PAGE [open]", EventList._mremap),
    "fork": ("fork PAGES to=PROCESS [open]", EventList._fork),
    "exit": ("exit", EventList._exit),
    "gather_finish": ("gather_finish [tables]", EventList._finish),
    "file_write": ("file_write F", EventList._file),
    "remote_write": ("remote_write F", EventList._file),
    "truncate": ("truncate F", EventList._file),
    "migrate": ("migrate PAGES of PROCESS", EventList._migrate),
    "reclaim": ("reclaim [PAGES of PROCESS]", EventList._reclaim),
    "reclaim_flush": ("reclaim_flush [open]", EventList._drain),
    "alloc_foreign": ("alloc_foreign", EventList._plain),
    "free_foreign": ("free_foreign", EventList._plain),
    "switch": ("switch PROCESS | idle", EventList._switch),
    "tick": ("tick", EventList._plain),
    "nop": ("nop", EventList._plain),
    "alloc_atomic": ("alloc_atomic", EventList._plain),
    "take_off": ("take_off", EventList._plain),
    "discharge": ("discharge", EventList._plain),
    "fault_install": ("fault_install PAGE [store]", EventList._fault_install),
    "fault_finish": ("fault_finish PAGE", EventList._fault_finish),
}
"""Word -> how it is written, and what makes rows (without the CPU) and words of it."""

assert {word.upper() for word in GRAMMAR} == set(Op.__members__)
