"""TLB misses against two other simulators: an independent LRU list, and valgrind's cachegrind with lines of 4,096 bytes."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from lufjax.params import TlbGeometry
from tests.golden.page_stream import GEOMETRIES, RECORDINGS, page_stream
from tests.kernels.one_cpu import run_stream

CACHEGRIND = json.loads((Path(__file__).parents[1] / "golden" / "cachegrind.json").read_text())


def lru_misses(keys: list[int], size: int) -> list[int]:
    """The keys that miss in an LRU list of ``size``, in order."""
    kept: OrderedDict[int, None] = OrderedDict()
    missed = []
    for key in keys:
        if key in kept:
            kept.move_to_end(key)
            continue
        missed.append(key)
        kept[key] = None
        if len(kept) > size:
            kept.popitem(last=False)
    return missed


def check_fully_associative(vpn: np.ndarray, is_store: np.ndarray, ways: tuple[int, int]) -> None:
    """The engine's misses are those of two LRU lists, the second one used by misses of the first."""
    is_store = is_store.copy()
    is_store[np.unique(vpn, return_index=True)[1]] = True
    first = lru_misses(vpn.tolist(), ways[0])
    second = lru_misses(first, ways[1])
    counts = run_stream(vpn, is_store, TlbGeometry(1, ways[0]), TlbGeometry(1, ways[1]))
    assert counts["stlb_hit"] == len(first) - len(second)
    assert counts["dtlb_load_misses"] + counts["dtlb_store_misses"] == len(second)


@pytest.mark.parametrize("recording", RECORDINGS)
@pytest.mark.parametrize("ways", [(8, 48), (64, 64)])
def test_fully_associative_tlbs_miss_as_an_lru_list(recording: str, ways: tuple[int, int]) -> None:
    stream = page_stream(recording)
    check_fully_associative(stream.vpn[:200_000], stream.is_store[:200_000], ways)


@pytest.mark.parametrize("seed", range(5))
def test_fully_associative_tlbs_miss_as_an_lru_list_on_random_pages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vpn = rng.integers(0, rng.integers(10, 60), 20_000)
    vpn = np.where(rng.random(vpn.size) < 0.3, np.arange(vpn.size) % 40, vpn)
    check_fully_associative(vpn, rng.random(vpn.size) < 0.3, (8, 48))


@pytest.mark.parametrize("recording", RECORDINGS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_set_associative_tlbs_miss_as_in_cachegrind(recording: str, geometry: str) -> None:
    stream = page_stream(recording)
    assert CACHEGRIND[recording]["digest"] == stream.digest, "the recording is another one: python -m tests.golden.regenerate_cachegrind"
    counts = run_stream(stream.vpn, stream.is_store, *(TlbGeometry(*level) for level in GEOMETRIES[geometry]))
    misses = counts["dtlb_load_misses"] + counts["dtlb_store_misses"]
    assert CACHEGRIND[recording][geometry] == {
        "loads": counts["loads"], "stores": counts["stores"], "first_level_misses": counts["stlb_hit"] + misses,
        "load_misses": counts["dtlb_load_misses"], "store_misses": counts["dtlb_store_misses"],
    }  # fmt: skip
