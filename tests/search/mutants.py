"""Planted faults: policies and kernels with one thing wrong, each with a machine on which the search must find it, and not find it without.

``python -m tests.search.mutants`` measures all of them and writes the tables of docs/EXPLORE.md again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.backends import rollout
from lufjax.events import Op, Payer
from lufjax.kernels import cpumask, frames
from lufjax.phases import alloc, atomic, debt
from lufjax.phases.draft import Draft
from lufjax.policy import from_words
from lufjax.presets import config_dir, policy_words
from lufjax.search import successors
from lufjax.search.alphabet import Alphabet, load_alphabet
from lufjax.search.exhaustive import Limits, Result, explore


def pays_nothing(m: Draft, row: Array, owed: Array) -> Array:
    """Targets of a take-off: nobody."""
    return jnp.zeros_like(owed)


def pays_nothing_for_nobody(m: Draft, row: Array, owed: Array) -> Array:
    """Targets of a take-off: nobody, if the new owner maps nothing."""
    return jnp.where(m.r.alloc_foreign == 1, jnp.zeros_like(owed), whole_targets(m, row, owed))


def forgets_on_merge(m: Draft, frame: Array, refills: Array, drains: Array) -> None:
    """A frame that merges as it is freed takes the tag that the task on this CPU owes for the frame that it has taken."""
    buddy = frame ^ 1
    merges = drains & (m.get("frame", buddy, st.ON_FREE) == 1) & (buddy < m.shape.num_frames)
    whole_move_tag(m, frame, refills, drains)
    m.put("taken", (m.r.pd_cpu, 1), 0, merges)


def thins_the_batch(m: Draft, enabled: Array) -> None:
    """A forced flush of a file folds its debt into the batch U, and leaves out of the union who was flushed since the file's last deferred unmap."""
    owed, clock = m.get("file_owed", m.r.dg_page), m.get("file_clock", m.r.dg_page)
    mixes = (m.op == Op.FILE_WRITE) & ~cpumask.is_empty(owed)
    union = (owed | m.batch_mask) & ~cpumask.from_bits(m.get("cpu")[:, st.COVERED] >= clock, m.words)
    whole_forced_flush(m, enabled & ~mixes)
    m.set_mask("batch_mask", jnp.zeros_like(union), enabled & mixes)
    m.put_regs(enabled & mixes, need_flush=0)
    then = m.r.fl_ret
    m.goto(then, enabled & mixes)
    m.flush_batch(enabled & mixes & ~cpumask.is_empty(union), then, cpu=m.c, mask=union, payer=Payer.FAULT)


