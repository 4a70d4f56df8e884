"""A row that names something outside the machine is refused in one line that says which, and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.event_check import check_rows
from lufjax.events import ANON, FIRST_PAGE, Op
from lufjax.params import MachineShape

SHAPE = MachineShape(num_cpus=2, num_processes=2, num_vpns=4, num_frames=4, num_vmas=3, num_file_pages=2, num_anon=4)
GOOD = [
    (0, Op.LOAD, 3, 7, 1), (1, Op.STORE, 0, 0, 9), (0, Op.MMAP, 0, ANON, FIRST_PAGE + 2), (0, Op.GATHER_FINISH, 0, 1, 0), (0, Op.SWITCH, 0, -1, 0),
    (0, Op.FORK, 0, 1, 2),
]  # fmt: skip
BAD = [
    ((2, Op.LOAD, 0, 0, 1), "(LOAD): cpu=2: allowed are 0 to 1"), ((-1, Op.LOAD, 0, 0, 1), "(LOAD): cpu=-1: "),
    ((0, 999, 0, 0, 1), "(999): op=999: allowed are 0 to "), ((0, -1, 0, 0, 1), "(-1): op=-1: "),
    ((0, Op.STORE, 4, 0, 1), "(STORE): vpn=4: allowed are 0 to 3"), ((0, Op.MUNMAP, -1, 0, 0), "(MUNMAP): vpn=-1: "),
    ((0, Op.LOAD, 0, 0, 0), "(LOAD): repeat=0: allowed are 1 or more"),
    ((0, Op.MMAP, 0, 2, 0), "(MMAP): arg=2: allowed are -1 (anonymous) or a file page below 2"),
    ((0, Op.MMAP, 0, 0, FIRST_PAGE + 3), f"(MMAP): repeat={FIRST_PAGE + 3}: allowed are a VMA id below 3"),
    ((0, Op.FORK, 0, 1, 3), "(FORK): repeat=3: "), ((0, Op.FORK, 0, 2, 0), "(FORK): arg=2: allowed are a process below 2"),
    ((0, Op.MPROTECT, 0, 3, 0), "(MPROTECT): arg=3: "), ((0, Op.MREMAP, 0, 4, 0), "(MREMAP): arg=4: allowed are 0 to 3"),
    ((0, Op.MIGRATE, 0, -1, 0), "(MIGRATE): arg=-1: "), ((0, Op.GATHER_FINISH, 0, 2, 0), "(GATHER_FINISH): arg=2: allowed are 0 or 1"),
    ((0, Op.TRUNCATE, 0, 2, 0), "(TRUNCATE): arg=2: "), ((0, Op.SWITCH, 0, 2, 0), "(SWITCH): arg=2: allowed are -1 or a process below 2"),
]  # fmt: skip


def test_rows_of_this_machine_pass() -> None:
    check_rows(SHAPE, np.array(GOOD, np.int32))
    check_rows(SHAPE, np.zeros((0, 5), np.int32))


@pytest.mark.parametrize(("row", "says"), BAD)
def test_the_first_bad_row_is_named(row: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match="event") as raised:
        check_rows(SHAPE, np.array([*GOOD, row, *GOOD, row], np.int32))
    assert str(raised.value).startswith(f"event {len(GOOD) + 1} {says}")
