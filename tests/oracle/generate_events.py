"""Random events: most are enabled, because the draw keeps track of what every policy agrees on (who runs what, gathers, VMAs)."""

from __future__ import annotations

import random
from typing import Any

(NOP, LOAD, STORE, MMAP, MUNMAP, MPROTECT, DONTNEED, FINISH, FILE_WRITE, RECLAIM, RECLAIM_FLUSH, ALLOC_FOREIGN, FREE_FOREIGN,
 SWITCH, TICK, ALLOC_ATOMIC, FAULT_INSTALL, FAULT_FINISH, TAKE_OFF, DISCHARGE, REMOTE_WRITE, TRUNCATE,
 MADVISE_FREE, EXIT, MREMAP, FORK, MIGRATE) = range(27)  # fmt: skip
SHARED_KINDS = (DONTNEED, MADVISE_FREE)
GATHERED = (MUNMAP, MPROTECT, DONTNEED, MADVISE_FREE, EXIT, MREMAP, FORK)
READ, WRITE, ANON = 1, 2, 16
FIRST_PAGE = 65536
WEIGHTS = {
    NOP: 1, LOAD: 30, STORE: 18, MMAP: 8, MUNMAP: 4, MPROTECT: 5, DONTNEED: 5, FINISH: 1, FILE_WRITE: 3, RECLAIM: 12,
    RECLAIM_FLUSH: 3, ALLOC_FOREIGN: 2, FREE_FOREIGN: 6, SWITCH: 5, TICK: 3, ALLOC_ATOMIC: 2, FAULT_INSTALL: 5, FAULT_FINISH: 1, TAKE_OFF: 2,
    DISCHARGE: 4, REMOTE_WRITE: 3, TRUNCATE: 2, MADVISE_FREE: 4, EXIT: 1, MREMAP: 3, FORK: 4, MIGRATE: 6,
}  # fmt: skip
"""How often each operation is drawn."""
ALLOCATIONS = {
    LOAD: 8, RECLAIM: 6, RECLAIM_FLUSH: 3, ALLOC_FOREIGN: 2, ALLOC_ATOMIC: 2, TAKE_OFF: 3, DISCHARGE: 4, FREE_FOREIGN: 6, FAULT_INSTALL: 1,
    FAULT_FINISH: 1, MIGRATE: 3,
}  # fmt: skip
"""The same where frames come and go, and little else happens."""
FORKS = WEIGHTS | {FORK: 25, SWITCH: 10, STORE: 30, EXIT: 3}
"""The same where most anonymous pages are shared by a fork, or were."""


class _Tracker:
    """The part of the machine that decides whether an event is enabled, the same under every policy."""

    def __init__(self, sizes: dict[str, Any], trace: dict[str, Any]) -> None:
        self.sizes, self.flags = sizes, trace["vmas"]
        self.loaded = list(trace["loaded"])
        self.vma = [list(row) for row in trace["page_vma"]]
        self.moved: list[set[int]] = [set() for _ in range(sizes["num_cpus"])]
        self.gather: list[int | None] = [None] * sizes["num_cpus"]
        self.lazy = [m < 0 for m in self.loaded]
        self.fault: list[int | None] = [None] * sizes["num_cpus"]
        """Page of a fault that may be between its halves: whether it is depends on the policy, so such a CPU maps and switches nothing."""

        self.has_taken = [False] * sizes["num_cpus"]
        self.touched: list[tuple[int, int]] = []
        """Pages accessed so far, the latest last: most of them are resident."""

        self.forked: list[tuple[int, int]] = []
        """Both pages of each copy, the latest last."""

    def kind(self, vma: int) -> tuple[bool, bool]:
        """What MPROTECT may not change: anonymous or not, shared or not."""
        return bool(self.flags[vma] & ANON), bool(self.flags[vma] & 8)

    def may_map(self, cpu: int, op: int) -> bool:
        """Whether the locks let ``cpu`` do a mapping call of this kind."""
        if self.lazy[cpu] or self.gather[cpu] not in (None, op):
            return False
        others = [g for c, g in enumerate(self.gather) if c != cpu and g is not None and self.loaded[c] == self.loaded[cpu]]
        if op == EXIT and [c for c, m in enumerate(self.loaded) if c != cpu and m == self.loaded[cpu] and not self.lazy[c]]:
            return False
        return not [g for g in others if g not in SHARED_KINDS or op not in SHARED_KINDS]


