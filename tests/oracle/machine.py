"""The reference simulator: one machine, stepped by hand, slow and plain (docs/MODEL.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import access, allocation, fault, file, flush, frames, mapping, micro, migration, reclaim
from .counting import HISTOGRAMS, Counts
from .finish import gather_finish
from .snapshot import snapshot
from .state import FOREIGN, FOREIGN_DATA, EngineFault, State

(NOP, LOAD, STORE, MMAP, MUNMAP, MPROTECT, DONTNEED, FINISH, FILE_WRITE, RECLAIM, RECLAIM_FLUSH, ALLOC_FOREIGN, FREE_FOREIGN,
 SWITCH, TICK, ALLOC_ATOMIC, FAULT_INSTALL, FAULT_FINISH, TAKE_OFF, DISCHARGE, REMOTE_WRITE, TRUNCATE,
 MADVISE_FREE, EXIT, MREMAP, FORK, MIGRATE) = range(27)  # fmt: skip
FIRST_PAGE = 65536


class Oracle:
    """One machine. ``faults`` names the engine faults met; after one, nothing here means anything."""

    def __init__(self, sizes: dict[str, Any], params: dict[str, int], policy: dict[str, int], trace: dict[str, Any]) -> None:
        self.state = State(sizes, params, policy, trace)
        self.counts = Counts(sizes["num_cpus"])
        self.faults: set[str] = set()

    def step(self, row: Sequence[int]) -> None:
        """Execute one event row (cpu, op, vpn, arg, repeat)."""
        cpu, op, vpn, arg, repeat = (int(x) for x in row)
        self.state.now += 1
        self.counts.bump("events")
        try:
            reclaim.background(self.state, self.counts)
            if not self._execute(cpu, op, vpn, arg, repeat):
                self.counts.bump("events_disabled")
        except EngineFault as error:
            self.faults.add(str(error))

    def _execute(self, cpu: int, op: int, vpn: int, arg: int, repeat: int) -> bool:
        """Do what the event says. False if it is not enabled."""
        s, n = self.state, self.counts
        if op in (LOAD, STORE):
            return access.access(s, n, cpu, vpn, op == STORE, repeat)
        if op == MMAP:
            return mapping.mmap(s, n, cpu, vpn, arg, repeat % FIRST_PAGE, repeat >= FIRST_PAGE)
        if op in (MUNMAP, MPROTECT, DONTNEED, MADVISE_FREE, EXIT, MREMAP, FORK):
            return mapping.page_event(s, n, cpu, op, vpn, arg, repeat)
        if op == FINISH:
            return gather_finish(s, n, cpu, bool(arg))
        if op == FAULT_INSTALL:
            return fault.install_half(s, n, cpu, vpn, bool(arg))
        if op == FAULT_FINISH:
            return fault.finish_half(s, n, cpu, vpn)
        if op == RECLAIM:
            return _reclaim(s, n, cpu, vpn, arg)
        if op == MIGRATE:
            return migration.migrate(s, n, cpu, vpn, arg)
        if op == FILE_WRITE:
            file.file_write(s, n, cpu, arg)
        elif op in (REMOTE_WRITE, TRUNCATE):
            file.replace(s, n, cpu, arg, op == TRUNCATE)
        elif op == RECLAIM_FLUSH:
            (reclaim.drain_half if arg else reclaim.drain)(s, n, cpu)
        elif op == ALLOC_FOREIGN:
            _give_away(s, allocation.alloc(s, n, cpu, is_foreign=True))
        elif op == ALLOC_ATOMIC:
            _give_away(s, allocation.alloc_atomic(s, n, cpu))
        elif op == TAKE_OFF:
            return allocation.take_off(s, n, cpu)
        elif op == DISCHARGE:
            return _give_away(s, allocation.discharge(s, n, cpu))
        elif op == FREE_FOREIGN:
            return _free_foreign(s, n, cpu)
        elif op == SWITCH:
            return _switch(s, n, cpu, arg)
        elif op == TICK:
            _tick(s, n, cpu)
        elif micro.PLACE <= op <= micro.PERMIT:
            micro.micro_step(s, cpu, op, vpn, arg, repeat)
        elif op != NOP:
            raise ValueError(f"op={op}: allowed are 0 to {MIGRATE}, and {micro.PLACE} to {micro.PERMIT}")
        return True

    def snapshot(self) -> dict[str, Any]:
        """The whole state in canonical form."""
        return snapshot(self.state)

    def counters(self) -> dict[str, Any]:
        """Counters by name; lists for histograms and ``received``."""
        histograms = {name: list(self.counts.histograms[name]) for name in HISTOGRAMS}
        return dict(self.counts.scalars) | histograms | {"received": list(self.counts.received)}

    def violations(self) -> dict[str, Any]:
        """Violations by class, and the first of each class (zeros where none)."""
        return {kind: list(v) for kind, v in self.counts.violations.items()} | {"first": [list(x) for x in self.counts.first]}


def _reclaim(s: State, n: Counts, cpu: int, vpn: int, process: int) -> bool:
    if process < 0:
        reclaim.reclaim(s, n, cpu, 1, 4, "direct")
        return True
    f = reclaim.movable(s, process, vpn)
    if f is None:
        return False
    n.bump("pgsteal_direct")
    reclaim.unmap(s, n, f, cpu)
    return True


def _give_away(s: State, f: int | None) -> bool:
    """Somebody who maps nothing uses frame ``f``, if there was one. False if not."""
    if f is not None:
        s.frames[f].state, s.frames[f].content = FOREIGN, FOREIGN_DATA
        s.foreign.append(f)
    return f is not None


def _free_foreign(s: State, n: Counts, cpu: int) -> bool:
    if not s.foreign:
        return False
    frames.free(s, n, s.foreign.pop(), cpu)
    return True


def _sweep(s: State, n: Counts, c: int) -> None:
    for m, process in enumerate(s.processes):
        if c in process.sweep:
            flush.flush_cpu(s, c, m)
            s.cpus[c].gen_done[m] = process.tlb_gen
            process.sweep.discard(c)
            n.bump("sweeps")


def _switch(s: State, n: Counts, c: int, to: int) -> bool:
    cpu = s.cpus[c]
    if cpu.is_busy:
        return False
    if to < 0:
        cpu.lazy = True
        return True
    _sweep(s, n, c)
    if cpu.loaded != to:
        if cpu.loaded is not None and not s.policy["mask_on_switch"]:
            s.processes[cpu.loaded].cpumask.discard(c)
        cpu.loaded = to
        n.bump("switches")
    cpu.lazy = False
    s.processes[to].cpumask.add(c)
    if s.policy["switch_flush"] and cpu.gen_done[to] != s.processes[to].tlb_gen:
        flush.flush_cpu(s, c, to)
        cpu.gen_done[to] = s.processes[to].tlb_gen
        n.bump("switch_flushes")
    return True


def _tick(s: State, n: Counts, c: int) -> None:
    s.cpus[c].ticks += 1
    _sweep(s, n, c)
    if c == 0:
        allocation.release(s, n, c, False)