whole_targets, whole_move_tag, whole_forced_flush = alloc.targets_of, frames._move_tag, debt.forced_flush


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        hazard: what it is: an event of the posted patches that is left out (E), or a hazard (H); words.
        base: the policy without it. rule: ``rule:word`` that plants it, or empty. kernel: replacement of a function that plants it.
        machine: file in ``conf/explore``. kind, length: class and length of the shortest violation.
        levels: how far the base is followed, without any violation; as far as there are states, if not given.
    """

    hazard: str
    base: str
    machine: str
    kind: str
    length: int
    rule: str = ""
    kernel: Callable[..., object] | None = None
    levels: int = 1000

    @property
    def policy(self) -> str:
        """The policy with the fault, if a rule plants it."""
        return f"{self.base}+{self.rule}" if self.rule else self.base

    @property
    def planted(self) -> str:
        """How, in words."""
        return f"`{self.rule}`" if self.rule else f"kernel: {(self.kernel.__doc__ or '').splitlines()[0].rstrip('.')}" if self.kernel else ""

    @property
    def name(self) -> str:
        """Short and unique."""
        what = self.rule or (self.kernel.__name__ if self.kernel else "")
        return f"{self.hazard.split(':')[0]}-{self.base}-{what}"


V10, V12, MERGED, KEEP = "luf_v10", "luf_v12", "luf_v10+buddy_merge:newest", "luf_v12+mask_on_switch:keep+credit:batch"
MUTANTS = (
    Mutant("E13: no flush in the write-protect fault", V10, "v10_hooks", "OLD_VALUE", 5, "write_fault_flush:off"),
    Mutant("E14: no flush in a writable mmap", V10, "v10_hooks", "OLD_VALUE", 5, "mmap_flush:off"),
    Mutant("E16: deferred unmaps are not pending for mapping calls", V10, "tiny", "MAPPING", 4, "munmap_debt_rule:none", levels=4),
    Mutant("E26: no discharge where a frame is handed out", V10, "lists", "REUSE", 5, kernel=pays_nothing),
    Mutant("E26: no discharge where a frame is handed out", V12, "lists", "REUSE", 5, kernel=pays_nothing),
    Mutant("E27: no discharge for a taker that maps nothing (the nearest to isolation)", V10, "lists", "REUSE", 5, kernel=pays_nothing_for_nobody),
    Mutant("H19: the tag of a frame on the global list is lost", V10, "lists", "REUSE", 5, "buddy_tag:lost"),
    Mutant("H20: generations of 4 bits wrap", MERGED, "wrap", "REUSE", 13, "gen_bits:4"),
    Mutant("H20: generations of 2 bits wrap", MERGED, "wrap", "REUSE", 7, "gen_bits:2"),
    Mutant("H21a: a block that is split leaves its remainder no tag", MERGED, "lists", "REUSE", 7, "refill_tag:task"),
    Mutant("H21b: a refill leaves the debts of its frames to one task", V10, "refill", "REUSE", 7, "refill_tag:task"),
    Mutant("H21c: an interrupt takes over what the task that it interrupts owes", MERGED, "interrupt", "REUSE", 8, kernel=forgets_on_merge),
    Mutant("H22: a folio that reclaim keeps loses its debt", V10, "kept", "REUSE", 6, "kept_debt:lost"),
    Mutant("H22: a folio that reclaim keeps loses its debt", V12, "kept", "REUSE", 6, "kept_debt:lost"),
    Mutant("H23: a mixed batch is thinned by too old a stamp", V12, "mixed", "REUSE", 11, kernel=thins_the_batch, levels=11),
    Mutant("H24: a flush of one mm credits CPUs that do not run it", KEEP, "masks", "REUSE", 8, "credit:batch_and_mm"),
    Mutant("v12 handle_mm_fault: no flush", V12, "tiny", "OLD_VALUE", 5, "write_fault_flush:off", levels=6),
    Mutant("v12 tlb_end_vma and the counter: no flush", V12, "tiny", "MAPPING", 4, "munmap_debt_rule:none", levels=6),
    Mutant("v12 write_begin: no flush", V12, "tiny", "OLD_VALUE", 5, "file_write_flush:off", levels=6),
    Mutant("v12 invalidate and truncate: no flush", V12, "server", "OLD_VALUE", 4, "invalidate_flush:off"),
    Mutant("Linux: mapping calls do not wait for batched unmaps", "linux", "tiny", "MAPPING", 4, "batched_pending:off", levels=6),
    Mutant("Linux: no flush before a dirty page is written out", "linux", "pair", "LOST_STORE", 3, "flush_dirty:off"),
    Mutant("Linux: no flush where a page is copied on write", "linux", "private", "OLD_VALUE", 3, "cow_flush:off", levels=5),
    Mutant("Linux: a CPU does not catch up when a process is loaded", "linux", "processes", "REUSE", 7, "switch_flush:off", levels=7),
    Mutant("Linux: mapping calls do not flush", "linux", "private", "MAPPING", 4, "gather_flush:none", levels=5),
)  # fmt: skip

INEXPRESSIBLE = {
    "H25: a claim of the zone's debts that is taken to cover frames freed later": (
        "one set of owed CPUs for all free frames of a zone, a bracket in which a task claims it, and a task that holds several frames; "
        "here every frame keeps its own set, and a task holds one"
    ),
    "E27 at each of its places: compaction, page reporting, offline, hwpoison": (
        "events that take a frame off the free lists and are no allocations; above, the one discharge for all who map nothing is left out"
    ),
    "v12 tlb_end_vma alone": (
        "a way to leave the hook out and keep what else a munmap does: `munmap_debt_rule=pending` leaves the counter, which flushes the mm "
        "whenever the hook would; `tiny` up to 11 events has the same 77,721 states with and without the hook"
    ),
    "v12 folio_mkclean, a lazy mm that is dropped, a PTE that nobody may access": "events for them; there are none here, so no hooks either",
}
"""What the machine cannot be made to do wrong, and the state that it lacks."""


PATCHES: dict[Callable[..., object], Callable[[], list[Any]]] = {
    pays_nothing: lambda: [mock.patch.object(module, "targets_of", pays_nothing) for module in (alloc, atomic)],
    pays_nothing_for_nobody: lambda: [mock.patch.object(module, "targets_of", pays_nothing_for_nobody) for module in (alloc, atomic)],
    forgets_on_merge: lambda: [mock.patch.object(frames, "_move_tag", forgets_on_merge)],
    thins_the_batch: lambda: [mock.patch.dict(rollout.KERNELS, forced=thins_the_batch)],
}
"""Kernel -> what it takes the place of."""


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The kernel of a mutant in place of the whole one."""
    with contextlib.ExitStack() as stack:
        if mutant.kernel is not None:
            not_kept = mock.patch.object(successors, "compile_search", successors.compile_search.__wrapped__)
            for patch in [not_kept, *PATCHES[mutant.kernel]()]:
                stack.enter_context(patch)
        yield