def random_events(rng: random.Random, sizes: dict[str, Any], trace: dict[str, Any], n: int, weights: dict[int, int] = WEIGHTS) -> list[list[int]]:
    """Draw ``n`` event rows (cpu, op, vpn, arg, repeat); about one in twelve is drawn without regard to what is enabled."""
    tracker = _Tracker(sizes, trace)
    rows: list[list[int]] = []
    focus = rng.randrange(sizes["num_vpns"])
    while len(rows) < n:
        if rng.random() < 0.1:
            focus = rng.randrange(sizes["num_vpns"])
        cpu, op = rng.randrange(sizes["num_cpus"]), rng.choices(list(weights), list(weights.values()))[0]
        if tracker.gather[cpu] is not None and rng.random() < 0.5:
            op = rng.choices((FINISH, tracker.gather[cpu]), (3, 2))[0]
        if tracker.fault[cpu] is not None and (op in (MMAP, SWITCH, *GATHERED) or rng.random() < 0.5):
            op = FAULT_FINISH
        vpn = focus if rng.random() < 0.5 else rng.randrange(sizes["num_vpns"])
        if rng.random() < 0.92 and not _enabled(tracker, cpu, op):
            continue
        rows.append(_row(rng, tracker, cpu, op, vpn))
    return rows


def _enabled(t: _Tracker, cpu: int, op: int) -> bool:
    if op in (LOAD, STORE, FAULT_INSTALL):
        return not t.lazy[cpu] and t.gather[cpu] is None and t.fault[cpu] is None
    if op == FAULT_FINISH:
        return t.fault[cpu] is not None
    if op in (TAKE_OFF, DISCHARGE):
        return t.has_taken[cpu] == (op == DISCHARGE)
    if op == MMAP:
        return t.gather[cpu] is None and t.may_map(cpu, MMAP)
    if op in GATHERED:
        return t.may_map(cpu, op)
    if op == FINISH:
        return t.gather[cpu] is not None
    return op != SWITCH or t.gather[cpu] is None


