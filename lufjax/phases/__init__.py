"""How one event is executed: a small program of phases.

A lane is always in one phase. A phase is a kernel for one machine: it reads the state, decides, and returns what to write, and which phase
comes next; it does a bounded amount of work. Most accesses finish in ``FETCH``. Work of varying length (a batch to free,
pages to invalidate) is a phase that repeats. ``backends/rollout.py`` runs, in each block of lanes, the phase that most lanes wait for.

A called phase returns to the code in its ``*_ret`` register. Calls never nest into themselves:
FETCH, FAULT, MAPPING, FINISH, OTHER -> ALLOC -> RECLAIM -> UNMAP -> DRAIN -> PCP_DRAIN, and all of them -> FLUSH -> INVLPG.
"""

from __future__ import annotations

import enum


class Phase(enum.IntEnum):
    """What a lane does next. The comment names the kernel path that it models."""

    FETCH = 0  # read the event row; the access that needs no kernel
    STORE = 1  # perform a store through a frame, then the event is complete
    STALE = 2  # judge a stale access
    FAULT = 3  # handle_mm_fault
    FAULT_CLASSIFY = 4
    COW = 5  # wp_page_copy, the frame is there
    COW_FLUSHED = 6
    INSTALL_READ = 7  # the page was read into a frame
    INSTALL_RESIDENT = 8  # the page is in memory
    INSTALL_COPY = 9  # the copy of a broken copy-on-write page
    INSTALL_UPGRADE = 10  # ptep_set_access_flags
    INSTALL = 11  # set_pte_at
    ALLOC = 12  # get_page_from_freelist
    ALLOC_TAKE = 13
    ALLOC_RETRY = 14
    ALLOC_POP = 15
    ALLOC_DONE = 16
    REFILL = 17  # rmqueue_bulk
    PCP_DRAIN = 18  # free_pcppages_bulk
    BACKGROUND = 19  # kswapd, at the start of an event
    RECLAIM = 20  # shrink_folio_list, one entry
    UNMAP = 21  # flushes that an unmap owes at once
    UNMAP_FLUSHED = 22
    DRAIN = 23  # try_to_unmap_flush, then free the list
    DRAIN_FLUSHED = 24
    DRAIN_FREE = 25
    FLUSH = 26  # flush_tlb_mm_range, arch_tlbbatch_flush
    FLUSH_NEXT = 27
    INVLPG = 28  # one page of a ranged flush
    MAPPING = 29  # MMAP, MUNMAP, MPROTECT, MADVISE_DONTNEED page events: flush_tlb_batched_pending and its rivals
    MAPPING_VA = 30
    MAPPING_VA_PAID = 31
    MAPPING_FLAG = 32
    MAPPING_EDIT = 33  # zap_pte_range, change_pte_range
    MAPPING_FIXED = 34
    FIXED_FINISH = 35  # MAP_FIXED: the end of the unmapping
    FIXED_FREE = 36
    MAPPING_MAP = 37
    FINISH = 38  # tlb_finish_mmu
    FINISH_HELD = 39
    FINISH_PROMISE = 40
    SCHEDULE = 41  # SWITCH, TICK
    OTHER = 42  # FILE_WRITE, RECLAIM, RECLAIM_FLUSH, allocations by others; the way to ops with phases of their own
    OTHER_ALLOCATED = 43
    OTHER_WRITE = 44
    RELEASE = 45  # end of the quarantine
    RELEASE_FREE = 46
    COMPLETE = 47  # the event is over
    MICRO = 48  # one micro-step of a litmus file
    ATOMIC = 49  # an allocation that may not wait for other CPUs
    ATOMIC_CHOOSE = 50
    ATOMIC_TAKEN = 51
    INSTALL_MARKED = 52  # the marker is paid for
    INSTALL_BEFORE = 53  # what a fault pays before its PTE can be seen
    INSTALL_AFTER = 54
    INSTALL_FILL = 55  # the PTE can be seen, everything is paid
    HALF = 56  # FAULT_INSTALL, FAULT_FINISH
    HALF_INSTALLED = 57
    TAKE = 58  # TAKE_OFF, DISCHARGE
    TAKEN = 59  # a frame has left the lists with its debt
    FORCED_FLUSH = 60  # luf_flush_mm, luf_flush_mapping
    INVALIDATE = 70  # invalidate_inode_pages2, truncate_pagecache
    INVALIDATE_LOOK = 71
    INVALIDATE_SCAN = 72
    WITHDRAW = 73  # zap_page_range_single, of one page that maps the file page
    WITHDRAW_FLAG = 74
    WITHDRAW_ZAP = 75
    WITHDRAW_SETTLE = 76
    WITHDRAW_PUT = 77
    INVALIDATE_PAID = 78
    LAZYFREE = 79  # madvise_free_pte_range
    LAZYFREE_MARK = 80  # folio_mark_lazyfree
    EXIT = 81  # exit_mmap, of one page
    LEAVE = 82  # the process has ended
    MREMAP = 83  # move_ptes, of one page
    MREMAP_SETTLE = 84
    MREMAP_MOVE = 85
    SPILL = 86  # get_page_from_freelist falls back to the slow tier
    FREE_SLOW = 87  # a freed frame goes back there
    MIGRATE = 88  # migrate_folio_unmap
    MIGRATE_UNMAP = 89
    MIGRATE_FLUSH = 90  # try_to_unmap_flush, then move_to_new_folio, remove_migration_ptes
    MIGRATE_FLUSHED = 91
    MIGRATE_FREE = 92
    TAKE_SLOW = 93  # alloc_migrate_folio: a frame of the slow tier, without reclaim
    SLOW_TAKEN = 94
    FORK = 95  # copy_present_pte, of one page
    FORK_SETTLE = 96
    FORK_COPY = 97


