"""What one event of a scenario did, read from two snapshots, and a table of it that fits a mail."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lufjax.events import OP, MicroOp, Op, Violation

COLUMNS = ("#", "cpu", "event", "page table", "stale TLB entries", "debt", "IPIs", "verdict")
WIDTH = 120
_GAP = 2
_NARROWEST = 14
_WRAPPED = (3, 4, 5)
_FREE, _BATCH, _QUARANTINE = 0, 2, 5
_PRESENT, _WRITABLE, _DIRTY, _MARKER, _FRAME, _VMA = 0, 1, 3, 4, 5, 6
_STATE, _OWED, _TAG, _CLOCK = 0, 6, 7, 10


_PAGE_STEPS = (
    MicroOp.MAP, MicroOp.SET_PTE, MicroOp.CLEAR_PTE, MicroOp.WRITE_PROTECT, MicroOp.MAKE_CLEAN, MicroOp.FLUSH_PAGE, MicroOp.FILL, MicroOp.RETURN,
    MicroOp.PERMIT,
)  # fmt: skip
_OF_CURRENT = (
    Op.LOAD, Op.STORE, Op.MMAP, Op.MUNMAP, Op.MPROTECT, Op.MADVISE_DONTNEED, Op.MADVISE_FREE,
    Op.MREMAP, Op.FORK, Op.EXIT, Op.FAULT_INSTALL, Op.FAULT_FINISH,
)  # fmt: skip
"""Events of a page of the process that the CPU has loaded."""


@dataclass(frozen=True)
class StaleEntry:
    """A TLB entry that its page table entry no longer backs: absent, another frame, or no longer writable (dirty) for stores."""

    cpu: int
    process: int
    vpn: int
    frame: int
    stores_only: bool


@dataclass(frozen=True)
class EventView:
    """One event and what it left.

    Attributes:
        number: ``now`` of the event; entry: its entry in the file.
        page_table: the entry of the page it names and the entries it changed, in words.
        stale: stale TLB entries after it.
        debt: what is owed after it, in words.
        ipis: flush functions it ran for other CPUs.
        violations: classes it violated.
        verdict: the same in words; ``tolerated``, ``SIGSEGV``, ``not enabled``, ``no frame``, ``ok`` for an access without any.
    """

    number: int
    entry: int
    cpu: int
    words: str
    row: tuple[int, ...]
    page_table: tuple[str, ...]
    stale: tuple[StaleEntry, ...]
    debt: tuple[str, ...]
    ipis: int
    violations: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class Reading:
    """A machine between two events."""

    state: dict[str, Any]
    counters: dict[str, Any]
    violations: dict[str, Any]


def view(
    number: int, entry: int, words: str, row: Sequence[int], before: Reading, after: Reading, num_processes: int, rules: Mapping[str, Any]
) -> EventView:  # fmt: skip
    """Compare the machine before and after an event; ``rules`` are those of the policy, by word."""
    state = after.state
    violations = tuple(kind.name for kind in Violation if _seen(after, kind) > _seen(before, kind))
    return EventView(
        number=number, entry=entry, cpu=int(row[0]), words=words, row=tuple(int(x) for x in row),
        page_table=_page_table(row, before.state, state, num_processes), stale=stale_entries(state),
        debt=_debt(state, num_processes, rules),
        ipis=after.counters["nr_tlb_remote_flush_received"] - before.counters["nr_tlb_remote_flush_received"],
        violations=violations, verdict=_verdict(row, violations, before.counters, after.counters),
    )  # fmt: skip


def _seen(reading: Reading, kind: Violation) -> int:
    return reading.violations["loads"][kind] + reading.violations["stores"][kind]


def _verdict(row: Sequence[int], violations: tuple[str, ...], before: dict[str, Any], after: dict[str, Any]) -> str:
    if violations:
        return ", ".join(violations)
    grew = {
        "events_disabled": "not enabled", "segv": "SIGSEGV", "sigbus": "SIGBUS", "alloc_fail": "no frame", "pgmigrate_fail": "no frame",
        "tolerated": "tolerated",
    }  # fmt: skip
    for name, text in grew.items():
        if after[name] > before[name]:
            return text
    return "ok" if row[OP] in (Op.LOAD, Op.STORE) else ""


def stale_entries(state: dict[str, Any]) -> tuple[StaleEntry, ...]:
    """Stale TLB entries of a snapshot, each once for both levels."""
    found = set()
    for level in ("tlb1", "tlb2"):
        for cpu, sets in enumerate(state[level]):
            for process, vpn, frame, writable, dirty, *_ in (entry for ways in sets for entry in ways if entry is not None):
                pte = state["pages"][process][vpn]
                is_gone = not pte[_PRESENT] or pte[_FRAME] != frame
                if is_gone or (writable and dirty and not (pte[_WRITABLE] and pte[_DIRTY])):
                    found.add((cpu, process, vpn, frame, not is_gone))
    return tuple(StaleEntry(*entry) for entry in sorted(found))


def _page_table(row: Sequence[int], before: dict[str, Any], after: dict[str, Any], num_processes: int) -> tuple[str, ...]:
    """Page table entries of the page that the event names and of those that it changed."""
    shown = []
    for process, pages in enumerate(after["pages"]):
        for vpn, page in enumerate(pages):
            old = before["pages"][process][vpn]
            if _is_named(row, after, process, vpn) or page[: _VMA + 1] != old[: _VMA + 1]:
                shown.append(f"{_page(process, vpn, num_processes)} {_pte(page)}")
    return tuple(shown)


def _is_named(row: Sequence[int], state: dict[str, Any], process: int, vpn: int) -> bool:
    cpu, op, named, arg, _ = row
    if op in _OF_CURRENT:
        return named == vpn and state["loaded"][cpu] == process
    return (op in (Op.RECLAIM, Op.MIGRATE) or op in _PAGE_STEPS) and named == vpn and arg == process


def _pte(page: Sequence[int]) -> str:
    if page[_PRESENT]:
        return f"-> f{page[_FRAME]} {'rw' if page[_WRITABLE] else 'r'}{' dirty' if page[_DIRTY] else ''}"
    return f"{'marker' if page[_MARKER] else 'none'}{'' if page[_VMA] >= 0 else ', unmapped'}"


def _is_paid(state: dict[str, Any], frame: Sequence[Any], rules: Mapping[str, Any]) -> bool:
    """Whether the frame could be handed to a stranger now without a flush."""
    if frame[_STATE] != _FREE:
        return False
    if rules["debt_merge"] == "open_generation":
        return frame[_TAG] not in (0, state["ugen"]) or not (state["G"] or state["D"])
    owing = [cpu for cpu in range(len(state["covered"])) if frame[_OWED] >> cpu & 1]
    return rules["targets"] == "uncovered" and all(state["covered"][cpu] >= frame[_CLOCK] for cpu in owing)


def _debt(state: dict[str, Any], num_processes: int, rules: Mapping[str, Any]) -> tuple[str, ...]:
    """Everything that a later flush still has to pay, and the traces that mapping calls look at."""
    items = []
    for frame, row in enumerate(state["frames"]):
        if row[_OWED] and row[_STATE] in (_FREE, _BATCH, _QUARANTINE):
            is_lost = rules["debt_merge"] == "open_generation" and row[_STATE] == _FREE and not row[_TAG]
            items.append(f"f{frame} {'paid' if _is_paid(state, row, rules) else 'owes ' + cpu_list(row[_OWED])}{', tag lost' if is_lost else ''}")
    for cpu, taken in enumerate(state["taken"]):
        if taken is not None:
            items.append(f"f{taken[0]} taken by cpu{cpu}{', owes ' + cpu_list(taken[1]) if taken[1] else ''}")
    items += [f"f{frame} quarantined" for frame, *_ in state["quarantine"]]
    items += [f"{name}={cpu_list(state[name])}" for name in ("U", "D", "G") if state[name]]
    items += [f"vma{vma} flag" for vma, flag in enumerate(state["vma_flag"]) if flag]
    items += [
        f"{_page(process, vpn, num_processes)} marker"
        for process, pages in enumerate(state["pages"]) for vpn, page in enumerate(pages) if page[_MARKER]
    ]  # fmt: skip
    if rules["debt_scope"] == "mm_and_file":
        for name, words in (("mm", "p"), ("file", "file ")):
            for index, (owed, clock) in enumerate(zip(state[f"{name}_owed"], state[f"{name}_clock"], strict=True)):
                left = sum(1 << cpu for cpu, covered in enumerate(state["covered"]) if owed >> cpu & 1 and covered < clock)
                items += [f"{words}{index} owes {cpu_list(left)}"] if left else []
    for process in range(num_processes):
        if state["pending"][process] != state["flushed"][process]:
            items.append(f"pending{f' p{process}' if num_processes > 1 else ''}")
        if state["sweep"][process]:
            items.append(f"sweep={cpu_list(state['sweep'][process])}")
    return tuple(items)


def cpu_list(mask: int) -> str:
    """A CPU set as the kernel prints it: ``0-2,5``."""
    cpus = [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1]
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _page(process: int, vpn: int, num_processes: int) -> str:
    return f"p{process}:{vpn}" if num_processes > 1 else str(vpn)


def _stale_words(stale: Sequence[StaleEntry], num_processes: int) -> str:
    """Stale entries with the CPUs that hold the same one together: ``cpu0-2: 5->f3``."""
    masks: dict[str, int] = {}
    for entry in stale:
        words = f"{_page(entry.process, entry.vpn, num_processes)}->f{entry.frame}{' (stores)' if entry.stores_only else ''}"
        masks[words] = masks.get(words, 0) | 1 << entry.cpu
    return "; ".join(f"cpu{cpu_list(mask)}: {words}" for words, mask in masks.items())


def table(events: Sequence[EventView], num_processes: int) -> list[str]:
    """Lines of the timeline, at most ``WIDTH`` columns wide; a cell that is too wide continues on the next line."""
    rows = [
        (str(e.number), str(e.cpu), e.words, "; ".join(e.page_table), _stale_words(e.stale, num_processes), "; ".join(e.debt),
         str(e.ipis) if e.ipis else "", e.verdict)
        for e in events
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS))]
    while sum(widths) + _GAP * (len(widths) - 1) > WIDTH:
        widest = max(_WRAPPED, key=lambda column: widths[column])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    lines = [line for row in (COLUMNS, *rows) for line in _lines(row, widths)]
    return [lines[0], "-" * len(lines[0].ljust(sum(widths) + _GAP * (len(widths) - 1))), *lines[1:]]


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        textwrap.wrap(cell, width, break_long_words=False) if column in _WRAPPED else [cell]
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    height = max(1, *(len(cell) for cell in cells))
    gap = " " * _GAP
    return [
        gap.join((cell[line] if line < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for line in range(height)
    ]
