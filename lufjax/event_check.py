"""Refuses an event row that names something outside the machine, before it reaches the machine."""

from __future__ import annotations

import numpy as np

from lufjax.events import ANON, EVENT_FIELDS, FIRST_PAGE, IDLE, OP, MicroOp, Op
from lufjax.params import MachineShape


def check_rows(shape: MachineShape, events: np.ndarray) -> None:
    """Refuse an event row that names something outside the machine.

    Raises:
        ValueError: names the row, the field, the value and what is allowed.
    """
    cpu, op, vpn, _, repeat = columns = np.ascontiguousarray(np.asarray(events).reshape(-1, 5).T)
    _need(columns, (cpu < 0) | (cpu >= shape.num_cpus), "cpu", f"0 to {shape.num_cpus - 1}")
    known = np.zeros(max(MicroOp) + 1, bool)
    known[[*Op, *MicroOp]] = True
    _need(columns, (op < 0) | (op >= len(known)) | ~known[np.clip(op, 0, max(MicroOp))], "op", f"0 to {max(Op)}, or {min(MicroOp)} to {max(MicroOp)}")
    _need(columns, (vpn < 0) | (vpn >= shape.num_vpns), "vpn", f"0 to {shape.num_vpns - 1}")
    is_access = (op == Op.LOAD) | (op == Op.STORE)
    _need(columns, is_access & (repeat < 1), "repeat", "1 or more")
    _check_calls(shape, np.flatnonzero(~is_access), columns)


def _check_calls(shape: MachineShape, rows: np.ndarray, columns: np.ndarray) -> None:
    """What events other than accesses, which are the most, name in ``arg`` and ``repeat``."""
    _, op, _, arg, repeat = of = columns[:, rows]
    vma = np.where(op == Op.MMAP, repeat % FIRST_PAGE, np.where(op == Op.FORK, repeat, 0))

    def need(bad: np.ndarray, field: str, allowed: str) -> None:
        _need(of, bad, field, allowed, rows)

    is_mmap, files = op == Op.MMAP, shape.num_file_pages
    need(is_mmap & ((arg < ANON) | (arg >= files)), "arg", f"{ANON} (anonymous) or a file page below {files}")
    need((is_mmap | (op == Op.FORK)) & ((vma >= shape.num_vmas) | (repeat < 0)), "repeat", f"a VMA id below {shape.num_vmas}")
    need((op == Op.MPROTECT) & ((arg < 0) | (arg >= shape.num_vmas)), "arg", f"a VMA id below {shape.num_vmas}")
    is_flag = np.isin(op, [Op.GATHER_FINISH, Op.FAULT_INSTALL, Op.RECLAIM_FLUSH])
    need((op == Op.MREMAP) & ((arg < 0) | (arg >= shape.num_vpns)), "arg", f"0 to {shape.num_vpns - 1}")
    of_process = (op == Op.MIGRATE) | (op == Op.FORK)
    need(of_process & ((arg < 0) | (arg >= shape.num_processes)), "arg", f"a process below {shape.num_processes}")
    need(is_flag & ((arg < 0) | (arg > 1)), "arg", "0 or 1")
    of_file = np.isin(op, [Op.FILE_WRITE, Op.REMOTE_WRITE, Op.TRUNCATE])
    need(of_file & ((arg < 0) | (arg >= files)), "arg", f"a file page below {files}")
    processes = (op == Op.SWITCH) | (op == Op.RECLAIM)
    need(processes & ((arg < IDLE) | (arg >= shape.num_processes)), "arg", f"-1 or a process below {shape.num_processes}")


def _need(columns: np.ndarray, bad: np.ndarray, field: str, allowed: str, rows: np.ndarray | None = None) -> None:
    """Refuse the first bad one of some events, of which ``rows`` says where they are in the trace."""
    if bad.any():
        at = int(np.argmax(bad))
        op, value = columns[OP, at], columns[EVENT_FIELDS.index(field), at]
        name = Op(int(op)).name if op in set(Op) else op
        raise ValueError(f"event {(at if rows is None else rows[at]) + 1} ({name}): {field}={value}: allowed are {allowed}")
