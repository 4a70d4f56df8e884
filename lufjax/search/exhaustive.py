"""Breadth-first search over all states of a tiny machine: which orders of events violate, and how short is the shortest of each kind.

A level is all states that the same number of events reaches first. Every state of a level is followed by every entry of the alphabet, in
batches on all cores; what is new is the next level. A state in which a violation just happened is not followed further.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lufjax.events import Violation
from lufjax.policy import FlushPolicy
from lufjax.runners import num_cores
from lufjax.search.alphabet import Alphabet, check_policy
from lufjax.search.findings import Finding, Findings
from lufjax.search.key_set import KeySet
from lufjax.search.storage import Level, Storage
from lufjax.search.successors import Batch, Machine

BATCH = 4096
"""Successors that one core has in memory at a time."""
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
    machine: Machine | None = None,
) -> Result:  # fmt: skip
    """Search level by level.

    Args:
        symmetry: count states that differ in the names of frames, CPUs and pages once.
        storage: where levels are kept, and whose last finished level is gone on from; memory if None.
        machine: one of this alphabet and symmetry, to save compiling it again.

    Raises:
        ValueError: the policy depends on time, or the machine is too small for an event; one line.
    """
    check_policy(policy, limits.levels * alphabet.rows_per_entry)
    if machine is None or not machine.can_have(policy):
        machine = Machine(alphabet, policy, limits.levels, symmetry=symmetry)
    return _Search(machine.with_policy(policy), limits, storage or Storage(None), report).run()


class _Search:
    def __init__(self, machine: Machine, limits: Limits, storage: Storage, report: Report | None) -> None:
        self._limits, self._storage, self._report, self._machine = limits, storage, report, machine
        alphabet = machine.alphabet
        self._num_entries = len(alphabet.rows)
        self._keys, self._start_key = KeySet(machine.key_width, storage.keys_path), machine.keys(machine.start)
        self._coverage = Coverage(used=np.zeros(self._num_entries, np.int64), pairs=np.zeros((self._num_entries, self._num_entries), np.int64))
        self._findings = Findings(alphabet, self._machine.names)
        self._samples: list[np.ndarray] = []
        self._began = time.monotonic()

    def run(self) -> Result:
        level = self._start()
        with ThreadPoolExecutor(num_cores()) as pool:
            while not self._over(level):
                level = self._expand(pool, level)
        self._clock()
        samples = np.concatenate([np.zeros((0, self._machine.width), np.int32), *self._samples])
        return Result(self._findings.shortest(self._storage), self._coverage, self._machine, samples)

    def _start(self) -> Level:
        """The last finished level that the storage has, or the start."""
        saved = self._storage.load(self._machine.width)
        if saved is None:
            self._keys.add(self._start_key)
            return Level([self._machine.start], np.full(1, -1, np.int64))
        facts, level = saved
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
        c, n, first_id = self._coverage, self._num_entries, self._coverage.states - len(level)
        self._samples.append(level.sample(SAMPLE))
        found = self._storage.writer()

        def run(part: tuple[int, np.ndarray, np.ndarray]) -> _Tried:
            first, rows, last = part
            which, entries = np.repeat(np.arange(len(rows)), n), np.tile(np.arange(n), len(rows))
            return _Tried(first + which, entries, last[which], self._machine.after(rows, which, entries))

        for tried in _in_order(pool, run, level.parts(max(1, BATCH // n))):
            batch, states, entries = tried.batch, first_id + tried.which, tried.entries
            enabled, bad = batch.enabled, np.flatnonzero(batch.outcomes > 0)
            c.tried += len(states)
            c.transitions += int(enabled.sum())
            c.violating += len(bad)
            c.used += np.bincount(entries[enabled], minlength=n)
            follows = enabled & (tried.last >= 0)
            c.pairs += np.bincount(tried.last[follows] * n + entries[follows], minlength=n * n).reshape(n, n)
            for kind in Violation if len(bad) else ():
                self._findings.consider(kind.name, states[bad], entries[bad], batch.violates(kind)[bad])
            added = self._keys.add(batch.keys)
            new = batch.kept[added]
            self._findings.follow(states[new], entries[new])
            found.add(batch.rows[added], states[new], entries[new])
            self._clock()
            if self._report is not None:
                self._report(c, (tried.which[-1] + 1) / len(level), len(self._findings.found))
        c.per_level.append(self._keys.count - c.states)
        c.levels, c.states = c.levels + 1, self._keys.count
        return self._storage.save(found, {"coverage": _as_facts(c), "findings": self._findings.as_facts()})


class _Tried(NamedTuple):
    """Successors of a part of a level. which: numbers of their states within the level. last: entries by which those were reached."""

    which: np.ndarray
    entries: np.ndarray
    last: np.ndarray
    batch: Batch


def _as_facts(coverage: Coverage) -> dict[str, Any]:
    """For a checkpoint."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(coverage).items()}


def _in_order(pool: ThreadPoolExecutor, call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results in the order of the items, with a few calls ahead of the one that is looked at."""
    ahead: list[Future[Any]] = []
    for item in items:
        ahead.append(pool.submit(call, item))
        if len(ahead) > num_cores() + 1:
            yield ahead.pop(0).result()
    for future in ahead:
        yield future.result()
