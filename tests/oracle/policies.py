"""Policy records as plain integers: the presets, and records drawn at random over every field."""

from __future__ import annotations

import random

LINUX = {
    "reclaim_flush": 2, "defer_pages": 0, "debt_merge": 0, "absorb": 0, "targets": 0, "credit": 0, "migrate_flush": 1, "kept_debt": 0,
    "debt_scope": 0, "pending_to": 0, "buddy_tag": 0, "buddy_merge": 0, "refill_tag": 0, "atomic_alloc": 0, "init_on_free": 0, "gather_flush": 1,
    "batched_pending": 1, "munmap_debt_rule": 0, "marker_fault": 0, "va_rule": 0, "write_fault_flush": 0, "mmap_flush": 0,
    "file_write_flush": 0, "invalidate_flush": 0, "cow_flush": 1, "flush_dirty": 1, "switch_flush": 1, "lazy_skip": 1,
    "mask_on_switch": 0, "reclaim_remove": 0, "transport": 0, "trim_period": 100000, "flush_ceiling": 33, "latr_ticks": 2,
    "quarantine_slots": 64, "gen_bits": 30,
}  # fmt: skip
"""Linux 6.1; every other preset is written as the difference to it."""

_LUF = {"reclaim_flush": 3, "migrate_flush": 2, "absorb": 1}
_POSTED = {"kept_debt": 1, "munmap_debt_rule": 3, "buddy_tag": 1, "buddy_merge": 1, "refill_tag": 1, "gen_bits": 16}
PRESETS: dict[str, dict[str, int]] = {
    "linux": LINUX,
    "linux_6_15": LINUX | {"mask_on_switch": 1},
    "eager": LINUX | {"reclaim_flush": 1, "gather_flush": 2, "batched_pending": 0},
    "never": LINUX
    | {"reclaim_flush": 0, "migrate_flush": 0, "gather_flush": 0, "batched_pending": 0, "cow_flush": 0, "flush_dirty": 0, "switch_flush": 0},
    "luf_naive": LINUX | _LUF,
    "luf_vma_flag": LINUX | _LUF | {"munmap_debt_rule": 1},
    "luf_pte_marker": LINUX | _LUF | {"munmap_debt_rule": 2},
    "luf_v10": LINUX | _LUF | {"munmap_debt_rule": 3, "write_fault_flush": 1, "mmap_flush": 1, "gen_bits": 16},
    "luf_v10_as_posted": LINUX | _LUF | _POSTED | {"write_fault_flush": 1, "mmap_flush": 1},
    "luf_v11": LINUX | _LUF | _POSTED | {"file_write_flush": 1},
    "luf_v12": LINUX
    | {
        "reclaim_flush": 3, "migrate_flush": 2, "debt_merge": 1, "targets": 1, "credit": 2, "kept_debt": 2, "debt_scope": 1, "pending_to": 1,
        "atomic_alloc": 1, "munmap_debt_rule": 5, "write_fault_flush": 3, "file_write_flush": 1, "invalidate_flush": 1,
    },
    "luf_always": LINUX | _LUF | {"munmap_debt_rule": 4},
    "fpr": LINUX | {"reclaim_flush": 4, "defer_pages": 1, "debt_merge": 1, "gather_flush": 3, "va_rule": 1},
    "latr": LINUX | {"gather_flush": 4, "va_rule": 1},
}
NUM_CHOICES: dict[str, int] = {
    "reclaim_flush": 5, "defer_pages": 3, "debt_merge": 2, "absorb": 2, "targets": 2, "credit": 3, "migrate_flush": 3, "kept_debt": 3,
    "debt_scope": 2, "pending_to": 2, "buddy_tag": 2, "buddy_merge": 2, "refill_tag": 2, "atomic_alloc": 2, "init_on_free": 4, "gather_flush": 5,
    "batched_pending": 2, "munmap_debt_rule": 6, "marker_fault": 2, "va_rule": 2, "write_fault_flush": 4, "mmap_flush": 2,
    "file_write_flush": 2, "invalidate_flush": 2, "cow_flush": 2, "flush_dirty": 2, "switch_flush": 2, "lazy_skip": 2,
    "mask_on_switch": 2, "reclaim_remove": 2, "transport": 2,
}  # fmt: skip
"""How many values each field of choices has; they are 0, 1, .."""


def random_policy(rng: random.Random, quarantine_slots: int) -> dict[str, int]:
    """Half of the time a preset (with small numbers), else every field at random; at most ``quarantine_slots`` in quarantine."""
    if rng.random() < 0.5:
        policy = dict(PRESETS[rng.choice(sorted(PRESETS))])
    else:
        policy = {field: rng.randrange(count) for field, count in NUM_CHOICES.items()}
    policy["trim_period"] = rng.choice((1, 7, 40, 100000))
    policy["flush_ceiling"] = rng.choice((0, 1, 2, 33))
    policy["latr_ticks"] = rng.choice((1, 2, 3))
    policy["quarantine_slots"] = rng.randint(0, quarantine_slots)
    policy["gen_bits"] = rng.choice((2, 3, 16, 30))
    return policy
