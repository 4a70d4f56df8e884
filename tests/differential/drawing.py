"""Machines and event lists that Hypothesis draws and shrinks: unneeded events go, numbers become small, rules become those of Linux."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.oracle import Oracle
from tests.oracle.generate import SHAPES, VMA_KINDS
from tests.oracle.generate_events import FIRST_PAGE, WEIGHTS
from tests.oracle.policies import LINUX, NUM_CHOICES, PRESETS

(LOAD, STORE, MMAP, MUNMAP, MPROTECT, DONTNEED, FINISH, FILE_WRITE, RECLAIM, RECLAIM_FLUSH, ALLOC_FOREIGN, FREE_FOREIGN, SWITCH,
 TICK, ALLOC_ATOMIC, FAULT_INSTALL, FAULT_FINISH, TAKE_OFF, DISCHARGE, REMOTE_WRITE, TRUNCATE,
 MADVISE_FREE, EXIT, MREMAP, FORK, MIGRATE) = range(1, 27)  # fmt: skip
SKIP = -1
"""A wish that is not carried out; what Hypothesis makes of an event that does not matter."""
MAX_EVENTS = 60
_OPS = [SKIP, *(op for op, weight in WEIGHTS.items() for _ in range(weight))]


@dataclass(frozen=True)
class Wish:
    """An event to be: what the row becomes depends on the machine, so that most rows are enabled and all are well-formed."""

    op: int
    cpu: int
    vpn: int
    pick: int
    repeat: int


@dataclass(frozen=True)
class Drawn:
    """A machine in the oracle's terms, and what to do with it."""

    sizes: dict[str, Any]
    params: dict[str, int]
    policy: dict[str, int]
    trace: dict[str, Any]
    wishes: tuple[Wish, ...]


def policies(quarantine_slots: int) -> st.SearchStrategy[dict[str, int]]:
    """A preset, or every rule at random; with small numbers."""
    numbers = st.fixed_dictionaries({
        "trim_period": st.sampled_from((100000, 40, 7, 1)),
        "flush_ceiling": st.sampled_from((33, 2, 1, 0)),
        "latr_ticks": st.integers(1, 3),
        "quarantine_slots": st.integers(0, quarantine_slots),
        "gen_bits": st.sampled_from((30, 16, 3, 2)),
    })  # fmt: skip
    presets = st.sampled_from([LINUX, *(record for name, record in sorted(PRESETS.items()) if name != "linux")])
    records = st.fixed_dictionaries({field: st.integers(0, count - 1) for field, count in NUM_CHOICES.items()})
    return st.builds(lambda record, small: {**record, **small}, st.one_of(presets, records), numbers)


@st.composite
def _params(draw: st.DrawFn, sizes: dict[str, Any]) -> dict[str, int]:
    low = draw(st.integers(0, 2))
    mid = low + draw(st.integers(0, 2))
    frames = draw(st.integers(max(2, sizes["num_frames"] - 6), sizes["num_frames"]))
    return {
        "frames_in_use": frames,
        "wmark_min": low, "wmark_low": mid, "wmark_high": mid + draw(st.integers(0, 3)),
        "pcp_batch": draw(st.integers(1, 3)), "pcp_high": draw(st.integers(1, 4)),
        "reclaim_batch": draw(st.integers(1, sizes["batch_slots"])), "kswapd_cpu": draw(st.integers(0, sizes["num_cpus"] - 1)),
        "load_mode": draw(st.integers(0, 1)), "fast_frames": draw(st.one_of(st.just(frames), st.integers(1, frames))),
    }  # fmt: skip


