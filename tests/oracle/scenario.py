"""Short machines for tests: one process, roomy TLBs, nothing reclaims by itself."""

from __future__ import annotations

from typing import Any

from . import Oracle
from .generate import VMA_KINDS
from .policies import PRESETS

(NOP, LOAD, STORE, MMAP, MUNMAP, MPROTECT, DONTNEED, FINISH, FILE_WRITE, RECLAIM, RECLAIM_FLUSH, ALLOC_FOREIGN, FREE_FOREIGN,
 SWITCH, TICK, ALLOC_ATOMIC, FAULT_INSTALL, FAULT_FINISH, TAKE_OFF, DISCHARGE, REMOTE_WRITE, TRUNCATE,
 MADVISE_FREE, EXIT, MREMAP, FORK, MIGRATE) = range(27)  # fmt: skip
SHARED_RO, SHARED_RW, SHARED_NONE, PRIVATE_RO, PRIVATE_RW, PRIVATE_NONE, ANON_RW, ANON_RO, ANON_NONE = range(len(VMA_KINDS))
"""VMA ids by what they permit."""


def machine(pages: dict[int, tuple[int, int]], policy: str = "linux", num_cpus: int = 3, **changes: Any) -> Oracle:
    """A machine whose CPUs all run process 0; ``pages`` is {vpn: (vma, backing)}; ``changes`` are sizes, parameters or rules."""
    level = {"sets": 1, "ways": 8, "index": "linear", "replacement": "lru"}
    sizes = {
        "num_cpus": num_cpus, "num_processes": 1, "num_vpns": 8, "num_frames": 16, "num_vmas": len(VMA_KINDS), "num_file_pages": 4,
        "num_anon": 20, "l1": level, "l2": level, "rmap_slots": 8, "gather_slots": 8, "batch_slots": 8, "pcp_slots": 8,
        "quarantine_slots": 8,
    }  # fmt: skip
    params = {
        "frames_in_use": 16, "wmark_min": 1, "wmark_low": 2, "wmark_high": 3, "pcp_batch": 2, "pcp_high": 4, "reclaim_batch": 8,
        "kswapd_cpu": 0, "load_mode": 0, "fast_frames": 16,
    }  # fmt: skip
    rules = PRESETS[policy] | {"quarantine_slots": 8}
    for name, value in changes.items():
        next(record for record in (sizes, params, rules) if name in record)[name] = value
    num_vpns, nothing = sizes["num_vpns"], [[-1] * sizes["num_vpns"]] * (sizes["num_processes"] - 1)
    trace = {
        "vmas": [flags for _, flags in VMA_KINDS], "page_vma": [[pages.get(v, (-1, -1))[0] for v in range(num_vpns)], *nothing],
        "page_backing": [[pages.get(v, (-1, -1))[1] for v in range(num_vpns)], *nothing], "loaded": [0] * num_cpus,
    }  # fmt: skip
    return Oracle(sizes, params, rules, trace)


def run(oracle: Oracle, rows: list[tuple[int, ...]]) -> Oracle:
    """Step through rows (cpu, op, vpn, arg, repeat), of which the last ones may be left out."""
    for row in rows:
        oracle.step((*row, *(0, 0, 1)[len(row) - 2 :]))
    return oracle


def violated(oracle: Oracle) -> set[int]:
    """The classes of violations seen."""
    seen = oracle.violations()
    return {kind for kind in range(6) if seen["loads"][kind] + seen["stores"][kind]}
