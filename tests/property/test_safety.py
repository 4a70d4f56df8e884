"""Safe policies never let a wrong stale access happen; without flushes every class that applies happens."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.events import FIRST_PAGE, Op, Violation, VmaFlag
from lufjax.machines import violations_of
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.presets import load_policy
from lufjax.trace import Trace
from tests.contract.small_run import build_trace, small_run
from tests.differential.pair import states_after

SAFE = ("linux", "linux_6_15", "eager", "luf_v10")
"""Safe on workloads that map, unmap, read and write pages. Others are safe on some workloads only (docs/MODEL.md section 9)."""
READ, WRITE, MAYWRITE, SHARED = VmaFlag.READ, VmaFlag.WRITE, VmaFlag.MAYWRITE, VmaFlag.SHARED
VMAS = (READ | WRITE | MAYWRITE | SHARED, READ | MAYWRITE | SHARED)
NUMBERS = (8, 0, 0, 0, 1, 1, 1, 0, 0, 8)
"""Eight frames, no watermarks, lists and batches of one page, reclaim by events only."""
LOAD, STORE = Op.LOAD, Op.STORE
SCRIPTS: dict[Violation, list[tuple[int, int, int, int, int]]] = {
    Violation.REUSE: [(1, LOAD, 0, 0, 1), (0, Op.RECLAIM, 0, 0, 1), (0, LOAD, 1, 0, 1), (1, LOAD, 0, 0, 1)],
    Violation.MAPPING: [
        (1, LOAD, 0, 0, 1), (0, Op.MUNMAP, 0, 0, 1), (0, Op.GATHER_FINISH, 0, 0, 1), (0, Op.MMAP, 0, 1, FIRST_PAGE), (1, LOAD, 0, 0, 1),
    ],
    Violation.PERMISSION: [(1, STORE, 0, 0, 1), (0, Op.MPROTECT, 0, 1, 1), (0, Op.GATHER_FINISH, 0, 0, 1), (1, STORE, 0, 0, 1)],
    Violation.LOST_STORE: [(1, STORE, 0, 0, 1), (0, Op.RECLAIM, 0, 0, 1), (1, STORE, 0, 0, 1)],
    Violation.OLD_VALUE: [
        (1, LOAD, 0, 0, 1), (0, LOAD, 1, 0, 1), (0, Op.RECLAIM, 0, 0, 1), (0, Op.RECLAIM, 1, 0, 1), (0, Op.FILE_WRITE, 0, 0, 1),
        (1, LOAD, 0, 0, 1),
    ],
}  # fmt: skip


def run_script(policy: FlushPolicy, rows: list[tuple[int, int, int, int, int]]) -> set[Violation]:
    """Classes of violations after a script: two CPUs of one process, three shared file pages mapped writable."""
    mapped = np.zeros((1, 4), np.int32)
    trace = Trace(
        events=np.array(rows, np.int32), vmas=np.array(VMAS, np.int32), page_vma=mapped, page_backing=np.arange(4, dtype=np.int32)[None],
        loaded=np.zeros(2, np.int32), num_file_pages=4, num_anon=1,
    )  # fmt: skip
    shape = MachineShape(2, 1, 4, 8, 2, 4, 1, TlbGeometry(1, 4), TlbGeometry(1, 8), 2, 4, 4, 4, 4)
    (state,) = states_after(shape, MachineParams(*NUMBERS, policy), trace, [len(rows)])
    found = violations_of(state)
    return {kind for kind in Violation if found["loads"][kind] + found["stores"][kind]}


@pytest.mark.parametrize("kind", SCRIPTS, ids=lambda kind: kind.name)
def test_never_shows_the_class(kind: Violation) -> None:
    assert kind in run_script(load_policy("never"), SCRIPTS[kind])


@pytest.mark.parametrize("policy", SAFE)
@pytest.mark.parametrize("kind", SCRIPTS, ids=lambda kind: kind.name)
def test_safe_policies_do_not(policy: str, kind: Violation) -> None:
    allowed = {Violation.OLD_VALUE} if policy == "luf_v10" else set()
    assert run_script(load_policy(policy), SCRIPTS[kind]) <= allowed


@pytest.mark.parametrize(("policy", "found"), [("luf_v10", {Violation.ATOMIC_FLUSH}), ("linux", set()), ("never", set())])
def test_only_a_policy_that_owes_flushes_from_an_allocation_that_may_not_wait(policy: str, found: set[Violation]) -> None:
    rows = [(1, LOAD, 2, 0, 1), (0, Op.RECLAIM, 2, 0, 1), (0, Op.RECLAIM_FLUSH, 0, 0, 1), (0, Op.ALLOC_ATOMIC, 0, 0, 1)]
    assert run_script(load_policy(policy), rows) == found


def test_every_class_of_accesses_has_a_script() -> None:
    assert set(SCRIPTS) | {Violation.ATOMIC_FLUSH} == set(Violation)


@pytest.mark.parametrize("workload", ["churn", "kv", "llm"])
def test_safe_policies_stay_clean_under_pressure(workload: str) -> None:
    sizes = {"churn": {"num_files": 16}, "kv": {"data_pages": 64}, "llm": {"file_pages": 128, "layer_pages": 16}}[workload]
    samples = small_run([build_trace(workload, 4, 0, 20_000, **sizes)], [*SAFE, "never"]).samples()
    assert not samples.violations[:-1].any()
    assert samples.violations[-1].any()
