"""Refuses an event row that names something outside the machine, before it reaches the machine."""

from __future__ import annotations

import numpy as np

from lufjax.events import ANON, FIRST_PAGE, IDLE, MicroOp, Op
from lufjax.params import MachineShape


def check_rows(shape: MachineShape, events: np.ndarray) -> None:
    """Refuse an event row that names something outside the machine.

    Raises:
        ValueError: names the row, the field, the value and what is allowed.
    """
    cpu, op, vpn, arg, repeat = np.ascontiguousarray(np.asarray(events).reshape(-1, 5).T)
    is_access = (op == Op.LOAD) | (op == Op.STORE)
    vma = np.where(op == Op.MMAP, repeat % FIRST_PAGE, np.where(op == Op.FORK, repeat, 0))

    def need(bad: np.ndarray, field: str, values: np.ndarray, allowed: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            name = Op(int(op[row])).name if op[row] in set(Op) else op[row]
            raise ValueError(f"event {row + 1} ({name}): {field}={values[row]}: allowed are {allowed}")

    need((cpu < 0) | (cpu >= shape.num_cpus), "cpu", cpu, f"0 to {shape.num_cpus - 1}")
    need(~np.isin(op, [*Op, *MicroOp]), "op", op, f"0 to {max(Op)}, or {min(MicroOp)} to {max(MicroOp)}")
    need((vpn < 0) | (vpn >= shape.num_vpns), "vpn", vpn, f"0 to {shape.num_vpns - 1}")
    need(is_access & (repeat < 1), "repeat", repeat, "1 or more")
    is_mmap, files = op == Op.MMAP, shape.num_file_pages
    need(is_mmap & ((arg < ANON) | (arg >= files)), "arg", arg, f"{ANON} (anonymous) or a file page below {files}")
    need(((op == Op.MMAP) | (op == Op.FORK)) & ((vma >= shape.num_vmas) | (repeat < 0)), "repeat", repeat, f"a VMA id below {shape.num_vmas}")
    need((op == Op.MPROTECT) & ((arg < 0) | (arg >= shape.num_vmas)), "arg", arg, f"a VMA id below {shape.num_vmas}")
    is_flag = np.isin(op, [Op.GATHER_FINISH, Op.FAULT_INSTALL, Op.RECLAIM_FLUSH])
    need((op == Op.MREMAP) & ((arg < 0) | (arg >= shape.num_vpns)), "arg", arg, f"0 to {shape.num_vpns - 1}")
    of_process = (op == Op.MIGRATE) | (op == Op.FORK)
    need(of_process & ((arg < 0) | (arg >= shape.num_processes)), "arg", arg, f"a process below {shape.num_processes}")
    need(is_flag & ((arg < 0) | (arg > 1)), "arg", arg, "0 or 1")
    of_file = np.isin(op, [Op.FILE_WRITE, Op.REMOTE_WRITE, Op.TRUNCATE])
    need(of_file & ((arg < 0) | (arg >= files)), "arg", arg, f"a file page below {files}")
    processes = (op == Op.SWITCH) | (op == Op.RECLAIM)
    need(processes & ((arg < IDLE) | (arg >= shape.num_processes)), "arg", arg, f"-1 or a process below {shape.num_processes}")
