"""The event table: what a machine can be told to do, one row of five integers an event.

A trace holds ``int32[num_events, 5]`` rows ``(cpu, op, vpn, arg, repeat)``. Range calls are expanded into page events
by the workload, the same way for every policy. Rules: docs/MODEL.md, sections 5 to 7.
"""

from __future__ import annotations

import enum

CPU, OP, VPN, ARG, REPEAT = range(5)
EVENT_FIELDS = ("cpu", "op", "vpn", "arg", "repeat")

ANON = -1
"""``arg`` of an anonymous MMAP, ``backing`` of an anonymous initial mapping."""
IDLE = -1
"""``arg`` of a SWITCH to idle; ``loaded`` of a CPU that starts idle."""
FIRST_PAGE = 65536
"""Added to ``repeat`` (the VMA id) of the first page of an MMAP call."""


class Op(enum.IntEnum):
    """Operation codes of an event row."""

    NOP = 0
    LOAD = 1
    STORE = 2
    MMAP = 3
    MUNMAP = 4
    MPROTECT = 5
    MADVISE_DONTNEED = 6
    GATHER_FINISH = 7
    FILE_WRITE = 8
    RECLAIM = 9
    RECLAIM_FLUSH = 10
    ALLOC_FOREIGN = 11
    FREE_FOREIGN = 12
    SWITCH = 13
    TICK = 14
    ALLOC_ATOMIC = 15
    FAULT_INSTALL = 16
    FAULT_FINISH = 17
    TAKE_OFF = 18
    DISCHARGE = 19
    REMOTE_WRITE = 20
    TRUNCATE = 21
    MADVISE_FREE = 22
    EXIT = 23
    MREMAP = 24
    FORK = 25
    MIGRATE = 26


class MicroOp(enum.IntEnum):
    """Kernel micro-steps of a litmus file: edits with no policy behind them (docs/MODEL.md section 11)."""

    PLACE = 64
    MAP = 65
    SET_PTE = 66
    CLEAR_PTE = 67
    WRITE_PROTECT = 68
    MAKE_CLEAN = 69
    FLUSH_PAGE = 70
    FLUSH_MM = 71
    FREE_FRAME = 72
    ALLOC_FRAME = 73
    FILL = 74
    WRITE_OBJECT = 75
    SNAP = 76
    RETURN = 77
    PERMIT = 78


class VmaFlag(enum.IntFlag):
    """Constant properties of a VMA id; a call that changes permission moves pages to another id."""

    READ = 1
    WRITE = 2
    MAYWRITE = 4
    SHARED = 8
    ANON = 16


class Payer(enum.IntEnum):
    """Who caused an interrupt: counted apart."""

    RECLAIM = 0
    MAPPING = 1
    FAULT = 2
    ALLOC = 3


class Violation(enum.IntEnum):
    """Classes of wrong stale accesses, docs/MODEL.md section 8."""

    REUSE = 0
    MAPPING = 1
    PERMISSION = 2
    LOST_STORE = 3
    OLD_VALUE = 4
    ATOMIC_FLUSH = 5
