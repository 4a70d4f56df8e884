"""Integer random draws at an address: the same words give the same numbers on every machine and numpy version."""

from __future__ import annotations

import math
import zlib
from functools import lru_cache

import numpy as np

_ZIPF_SCALE_BITS = 32


class Draws:
    """Integer draws from one PCG64 stream.

    Only the raw 64-bit output of the bit generator is used: numpy fixes that stream, not the methods of ``Generator`` (NEP 19).

    Args:
        name: what is drawn for, for example a workload name.
        numbers: non-negative integers of the address, for example ``num_cpus`` and ``seed``.
    """

    def __init__(self, name: str, *numbers: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([zlib.crc32(name.encode()), *numbers]))

    def raw(self, count: int) -> np.ndarray:
        """Draw ``uint64[count]``."""
        return self._bits.random_raw(count)

    def below(self, bound: int, count: int) -> np.ndarray:
        """Draw ``int64[count]`` in ``0 .. bound - 1``; ``bound`` at most 2**31."""
        return (((self.raw(count) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def chance(self, percent: int, count: int) -> np.ndarray:
        """Draw ``bool[count]``, true ``percent`` times in a hundred."""
        return self.below(100, count) < percent

    def order(self, count: int) -> np.ndarray:
        """Draw a permutation of ``0 .. count - 1``."""
        return np.argsort(self.raw(count), kind="stable")

    def zipf(self, num_items: int, quarters: int, count: int) -> np.ndarray:
        """Draw ranks ``int64[count]`` with weight proportional to ``(rank + 1) ** -(quarters / 4)``; 0 is uniform."""
        table = zipf_table(num_items, quarters)
        return np.searchsorted(table, self.raw(count) % table[-1], side="right").astype(np.int64)


@lru_cache(maxsize=32)
def zipf_table(num_items: int, quarters: int) -> np.ndarray:
    """Return the cumulative weights ``uint64[num_items]``, each weight a rounded-down integer and at least 1.

    ``floor(x ** (1/4))`` is two integer square roots, so no float decides a weight.
    """
    one = 1 << (4 * _ZIPF_SCALE_BITS)
    weights = [max(1, math.isqrt(math.isqrt(one // rank**quarters))) for rank in range(1, num_items + 1)]
    table = np.cumsum(np.array(weights, dtype=np.uint64), dtype=np.uint64)
    table.flags.writeable = False
    return table