def _row(rng: random.Random, t: _Tracker, cpu: int, op: int, vpn: int) -> list[int]:
    """Fill in a well-formed row and tell the tracker what it does."""
    enabled, sizes, m = _enabled(t, cpu, op), t.sizes, t.loaded[cpu]
    arg, repeat = 0, 1
    if op in (LOAD, STORE):
        repeat = rng.randint(1, 3)
        copies = [v for k, v in t.forked[-6:] if k == m]
        vpn = rng.choice(copies) if copies and rng.random() < 0.4 else vpn
        if enabled and t.vma[m][vpn] >= 0 and t.flags[t.vma[m][vpn]] & (READ if op == LOAD else WRITE):
            t.touched.append((m, vpn))
    elif op == MMAP:
        vma = rng.randrange(len(t.flags))
        arg = -1 if t.flags[vma] & ANON else rng.randrange(sizes["num_file_pages"])
        repeat = vma + FIRST_PAGE * rng.randrange(2)
        if enabled:
            t.vma[m][vpn] = vma
    elif op == MPROTECT:
        vma = t.vma[m][vpn] if m >= 0 else -1
        alike = [a for a in range(len(t.flags)) if vma < 0 or t.kind(a) == t.kind(vma)]
        arg = rng.choice(alike)
        if enabled and vma >= 0:
            t.vma[m][vpn] = arg
    elif op in (MUNMAP, EXIT) and enabled:
        t.vma[m][vpn] = -1
    elif op == FINISH:
        is_exit = t.gather[cpu] == EXIT
        arg = int(rng.random() < (0.7 if is_exit else 0.15))
        t.gather[cpu] = None
        t.moved[cpu] = set()
        if is_exit and arg:
            t.lazy[cpu], t.loaded[cpu] = True, -1
    elif op == RECLAIM_FLUSH:
        arg = rng.randrange(2)
    elif op in (TAKE_OFF, DISCHARGE):
        t.has_taken[cpu] = op == TAKE_OFF
    elif op == FAULT_INSTALL:
        readable = [v for v, vma in enumerate(t.vma[m]) if m >= 0 and vma >= 0 and t.flags[vma] & READ]
        vpn = rng.choice(readable) if readable and rng.random() < 0.8 else vpn
        arg = rng.randrange(2) if t.vma[m][vpn] < 0 or t.flags[t.vma[m][vpn]] & WRITE else 0
        t.fault[cpu] = vpn if enabled else t.fault[cpu]
    elif op == FAULT_FINISH and enabled:
        vpn = vpn if rng.random() < 0.1 else t.fault[cpu]
        t.fault[cpu] = None if vpn == t.fault[cpu] else t.fault[cpu]
    elif op == MREMAP:
        empty = [w for w, vma in enumerate(t.vma[m]) if vma < 0 and w not in t.moved[cpu]]
        mapped = [v for v, vma in enumerate(t.vma[m]) if vma >= 0]
        vpn = rng.choice(mapped) if mapped and rng.random() < 0.8 else vpn
        arg = rng.choice(empty) if empty and rng.random() < 0.9 else rng.randrange(sizes["num_vpns"])
        enabled = enabled and (t.vma[m][vpn] < 0 or arg in empty)
        if enabled and t.vma[m][vpn] >= 0:
            t.vma[m][arg], t.vma[m][vpn] = t.vma[m][vpn], -1
            t.moved[cpu].add(vpn)
    elif op == FORK:
        arg, vpn, repeat, is_copied = _fork(rng, t, m, vpn)
        enabled = enabled and is_copied
    elif op == MADVISE_FREE:
        anon = [v for v, vma in enumerate(t.vma[m]) if m >= 0 and vma >= 0 and t.flags[vma] & ANON]
        vpn = rng.choice(anon) if anon and rng.random() < 0.8 else vpn
    elif op in (FILE_WRITE, REMOTE_WRITE, TRUNCATE):
        arg = rng.randrange(sizes["num_file_pages"])
    elif op == MIGRATE:
        arg, vpn = rng.choice(t.touched[-4:]) if t.touched and rng.random() < 0.9 else (rng.randrange(sizes["num_processes"]), vpn)
    elif op == RECLAIM:
        arg = rng.randrange(-1, sizes["num_processes"])
    elif op == SWITCH:
        arg = -1 if rng.random() < 0.3 else rng.randrange(sizes["num_processes"])
        if enabled:
            t.lazy[cpu] = arg < 0
            t.loaded[cpu] = m if arg < 0 else arg
    if op in GATHERED and enabled:
        t.gather[cpu] = op
    return [cpu, op, vpn, arg, repeat]


def _fork(rng: random.Random, t: _Tracker, m: int, vpn: int) -> tuple[int, int, int, bool]:
    """Child, page and VMA id of a FORK by process ``m``, mostly one that is enabled; whether it is."""
    busy = {t.loaded[c] for c, g in enumerate(t.gather) if g is not None}
    children = [k for k in range(t.sizes["num_processes"]) if k != m and k not in busy]
    child = rng.choice(children) if children and rng.random() < 0.95 else rng.randrange(t.sizes["num_processes"])
    free = [v for v in range(t.sizes["num_vpns"]) if m >= 0 and t.vma[m][v] >= 0 and t.vma[child][v] < 0]
    private = [v for v in free if t.flags[t.vma[m][v]] & WRITE and not t.flags[t.vma[m][v]] & 8]
    written = [v for v in private if (m, v) in t.touched]
    if free and rng.random() < 0.9:
        vpn = rng.choice(next(vpns for vpns in ((written, private, free) if rng.random() < 0.8 else (free,)) if vpns))
    vma = t.vma[m][vpn] if m >= 0 else -1
    alike = [a for a in range(len(t.flags)) if vma < 0 or t.flags[a] == t.flags[vma]]
    is_copied = child in children and (vma < 0 or vpn in free)
    if is_copied and vma >= 0:
        t.vma[child][vpn] = alike[0]
        t.forked += [(m, vpn), (child, vpn)]
    return child, vpn, rng.choice(alike), is_copied