GROUPS: dict[str, tuple[Phase, ...]] = {
    "fetch": (Phase.FETCH,),
    "store": (Phase.STORE,),
    "stale": (Phase.STALE,),
    "fault": (Phase.FAULT, Phase.FAULT_CLASSIFY),
    "cow": (Phase.COW, Phase.COW_FLUSHED),
    "install": (
        Phase.INSTALL_READ, Phase.INSTALL_RESIDENT, Phase.INSTALL_COPY, Phase.INSTALL_UPGRADE, Phase.INSTALL_MARKED, Phase.INSTALL,
        Phase.INSTALL_FILL,
    ),
    "hook": (Phase.INSTALL_BEFORE, Phase.INSTALL_AFTER),
    "alloc": (Phase.ALLOC, Phase.ALLOC_TAKE, Phase.ALLOC_RETRY, Phase.ALLOC_POP, Phase.ALLOC_DONE),
    "pcp": (Phase.REFILL, Phase.PCP_DRAIN),
    "reclaim": (Phase.BACKGROUND, Phase.RECLAIM),
    "unmap": (Phase.UNMAP, Phase.UNMAP_FLUSHED),
    "drain": (Phase.DRAIN, Phase.DRAIN_FLUSHED, Phase.DRAIN_FREE),
    "flush": (Phase.FLUSH, Phase.FLUSH_NEXT),
    "invlpg": (Phase.INVLPG,),
    "mapping": (Phase.MAPPING, Phase.MAPPING_VA, Phase.MAPPING_VA_PAID, Phase.MAPPING_FLAG),
    "edit": (Phase.MAPPING_EDIT, Phase.MAPPING_FIXED),
    "fixed": (Phase.FIXED_FINISH, Phase.FIXED_FREE),
    "map": (Phase.MAPPING_MAP,),
    "finish": (Phase.FINISH, Phase.FINISH_HELD, Phase.FINISH_PROMISE),
    "schedule": (Phase.SCHEDULE,),
    "other": (Phase.OTHER, Phase.OTHER_ALLOCATED, Phase.OTHER_WRITE),
    "half": (Phase.HALF, Phase.HALF_INSTALLED),
    "take": (Phase.TAKE, Phase.TAKEN),
    "micro": (Phase.MICRO,),
    "atomic": (Phase.ATOMIC, Phase.ATOMIC_CHOOSE, Phase.ATOMIC_TAKEN),
    "forced": (Phase.FORCED_FLUSH,),
    "invalidate": (Phase.INVALIDATE, Phase.INVALIDATE_PAID, Phase.INVALIDATE_LOOK, Phase.INVALIDATE_SCAN),
    "withdraw": (Phase.WITHDRAW, Phase.WITHDRAW_FLAG, Phase.WITHDRAW_ZAP, Phase.WITHDRAW_SETTLE, Phase.WITHDRAW_PUT),
    "lazyfree": (Phase.LAZYFREE,),
    "mark": (Phase.LAZYFREE_MARK,),
    "mremap": (Phase.MREMAP, Phase.MREMAP_SETTLE, Phase.MREMAP_MOVE),
    "fork": (Phase.FORK, Phase.FORK_SETTLE, Phase.FORK_COPY),
    "process": (Phase.EXIT, Phase.LEAVE),
    "slow": (Phase.SPILL, Phase.FREE_SLOW),
    "migrate": (Phase.MIGRATE,),
    "slow_target": (Phase.TAKE_SLOW, Phase.SLOW_TAKEN),
    "moved": (Phase.MIGRATE_UNMAP,),
    "migrated": (Phase.MIGRATE_FLUSH, Phase.MIGRATE_FLUSHED, Phase.MIGRATE_FREE),
    "complete": (Phase.COMPLETE,),
    "release": (Phase.RELEASE, Phase.RELEASE_FREE),
}  # fmt: skip
"""Kernel -> the codes it executes."""