@functools.cache
def alphabet_of(machine: str) -> Alphabet:
    """A shipped machine."""
    return load_alphabet(config_dir() / "explore" / f"{machine}.yaml")


def with_fault(mutant: Mutant) -> Result:
    """The search under the fault, up to the level that shows it."""
    machine = without_fault(mutant.machine, mutant.base, mutant.levels).machine if mutant.kernel is None else None
    limits, policy = Limits(levels=mutant.length, until_violation=True), from_words(policy_words(mutant.policy))
    with planted(mutant):
        return explore(alphabet_of(mutant.machine), policy, limits, machine=machine)


@functools.cache
def without_fault(machine: str, base: str, levels: int) -> Result:
    """The search without it."""
    return explore(alphabet_of(machine), from_words(policy_words(base)), Limits(levels=levels))


def row_of(mutant: Mutant, found: Result) -> str:
    """What a line of the table begins with: all but what the searches cost."""
    words = alphabet_of(mutant.machine).words
    shortest = found.findings[0]
    runs = [(words[entry].removesuffix(", gather_finish"), len(list(run))) for entry, run in itertools.groupby(shortest.entries)]
    events = "; ".join(f"{text} ({times} times)" if times > 1 else text for text, times in runs)
    where = f"`{mutant.base}` | `{mutant.machine}`"
    return f"| {mutant.hazard} | {mutant.planted} | {where} | {shortest.kind} | {len(shortest.entries)} | {events} |"


def cost_of(found: Result, clean: Result) -> str:
    """The rest of it: states and seconds with the fault and without."""
    covered = "all" if clean.coverage.exhausted else f"{clean.coverage.levels} events"
    return (
        f" {found.coverage.states:,} | {clean.coverage.states:,} ({covered}) | {found.coverage.seconds:.2f} | {clean.coverage.seconds:.2f} |"
    )  # fmt: skip


HEAD = """\
| fault | planted as | in | machine | class | events | shortest sequence | states | states without it | s | s without it |
|---|---|---|---|---|---|---|---|---|---|---|
"""
DOCUMENT = Path(__file__).parents[2] / "docs" / "EXPLORE.md"
PLACES = re.compile(r"(?<=<!-- planted -->\n).*?(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    """Measure every mutant, and write the tables."""
    lines = []
    for mutant in MUTANTS:
        clean, found = without_fault(mutant.machine, mutant.base, mutant.levels), with_fault(mutant)
        lines.append(row_of(mutant, found) + cost_of(found, clean))
        print(lines[-1])
    lacking = "".join(f"| {what} | {state} |\n" for what, state in INEXPRESSIBLE.items())
    table = HEAD + "\n".join(lines) + "\n\n| cannot be planted | the state that it needs |\n|---|---|\n" + lacking
    DOCUMENT.write_text(PLACES.sub(lambda _: table, DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
