"""A finding as a litmus file: what each event of its scenario did to PTEs, TLBs, frames, contents and promises, as micro-steps (docs/LITMUS.md).

The file is run before it is kept: it has to show what the scenario showed, at its last access and nowhere before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lufjax import state as st
from lufjax.events import Op, Violation, VmaFlag
from lufjax.presets import policy_words
from lufjax.scenarios import scenario as scenarios
from lufjax.scenarios.litmus import run_litmus
from lufjax.scenarios.litmus_file import MARK, MAX_CPU, MAX_FRAME, MAX_OBJECT, MAX_PAGE, MAX_SPACES, Litmus, load_litmus
from lufjax.scenarios.scenario_file import Scenario, load_scenario
from lufjax.scenarios.timeline import EventView

NO_ACCESS = "ATOMIC_FLUSH is not an access"
COPIED = "no micro-step copies a page on write that others go on using"
OLD_READ = "no micro-step reads a page in at an old version"
TOO_LARGE = "the machine is larger than a litmus file may be"
EARLIER = "another class shows before it"
OTHERWISE = "its micro-steps alone do not show it at the last access and nowhere before"
REASONS = (NO_ACCESS, COPIED, OLD_READ, TOO_LARGE, EARLIER, OTHERWISE)
"""Why a finding is not written."""
LIMITS = {
    "num_cpus": MAX_CPU + 1, "num_processes": MAX_SPACES, "num_vpns": MAX_PAGE + 1, "num_frames": MAX_FRAME, "num_file_pages": MAX_OBJECT,
    "num_anon": MAX_OBJECT,
}  # fmt: skip
"""Largest sizes of a machine that a litmus file can name, with a frame and an object more."""

PRESENT, WRITABLE, DIRTY, FRAME, VMA, BACKING, PROMISED, MAY_WRITE, PROMISE, EPOCH = 0, 1, 3, 5, 6, 7, 8, 9, 10, 11
STATE, HANDED, CONTENT, VERSION = range(4)
TRUTH, HOME, HARVESTED, PARENT = 0, 3, 4, 5
FILLED = 5
"""Columns of a snapshot: of a page, a frame, a backing, a TLB entry."""

State = dict[str, Any]
PageId = tuple[int, int]


class Unwritable(Exception):
    """A finding that has no litmus file; one of :data:`REASONS`."""


def write_litmus(paths: Sequence[Path], policy: str) -> list[str | None]:
    """Write a litmus file beside each scenario of a finding. None where it is written, else why not, of :data:`REASONS`."""
    reasons: list[str | None] = [None] * len(paths)
    written = {}
    for number, path in enumerate(paths):
        own, scenario = path.with_suffix(".litmus"), load_scenario(path)
        try:
            own.write_text(litmus_text(scenario, policy))
            written[number] = _read(own)
        except Unwritable as reason:
            reasons[number] = str(reason)
    for number, result in zip(written, run_litmus(list(written.values())) if written else (), strict=True):
        if not result.holds:
            reasons[number] = OTHERWISE
    for path, reason in zip(paths, reasons, strict=True):
        if reason is not None:
            path.with_suffix(".litmus").unlink(missing_ok=True)
    return reasons


def _read(path: Path) -> Litmus:
    try:
        return load_litmus(path)
    except ValueError as error:
        raise Unwritable(OTHERWISE) from error


def litmus_text(scenario: Scenario, policy: str) -> str:
    """The micro-steps of a scenario under a policy, up to the access that shows what the file expects.

    Raises:
        Unwritable: they cannot be written.
        ValueError: the scenario does not show it.
    """
    (kind,) = scenario.expected(policy)
    if kind == Violation.ATOMIC_FLUSH.name:
        raise Unwritable(NO_ACCESS)
    if any(scenario.sizes[name] > limit for name, limit in LIMITS.items()):
        raise Unwritable(TOO_LARGE)
    writer = _Writer(scenario)
    for event, before, after in scenarios.steps(scenario, policy_words(policy)):
        writer.event(event, before.state, after.state)
        if event.violations:
            if kind not in event.violations:
                raise Unwritable(EARLIER)
            head = [f"# {scenario.title}", f"# source: {scenario.source}", f"# expect: {' '.join(event.violations)}"]
            return "\n".join([*head, *writer.lines]) + "\n"
    raise ValueError(f"{scenario.path}: shows no {kind} under {policy}")


@dataclass
class _Page:
    """A page as the micro-steps written so far left it; ``promise``: backing and whether it may be written."""

    present: bool = False
    writable: bool = False
    dirty: bool = False
    frame: int = -1
    backing: int = -1
    promise: tuple[int, bool] | None = None


class _Writer:
    """Micro-steps that lead from the machine before an event to the machine after it; a page and its backing from its first PTE on.

    Attributes:
        lines: what is written so far.
        pages, homes, harvested, used, freed: the litmus machine after it: pages; object -> its frame; objects whose later stores through
            an older entry are lost; frames that held an object; those of them that are free.
        names: private copies that go by the name of the object that they were copied from. left: those objects, which have no name any more.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario, self._num_files, self._spare = scenario, scenario.trace.num_file_pages, scenario.sizes["num_frames"]
        self.lines: list[str] = []
        self.pages: dict[PageId, _Page] = {}
        self.homes: dict[int, int] = {}
        self.harvested: set[int] = set()
        self.used: set[int] = set()
        self.freed: set[int] = set()
        self.names: dict[int, str] = {}
        self.left: set[int] = set()
        self.running: dict[int, int] = {}
        self.accessed = False

    def event(self, event: EventView, before: State, after: State) -> None:
        """Write one event."""
        self.lines.append(f"# cpu{event.cpu}: {event.words}")
        if event.verdict == "not enabled":
            return
        known = set(self.homes)
        self._copy_on_write(event, after)
        self._clear(after)
        self._flush(before, after)
        self._take_and_place(event, after)
        self._write(event, before, after, known)
        self._map(event, before, after)
        if event.row[1] in (Op.LOAD, Op.STORE) and (event.violations or event.verdict in ("ok", "tolerated")):
            self._access(event, before)

    def _say(self, *words: str) -> None:
        self.lines.append(" ".join(words))

    def _name(self, backing: int) -> str:
        if backing in self.left:
            raise Unwritable(COPIED)
        own = f"file:{backing}" if backing < self._num_files else f"anon:{backing - self._num_files}"
        return self.names.get(backing, own)

    def _copy_on_write(self, event: EventView, after: State) -> None:
        """A page goes on as a private copy while TLBs still hold the file page: in the litmus file the object itself moves."""
        for (process, vpn), page in self.pages.items():
            new = after["pages"][process][vpn]
            parent = after["backings"][new[BACKING]][PARENT]
            is_copy = new[VMA] >= 0 and parent == page.backing and new[PROMISE] == new[BACKING] != parent and new[EPOCH] < event.number
            if not is_copy or not any(entry[:2] == [process, vpn] and entry[FILLED] < event.number for _, entry in _entries(after)):
                continue
            others = [other for other in self.pages.values() if other is not page]
            if any(parent == other.backing or (other.promise and parent == other.promise[0]) for other in others):
                raise Unwritable(COPIED)
            self.names[new[BACKING]] = self._name(parent)
            self.left.add(parent)
            self.homes[new[BACKING]] = self.homes.pop(parent)
            self.harvested.discard(parent)
            page.backing = new[BACKING]
            if page.promise and page.promise[0] == parent:
                page.promise = (new[BACKING], page.promise[1])

    def _clear(self, after: State) -> None:
        """PTEs that go, or go to another frame."""
        for (process, vpn), page in self.pages.items():
            new = after["pages"][process][vpn]
            if page.present and not (new[PRESENT] and new[FRAME] == page.frame):
                self._say("clear", _page(process, vpn))
                page.present = page.writable = page.dirty = False

    def _flush(self, before: State, after: State) -> None:
        """TLB entries that go; a flush that finds none is not written, and a walk replaces its own."""
        kept = {(cpu, *entry[:2]) for cpu, entry in _entries(after)}
        for cpu, process, vpn in sorted({(cpu, *entry[:2]) for cpu, entry in _entries(before)} - kept):
            self._say("flush", f"c{cpu}", _page(process, vpn))

    def _free(self, frame: int) -> None:
        self._say("free", f"f{frame}")
        self.freed.add(frame)

    def _take_and_place(self, event: EventView, after: State) -> None:
        """Frames that leave a use, are handed out, and get an object; in this order, because one frame may do all of it."""
        for backing, home in self.homes.items():
            if home >= 0 and after["backings"][backing][HOME] < 0:
                self._free(home)
                self.homes[backing] = -1
        for frame in sorted(self.used):
            state, handed, content, _ = after["frames"][frame][:4]
            if handed == event.number:
                self._say("alloc", f"f{frame}", self._name(content) if content >= 0 else "slab" if state == st.FOREIGN else "cleared")
                self.freed.discard(frame)
        for backing, home in self.homes.items():
            new = after["backings"][backing][HOME]
            if new not in (home, -1):
                self._place(backing, after, "copy" if home >= 0 else "place")
        for frame in sorted(self.used - self.freed):
            if after["frames"][frame][STATE] == st.FREE:
                self._free(frame)

    def _place(self, backing: int, after: State, word: str = "place") -> None:
        frame, truth = after["backings"][backing][HOME], after["backings"][backing][TRUTH]
        if after["frames"][frame][CONTENT : VERSION + 1] != [backing, truth]:
            raise Unwritable(OLD_READ)
        self._say(word, self._name(backing), f"f{frame}")
        self.homes[backing] = frame
        self.harvested.discard(backing)
        self.used.add(frame)
        self.freed.discard(frame)

    def _write(self, event: EventView, before: State, after: State, known: set[int]) -> None:
        """Contents that change, but for a store of the event itself, and what is written out."""
        own: set[int] = set()
        if event.row[1] == Op.STORE:
            page = after["pages"][before["loaded"][event.cpu]][event.row[2]]
            own = {page[BACKING], page[PROMISE]}
        for backing in sorted(known & set(self.homes)):
            old, new = before["backings"][backing], after["backings"][backing]
            bumps = new[TRUTH] - old[TRUTH]
            for _ in range(bumps - 1 if backing in own else bumps):
                self._say("fwrite", self._name(backing))
            if new[HARVESTED] and backing not in self.harvested:
                self._say("snap", self._name(backing))
                self.harvested.add(backing)
            elif not new[HARVESTED] and backing in self.harvested:
                self.harvested.discard(backing)
                if backing not in own and new[HOME] >= 0:
                    self._place(backing, after)

    def _map(self, event: EventView, before: State, after: State) -> None:
        """Mappings, PTEs and promises."""
        for process, row in enumerate(after["pages"]):
            for vpn, new in enumerate(row):
                if (process, vpn) not in self.pages and not new[PRESENT]:
                    continue
                page = self.pages.setdefault((process, vpn), _Page())
                named = event.row[1] == Op.MMAP and event.row[2] == vpn and before["loaded"][event.cpu] == process
                spare = False
                if new[VMA] >= 0 and (named or new[BACKING] != page.backing):
                    spare = self._map_page(_page(process, vpn), page, new, after)
                self._set(_page(process, vpn), page, new)
                self._promise(_page(process, vpn), page, new, event, before)
                if spare:
                    self._free(self._spare)

    def _map_page(self, name: str, page: _Page, new: list[int], after: State) -> bool:
        """A page maps its backing; one that no frame holds is in a spare frame for that moment."""
        backing = new[BACKING]
        home = after["backings"][backing][HOME]
        if home < 0:
            self._say("place", self._name(backing), f"f{self._spare}")
            self.homes[backing] = -1
        elif self.homes.get(backing, -1) != home:
            self._place(backing, after)
        writable = bool(self._scenario.trace.vmas[new[VMA]] & VmaFlag.WRITE)
        if new[PROMISED] and new[PROMISE] == backing:
            writable = bool(new[MAY_WRITE])
        self._say("map", name, self._name(backing), _right(writable))
        page.present, page.frame, page.writable, page.dirty, page.backing = True, home if home >= 0 else self._spare, writable, False, backing
        if not self.accessed:
            page.promise = (backing, writable)
        return home < 0

    def _set(self, name: str, page: _Page, new: list[int]) -> None:
        """The PTE becomes what it is after the event."""
        if not new[PRESENT]:
            if page.present:
                self._say("clear", name)
        elif not page.present or page.frame != new[FRAME] or new[WRITABLE] > page.writable:
            self._say("set", name, f"f{new[FRAME]}", _right(new[WRITABLE]))
        else:
            if page.writable > new[WRITABLE]:
                self._say("wp", name)
            if page.dirty > new[DIRTY]:
                self._say("mkclean", name)
        page.present, page.writable, page.dirty, page.frame = bool(new[PRESENT]), bool(new[WRITABLE]), bool(new[DIRTY]), new[FRAME]

    def _promise(self, name: str, page: _Page, new: list[int], event: EventView, before: State) -> None:
        """Calls that returned in the event."""
        stepped, promise = new[EPOCH] == event.number, (new[PROMISE], bool(new[MAY_WRITE]))
        if not new[PROMISED]:
            if stepped or page.promise:
                gather = before["gather"][event.cpu]
                self._say("ret", "move" if gather and gather[0] == Op.MREMAP else "munmap", name)
                page.backing, page.promise = -1, None
            return
        if promise[0] != page.backing:
            return
        if page.promise is None or page.promise[0] != promise[0] or (stepped and event.row[1] == Op.MMAP):
            self._say("ret mmap", name)
        elif stepped:
            self._say("ret dontneed", name)
        if page.promise and page.promise[0] == promise[0] and page.promise[1] != promise[1]:
            self._say("ret", _right(promise[1]), name)
        page.promise = promise

    def _access(self, event: EventView, before: State) -> None:
        cpu, process = event.cpu, before["loaded"][event.cpu]
        if self.running.get(cpu) != process:
            self._say("switch", f"c{cpu}", _space(process))
            self.running[cpu] = process
        mark = f"   {MARK} {' '.join(event.violations)}" if event.violations else ""
        self._say("load" if event.row[1] == Op.LOAD else "store", f"c{cpu}", _page(process, event.row[2]) + mark)
        self.accessed = True


def _entries(state: State) -> list[tuple[int, list[int]]]:
    """Every TLB entry with its CPU: process, vpn, frame, writable, dirty, filled, used."""
    return [
        (cpu, entry) for level in ("tlb1", "tlb2") for cpu, sets in enumerate(state[level]) for ways in sets for entry in ways if entry is not None
    ]  # fmt: skip


def _space(process: int) -> str:
    return chr(ord("A") + process)


def _page(process: int, vpn: int) -> str:
    return f"{_space(process)}.p{vpn}"


def _right(writable: int) -> str:
    return "rw" if writable else "ro"
