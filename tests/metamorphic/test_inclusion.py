"""LRU is a stack algorithm: a TLB with more ways never misses more."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.params import TlbGeometry
from tests.golden.page_stream import RECORDINGS, page_stream
from tests.kernels.one_cpu import run_stream

NUM_ACCESSES = 100_000
WAYS = (1, 2, 3, 6)


def misses(vpn: np.ndarray, is_store: np.ndarray, ways: int) -> tuple[int, int]:
    """Misses of the first level, and of both levels."""
    counts = run_stream(vpn, is_store, TlbGeometry(4, ways), TlbGeometry(4, ways))
    last = counts["dtlb_load_misses"] + counts["dtlb_store_misses"]
    return counts["stlb_hit"] + last, last


@pytest.mark.parametrize("recording", RECORDINGS[:1])
def test_more_ways_never_miss_more(recording: str) -> None:
    stream = page_stream(recording)
    found = [misses(stream.vpn[:NUM_ACCESSES], stream.is_store[:NUM_ACCESSES], ways) for ways in WAYS]
    first_level = [first for first, _ in found]
    assert first_level == sorted(first_level, reverse=True)
    assert first_level[0] > first_level[-1] > 0


@pytest.mark.parametrize("ways", WAYS[:2])
def test_a_second_level_as_large_as_the_first_hits_nothing_that_the_first_holds(ways: int) -> None:
    vpn = np.random.default_rng(ways).integers(0, 30, 20_000)
    is_store = np.zeros(vpn.size, bool)
    is_store[np.unique(vpn, return_index=True)[1]] = True
    first, last = misses(vpn, is_store, ways)
    assert 0 < last <= first
