"""The flush policy: one record of integers, one field per decision, so that a sweep over policies is one more batch axis.

Fields and their meaning: docs/MODEL.md section 9. Presets live in ``conf/policy/*.yaml`` and name values by word.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CHOICES: dict[str, tuple[str, ...]] = {
    "reclaim_flush": ("never", "page", "batch", "take_off", "owner"),
    "defer_pages": ("read_only", "clean", "any"),
    "debt_merge": ("open_generation", "per_frame"),
    "absorb": ("off", "on"),
    "targets": ("mm_cpumask", "uncovered"),
    "credit": ("full", "batch", "batch_and_mm"),
    "migrate_flush": ("off", "now", "defer"),
    "kept_debt": ("carried", "lost", "flushed"),
    "debt_scope": ("global", "mm_and_file"),
    "pending_to": ("head", "tail"),
    "buddy_tag": ("kept", "lost"),
    "buddy_merge": ("off", "newest"),
    "refill_tag": ("kept", "task"),
    "atomic_alloc": ("flush", "refuse"),
    "init_on_free": ("off", "unpaid", "paid", "refused"),
    "gather_flush": ("none", "now", "page", "owner", "ticks"),
    "batched_pending": ("off", "on"),
    "munmap_debt_rule": ("none", "vma_flag", "pte_marker", "pending", "always", "gather_hook"),
    "marker_fault": ("nothing", "flush"),
    "va_rule": ("off", "on"),
    "write_fault_flush": ("off", "wp", "before", "after"),
    "mmap_flush": ("off", "on"),
    "file_write_flush": ("off", "on"),
    "invalidate_flush": ("off", "on"),
    "cow_flush": ("off", "on"),
    "flush_dirty": ("off", "on"),
    "switch_flush": ("off", "on"),
    "lazy_skip": ("off", "on"),
    "mask_on_switch": ("clear", "keep"),
    "reclaim_remove": ("after_flush", "before_flush"),
    "transport": ("interrupt", "broadcast"),
}
"""Field -> words, in the order of their integer values."""

RANGES: dict[str, tuple[int, int]] = {
    "trim_period": (1, 2**30),
    "flush_ceiling": (0, 512),
    "latr_ticks": (1, 1024),
    "quarantine_slots": (0, 1024),
    "gen_bits": (2, 30),
}
"""Numeric field -> smallest and largest value allowed."""


class FlushPolicy(NamedTuple):
    """The record of rules; every leaf is an ``int32`` scalar when traced.

    Defaults are those of Linux 6.1 (``conf/policy/linux.yaml``).
    """

    reclaim_flush: Any = 2
    defer_pages: Any = 0
    debt_merge: Any = 0
    absorb: Any = 0
    targets: Any = 0
    credit: Any = 0
    migrate_flush: Any = 1
    kept_debt: Any = 0
    debt_scope: Any = 0
    pending_to: Any = 0
    buddy_tag: Any = 0
    buddy_merge: Any = 0
    refill_tag: Any = 0
    atomic_alloc: Any = 0
    init_on_free: Any = 0
    gather_flush: Any = 1
    batched_pending: Any = 1
    munmap_debt_rule: Any = 0
    marker_fault: Any = 0
    va_rule: Any = 0
    write_fault_flush: Any = 0
    mmap_flush: Any = 0
    file_write_flush: Any = 0
    invalidate_flush: Any = 0
    cow_flush: Any = 1
    flush_dirty: Any = 1
    switch_flush: Any = 1
    lazy_skip: Any = 1
    mask_on_switch: Any = 0
    reclaim_remove: Any = 0
    transport: Any = 0
    trim_period: Any = 100000
    flush_ceiling: Any = 33
    latr_ticks: Any = 2
    quarantine_slots: Any = 64
    gen_bits: Any = 30


def from_words(words: dict[str, Any]) -> FlushPolicy:
    """Build a policy from words (``{"reclaim_flush": "batch", "flush_ceiling": 33}``); every field must be given.

    Raises:
        ValueError: one line naming the field, the value and what is allowed.
    """
    unknown = sorted(set(words) - set(FlushPolicy._fields))
    if unknown:
        raise ValueError(f"policy.{unknown[0]}: no such rule; rules are {', '.join(FlushPolicy._fields)}")
    missing = sorted(set(FlushPolicy._fields) - set(words))
    if missing:
        raise ValueError(f"policy.{missing[0]}: missing; a policy names every rule")
    return FlushPolicy(**{field: _value(field, words[field]) for field in FlushPolicy._fields})


def _value(field: str, word: Any) -> int:
    if field in CHOICES:
        choices = CHOICES[field]
        word = {True: "on", False: "off"}.get(word, word) if isinstance(word, bool) else word
        if word not in choices:
            raise ValueError(f"policy.{field}={word}: allowed are {', '.join(choices)}")
        return choices.index(word)
    low, high = RANGES[field]
    if not isinstance(word, int) or isinstance(word, bool) or not low <= word <= high:
        raise ValueError(f"policy.{field}={word}: allowed are integers from {low} to {high}")
    return word


def to_words(policy: FlushPolicy) -> dict[str, Any]:
    """Inverse of :func:`from_words` for a policy of Python integers."""
    return {f: CHOICES[f][int(v)] if f in CHOICES else int(v) for f, v in policy._asdict().items()}
