"""A list that is too small stops the lane and says which; nothing wraps or is dropped silently."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.engine import simulate
from lufjax.events import ANON, FIRST_PAGE, Op, VmaFlag
from lufjax.faults import EngineFault, Fault
from lufjax.machines import Machine
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.trace import Trace

READ, WRITE, MAYWRITE, SHARED = VmaFlag.READ, VmaFlag.WRITE, VmaFlag.MAYWRITE, VmaFlag.SHARED
FILE, ANONYMOUS = READ | MAYWRITE | SHARED, READ | WRITE | MAYWRITE | VmaFlag.ANON
PARAMS = MachineParams(8, 0, 0, 0, 1, 1, 1, 0, 0, 8, FlushPolicy())
SHAPE = MachineShape(1, 1, 6, 8, 2, 2, 2, TlbGeometry(1, 2), TlbGeometry(1, 2), 2, 3, 1, 2, 1)
"""Two PTEs a frame, three pages a call, two anonymous pages."""
CASES = {
    Fault.RMAP_FULL: [(0, Op.LOAD, v, 0, 1) for v in range(3)],
    Fault.GATHER_FULL: [(0, Op.MUNMAP, v, 0, 1) for v in range(4)],
    Fault.ANON_POOL_EMPTY: [(0, Op.MMAP, v, ANON, 1 + FIRST_PAGE) for v in range(3)],
}


def trace_with(rows: list[tuple[int, int, int, int, int]]) -> Trace:
    """One process that maps file page 0 at every address."""
    return Trace(
        events=np.array(rows, np.int32), vmas=np.array([FILE, ANONYMOUS], np.int32), page_vma=np.zeros((1, 6), np.int32),
        page_backing=np.zeros((1, 6), np.int32), loaded=np.zeros(1, np.int32), num_file_pages=2, num_anon=2,
    )  # fmt: skip


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.name)
def test_a_full_list_is_an_engine_fault(fault: Fault) -> None:
    trace = trace_with(CASES[fault])
    lanes = MachineParams(*(np.array([x], np.int32) for x in PARAMS[:-1]), policy=FlushPolicy(*(np.array([x], np.int32) for x in PARAMS.policy)))
    with pytest.raises(EngineFault, match=fault.name) as caught:
        simulate(SHAPE, lanes, [trace], np.zeros(1, np.int32), sample_points=[trace.num_events])
    assert (caught.value.word, caught.value.lane) == (fault, 0)


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.name)
def test_it_stops_at_the_event_that_does_not_fit(fault: Fault) -> None:
    machine, rows = Machine(SHAPE, PARAMS, trace_with([])), CASES[fault]
    for row in rows[:-1]:
        machine.step(row)
    with pytest.raises(EngineFault, match=fault.name):
        machine.step(rows[-1])


def test_a_row_outside_the_machine_is_refused() -> None:
    machine = Machine(SHAPE, PARAMS, trace_with([]))
    with pytest.raises(ValueError, match=r"vpn=6: allowed are 0 to 5"):
        machine.step((0, Op.LOAD, 6, 0, 1))
