"""Breadth-first search over all states of a tiny machine: which orders of events violate, and how short is the shortest of each kind.

A level is all states that the same number of events reaches first. Every state of a level is followed by every entry of the alphabet, in
batches on all cores; what is new is the next level. A state in which a violation just happened is not followed further.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from lufjax.events import Violation
from lufjax.policy import FlushPolicy
from lufjax.search.alphabet import Alphabet, check_policy
from lufjax.search.expander import Batch
from lufjax.search.findings import Finding, Findings
from lufjax.search.key_set import KeySet
from lufjax.search.storage import Level, LevelWriter, Storage
from lufjax.search.successors import Machine, Room, Strayed

PART = 4096
"""States of a level that are looked at together to see what varies."""
SPECIALISE = 300_000
"""Transitions after which keys and rows are made shorter (see docs/EXPLORE.md)."""
AHEAD = 1
"""Batches that are ready or waiting, beside one for each core."""
SAMPLE = 64
"""States of each level that are kept to see which rules decide something."""


@dataclass(frozen=True)
class Limits:
    """Where a search ends if the space does not: after so many levels, states, or seconds (looked at between levels and batches)."""

    levels: int = 1000
    states: int = 1_000_000
    seconds: float = float("inf")
    until_violation: bool = False


@dataclass
class Coverage:
    """What was covered.

    Attributes:
        states: distinct states, the first one included. transitions: enabled events that were tried. tried: events that were tried.
        levels: longest sequence looked at. per_level: new states of each level.
        exhausted: whether every reachable state was followed by every entry.
        stopped: the limit that ended the search, empty if none did.
        seconds: of this process and of those that it goes on from.
        used: ``int64[entries]``, how often each entry was enabled. pairs: ``int64[entries, entries]``, followed by.
        violating: transitions that violated.
    """

    states: int = 1
    transitions: int = 0
    tried: int = 0
    violating: int = 0
    levels: int = 0
    per_level: list[int] = field(default_factory=list)
    exhausted: bool = False
    stopped: str = ""
    seconds: float = 0.0
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))


@dataclass
class Result:
    """Findings, shortest first; what was covered; the machine; and some states of each level, ``int32[n, width]``."""

    findings: list[Finding]
    coverage: Coverage
    machine: Machine
    samples: np.ndarray


Report = Callable[[Coverage, float, int], None]
"""Called with what is covered, the share of the level that is done, and how many findings there are."""


def explore(
    alphabet: Alphabet, policy: FlushPolicy, limits: Limits, *, symmetry: bool = True, storage: Storage | None = None, report: Report | None = None,
    machine: Machine | None = None, backend: str = "native",
) -> Result:  # fmt: skip
    """Search level by level.

    Args:
        symmetry: count states that differ in the names of frames, CPUs and pages once.
        storage: where levels are kept, and whose last finished level is gone on from; memory if None.
        machine: one of this alphabet and symmetry, to save compiling it again. backend: what another runs on.

    Raises:
        ValueError: the policy depends on time, the machine is too small for an event, or was made for shorter sequences; one line.
    """
    check_policy(policy, limits.levels * alphabet.rows_per_entry)
    if machine is None or not machine.can_have(policy):
        machine = Machine(alphabet, policy, limits.levels, symmetry=symmetry, backend=backend)
    if machine.depth < limits.levels:
        raise ValueError(f"machine: made for sequences of {machine.depth} events; levels={limits.levels}")
    return _Search(machine.with_policy(policy), limits, storage or Storage(None), report).run()


RINGS = ("free_ring", "slow_ring", "pcp_ring", "quarantine")
"""Arrays of the state whose slots are used in turn."""


class _Search:
    def __init__(self, machine: Machine, limits: Limits, storage: Storage, report: Report | None) -> None:
        self._limits, self._storage, self._report, self._general, self._machine = limits, storage, report, machine, machine
        self._form = 0
        self._num_entries = len(machine.alphabet.rows)
        self._coverage = Coverage(used=np.zeros(self._num_entries, np.int64), pairs=np.zeros((self._num_entries, self._num_entries), np.int64))
        self._findings = Findings(machine.alphabet, machine.names)
        self._samples: list[np.ndarray] = [machine.start[:0]]
        self._began = time.monotonic()
        self._rooms: tuple[Machine, SimpleQueue[Room]] | None = None

    def run(self) -> Result:
        level = self._start()
        with ThreadPoolExecutor(self._machine.workers) as pool:
            while not self._over(level):
                level = self._expand(pool, level)
        self._clock()
        return Result(self._findings.shortest(self._storage), self._coverage, self._general, np.concatenate(self._samples))

    def _start(self) -> Level:
        """The last finished level that the storage has, or the start."""
        facts = self._storage.facts()
        if facts is None:
            self._keys = KeySet(self._machine.key_width, self._storage.keys_path(0))
            self._keys.add(self._machine.keys(self._machine.start))
            return Level([self._machine.start], np.full(1, -1, np.int64))
        self._form = facts["form"]
        if facts["varies"] is not None:
            self._machine = self._general.with_varying(np.isin(np.arange(self._general.width), facts["varies"]))
        level = self._storage.load(facts, self._machine.width)
        self._keys = KeySet(self._machine.key_width, self._storage.keys_path(self._form))
        self._keys.restore(facts["coverage"]["states"])
        steps = self._storage.steps()
        self._findings.restore(facts["findings"], steps["state"], steps["entry"], facts["coverage"]["per_level"])
        saved_coverage = facts["coverage"]
        arrays: dict[str, Any] = {name: np.array(saved_coverage[name], np.int64) for name in ("used", "pairs")}
        self._coverage = Coverage(**saved_coverage | arrays)
        self._began -= self._coverage.seconds
        return level

    def _over(self, level: Level) -> bool:
        c, limits = self._coverage, self._limits
        self._clock()
        c.exhausted = len(level) == 0
        if c.exhausted:
            return True
        ends = {
            "levels": c.levels >= limits.levels, "states": c.states >= limits.states, "seconds": c.seconds >= limits.seconds,
            "until=violation": limits.until_violation and bool(self._findings.found),
        }  # fmt: skip
        c.stopped = next((name for name, reached in ends.items() if reached), "")
        return bool(c.stopped)

    def _clock(self) -> None:
        self._coverage.seconds = time.monotonic() - self._began

    def _expand(self, pool: ThreadPoolExecutor, level: Level) -> Level:
        """All successors of a level; those not seen before are the next one."""
        self._samples.append(self._machine.whole(level.sample(SAMPLE)))
        if self._machine is self._general and self._coverage.transitions >= SPECIALISE:
            level = self._specialise(self._varied(level), level)
        while True:
            before, found = (deepcopy(self._coverage), self._findings.copy()), self._storage.writer()
            try:
                self._follow(pool, level, found)
                break
            except _StrayedFrom as strayed:
                found.drop()
                self._coverage, self._findings = before
                level = self._specialise(self._machine.varies | self._general.arrays_of(strayed.varies), level)

        c = self._coverage
        c.per_level.append(self._keys.count - c.states)
        c.levels, c.states = c.levels + 1, self._keys.count
        varies = None if self._machine is self._general else np.flatnonzero(self._machine.varies).tolist()
        return self._storage.save(found, {"coverage": _as_facts(c), "findings": self._findings.as_facts(), "form": self._form, "varies": varies})

    def _varied(self, level: Level) -> np.ndarray:
        """``bool[elements]``: what differs from the start in a level or in the samples of those before; a ring, which fills slot by slot, whole."""
        seen = [*self._samples, *(rows for _, rows, _ in level.parts(PART))]
        varies = np.any([(rows != self._general.start).any(0) for rows in seen], axis=0)
        rings = np.zeros_like(varies)
        for name in RINGS:
            rings[self._general.column(name)] = True
        return varies | self._general.arrays_of(varies & rings)

    def _specialise(self, varies: np.ndarray, level: Level) -> Level:
        """Go on with keys and rows of what varies: the keys of all states and the rows of the level that is next to be followed."""
        old, new = self._machine, self._general.with_varying(varies)
        self._form += 1
        self._machine = new
        convert = partial(new.keys_from, old)
        self._keys = self._keys.converted(self._coverage.states, new.key_width, convert, self._storage.keys_path(self._form))
        return level.in_form(lambda rows: new.rows_of(old.whole(rows)))

    def _rooms_for(self, n: int) -> SimpleQueue[Room]:
        """Memory for all batches that are in flight; the same for every level, because new memory costs time."""
        machine = self._machine
        if self._rooms is None or self._rooms[0] is not machine:
            rooms = SimpleQueue[Room]()
            for _ in range(machine.workers + AHEAD + 1):
                rooms.put(machine.room(n))
            self._rooms = machine, rooms
        return self._rooms[1]

    def _follow(self, pool: ThreadPoolExecutor, level: Level, found: LevelWriter) -> None:
        """Every entry on every state of a level; what is new goes to ``found``."""
        c, n, first_id, most = self._coverage, self._num_entries, self._coverage.states - len(level), max(1, self._machine.batch // self._num_entries)
        machine, rooms = self._machine, self._rooms_for(most * n)
        every_state, every_entry = np.repeat(np.arange(most, dtype=np.int32), n), np.tile(np.arange(n, dtype=np.int32), most)

        def run(part: tuple[int, np.ndarray, np.ndarray]) -> _Tried:
            first, rows, last = part
            which, entries, room = every_state[: len(rows) * n], every_entry[: len(rows) * n], rooms.get()
            try:
                batch = machine.after(rows, which, entries, last=last, every=False, room=room, seen=self._keys.seen)
            except Strayed:
                whole = machine.whole(rows)
                after = self._general.after(whole, which, entries).rows
                strayed = (whole != self._general.start).any(0) | (after != self._general.start).any(0)
                raise _StrayedFrom(strayed & ~machine.varies) from None
            return _Tried(first, len(rows), batch, room)

        for tried in _in_order(pool, machine.workers + AHEAD, run, level.parts(most)):
            batch, first = tried.batch, first_id + tried.first
            used, bad = batch.pairs.sum(0), np.flatnonzero(batch.outcomes > 0)
            c.tried += len(batch.outcomes)
            c.transitions += int(used.sum())
            c.violating += len(bad)
            c.used += used
            c.pairs += batch.pairs[1:]
            shown = int(np.bitwise_or.reduce(batch.outcomes[bad], initial=0))
            for kind in (kind for kind in Violation if shown >> kind & 1):
                self._findings.consider(kind.name, first + bad // n, bad % n, batch.violates(kind)[bad])
            added = self._keys.add(batch.keys)
            states, entries = np.divmod(batch.kept[added].astype(np.int64), n)
            self._findings.follow(first + states, entries)
            found.add(batch.take(added), first + states, entries)
            rooms.put(tried.room)
            self._clock()
            if self._report is not None:
                self._report(c, (tried.first + tried.count) / len(level), len(self._findings.found))


class _StrayedFrom(Exception):
    """Elements (``bool[elements]``) in which states of a batch differ from the start though they were held to be fixed."""

    def __init__(self, varies: np.ndarray) -> None:
        super().__init__()
        self.varies = varies


class _Tried(NamedTuple):
    """Every entry on ``count`` states of a level from the ``first``-th, state by state. room: of the batch."""

    first: int
    count: int
    batch: Batch
    room: Room


def _as_facts(coverage: Coverage) -> dict[str, Any]:
    """For a checkpoint."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(coverage).items()}


def _in_order(pool: ThreadPoolExecutor, most: int, call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results in the order of the items, with ``most`` calls ahead of the one that is looked at; none is left running if one fails."""
    ahead: list[Future[Any]] = []
    try:
        for item in items:
            ahead.append(pool.submit(call, item))
            if len(ahead) > most:
                yield ahead.pop(0).result()
        while ahead:
            yield ahead.pop(0).result()
    finally:
        wait(ahead)
