"""Random tiny machines and random well-formed events for them; what the differential tests feed to every implementation.

The shapes come from a short list, because a compiled engine needs one program for each.
"""

from __future__ import annotations

import random
from typing import Any

from .generate_events import random_events
from .policies import random_policy

__all__ = ["SHAPES", "VMA_KINDS", "random_events", "random_machine", "random_params", "random_trace"]

READ, WRITE, MAYWRITE, SHARED, ANON = 1, 2, 4, 8, 16
VMA_KINDS: tuple[tuple[str, int], ...] = (
    ("shared", READ | SHARED),
    ("shared", READ | WRITE | MAYWRITE | SHARED),
    ("shared", MAYWRITE | SHARED),
    ("private", READ | MAYWRITE),
    ("private", READ | WRITE | MAYWRITE),
    ("private", MAYWRITE),
    ("anon", READ | WRITE | MAYWRITE | ANON),
    ("anon", READ | MAYWRITE | ANON),
    ("anon", MAYWRITE | ANON),
)
"""VMA id -> (kind, flags). MPROTECT moves pages only between ids of one kind."""


def _shape(num_cpus: int, num_processes: int, num_vpns: int, num_frames: int, l1: dict[str, Any], l2: dict[str, Any]) -> dict[str, Any]:
    num_pages = num_processes * num_vpns
    return {
        "num_cpus": num_cpus, "num_processes": num_processes, "num_vpns": num_vpns, "num_frames": num_frames,
        "num_vmas": len(VMA_KINDS), "num_file_pages": 5, "num_anon": 2 * num_pages + 2, "l1": l1, "l2": l2,
        "rmap_slots": num_pages, "gather_slots": num_vpns, "batch_slots": 6, "pcp_slots": 8, "quarantine_slots": 6,
    }  # fmt: skip


def _level(sets: int, ways: int, index: str = "linear", replacement: str = "lru") -> dict[str, Any]:
    return {"sets": sets, "ways": ways, "index": index, "replacement": replacement}


SHAPES: tuple[dict[str, Any], ...] = (
    _shape(3, 2, 6, 8, _level(1, 2), _level(2, 2)),
    _shape(2, 1, 8, 10, _level(2, 2), _level(2, 4, "xor")),
    _shape(4, 3, 4, 12, _level(2, 1), _level(3, 2)),
    _shape(3, 2, 12, 16, _level(2, 4, "xor", "plru"), _level(1, 12, "linear", "ring12")),
)
"""Sizes of the machines that :func:`random_machine` draws from; the last one has the tree replacements."""


def random_params(rng: random.Random, sizes: dict[str, Any]) -> dict[str, int]:
    """Draw the traced numbers of a lane, with watermarks low enough that reclaim works and allocation may fail."""
    wmark_min = rng.randint(0, 2)
    wmark_low = wmark_min + rng.randint(0, 2)
    frames = rng.randint(max(2, sizes["num_frames"] - 6), sizes["num_frames"])
    return {
        "frames_in_use": frames,
        "wmark_min": wmark_min, "wmark_low": wmark_low, "wmark_high": wmark_low + rng.randint(0, 3),
        "pcp_batch": rng.randint(1, 3), "pcp_high": rng.randint(1, 4), "reclaim_batch": rng.randint(1, sizes["batch_slots"]),
        "kswapd_cpu": rng.randrange(sizes["num_cpus"]), "load_mode": rng.randrange(2),
        "fast_frames": rng.choice((frames, rng.randint(1, frames))),
    }  # fmt: skip


def random_trace(rng: random.Random, sizes: dict[str, Any]) -> dict[str, Any]:
    """Draw the initial mappings: about two pages in three are mapped, half of the CPUs or more run a process."""
    page_vma, page_backing = [], []
    for _ in range(sizes["num_processes"]):
        vmas = [rng.randrange(len(VMA_KINDS)) if rng.random() < 0.67 else -1 for _ in range(sizes["num_vpns"])]
        file_page = [rng.randrange(sizes["num_file_pages"]) for _ in vmas]
        page_vma.append(vmas)
        page_backing.append([-1 if a < 0 or VMA_KINDS[a][0] == "anon" else b for a, b in zip(vmas, file_page, strict=True)])
    loaded = [-1 if rng.random() < 0.2 else rng.randrange(sizes["num_processes"]) for _ in range(sizes["num_cpus"])]
    return {"vmas": [flags for _, flags in VMA_KINDS], "page_vma": page_vma, "page_backing": page_backing, "loaded": loaded}


def random_machine(
    rng: random.Random, shape: int | None = None
) -> tuple[dict[str, Any], dict[str, int], dict[str, int], dict[str, Any]]:
    """Draw a machine: its sizes (one of ``SHAPES``, or the given one), parameters, policy and initial trace."""
    sizes = SHAPES[rng.randrange(len(SHAPES)) if shape is None else shape]
    params, trace = random_params(rng, sizes), random_trace(rng, sizes)
    return sizes, params, random_policy(rng, sizes["quarantine_slots"]), trace