def _traces(sizes: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    def matrix(values: st.SearchStrategy[int]) -> st.SearchStrategy[list[list[int]]]:
        row = st.lists(values, min_size=sizes["num_vpns"], max_size=sizes["num_vpns"])
        return st.lists(row, min_size=sizes["num_processes"], max_size=sizes["num_processes"])

    def build(vma: list[list[int]], page: list[list[int]], loaded: list[int]) -> dict[str, Any]:
        def backing(a: int, b: int) -> int:
            return -1 if a < 0 or VMA_KINDS[a][0] == "anon" else b

        backings = [[backing(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(vma, page, strict=True)]
        return {"vmas": [flags for _, flags in VMA_KINDS], "page_vma": vma, "page_backing": backings, "loaded": loaded}

    ids = list(range(len(VMA_KINDS)))
    processes = [*range(sizes["num_processes"]), *range(sizes["num_processes"]), -1]
    loaded = st.lists(st.sampled_from(processes), min_size=sizes["num_cpus"], max_size=sizes["num_cpus"])
    return st.builds(build, matrix(st.sampled_from([*ids, -1, -1, -1, -1])), matrix(st.integers(0, sizes["num_file_pages"] - 1)), loaded)


@st.composite
def machines(draw: st.DrawFn, shape: int) -> Drawn:
    """A machine of one of ``SHAPES`` and up to :data:`MAX_EVENTS` events."""
    sizes = SHAPES[shape]
    wishes = st.builds(
        Wish, st.sampled_from(_OPS), st.integers(0, sizes["num_cpus"] - 1), st.integers(0, sizes["num_vpns"] - 1), st.integers(0, 11),
        st.integers(1, 3),
    )  # fmt: skip
    events = draw(st.lists(wishes, min_size=MAX_EVENTS // 2, max_size=MAX_EVENTS))
    return Drawn(sizes, draw(_params(sizes)), draw(policies(sizes["quarantine_slots"])), draw(_traces(sizes)), tuple(events))


def row_of(wish: Wish, oracle: Oracle, sizes: dict[str, Any]) -> list[int]:
    """The event row that a wish becomes on a machine in the oracle's state: calls that are open are continued or finished."""
    cpu, op = oracle.state.cpus[wish.cpu], wish.op
    if cpu.gather is not None and wish.pick % 4 < 2:
        op = FINISH if wish.pick % 4 else cpu.gather.op
    if cpu.fault is not None and wish.pick % 4 < 3:
        op = FAULT_FINISH
    arg, repeat, vpn = 0, 1, wish.vpn
    if op in (FAULT_INSTALL, RECLAIM_FLUSH):
        arg = wish.pick % 2
    elif op == FAULT_FINISH and cpu.fault is not None and wish.pick % 4:
        vpn = cpu.fault[0]
    elif op in (LOAD, STORE):
        repeat = wish.repeat
    elif op == MMAP:
        vma = wish.pick % len(VMA_KINDS)
        arg = -1 if VMA_KINDS[vma][0] == "anon" else (wish.pick + wish.vpn) % sizes["num_file_pages"]
        repeat = vma + FIRST_PAGE * (wish.repeat % 2)
    elif op == MREMAP:
        empty = [w for w in range(sizes["num_vpns"]) if cpu.loaded is not None and oracle.state.page(cpu.loaded, w).vma is None]
        arg = empty[wish.pick % len(empty)] if empty else wish.pick % sizes["num_vpns"]
    elif op == FORK:
        arg, repeat = wish.pick % sizes["num_processes"], oracle.state.page(cpu.loaded, vpn).vma if cpu.loaded is not None else None
        repeat = wish.pick % len(VMA_KINDS) if repeat is None else repeat
    elif op == MPROTECT:
        vma = None if cpu.loaded is None else oracle.state.page(cpu.loaded, wish.vpn).vma
        alike = [a for a, (kind, _) in enumerate(VMA_KINDS) if vma is None or kind == VMA_KINDS[vma][0]]
        arg = alike[wish.pick % len(alike)]
    elif op == FINISH:
        arg = int(wish.repeat == 3 or (cpu.gather is not None and cpu.gather.op == EXIT))
    elif op in (FILE_WRITE, REMOTE_WRITE, TRUNCATE):
        arg = wish.pick % sizes["num_file_pages"]
    elif op == MIGRATE:
        resident = [(m, v) for m, v, page in oracle.state.pages() if page.present]
        arg, vpn = resident[wish.pick % len(resident)] if resident else (wish.pick % sizes["num_processes"], vpn)
    elif op in (RECLAIM, SWITCH):
        arg = wish.pick % (sizes["num_processes"] + 1) - 1
    return [wish.cpu, op, vpn, arg, repeat]
