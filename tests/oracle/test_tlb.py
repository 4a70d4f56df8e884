"""TLB replacement against independent counts and published vectors."""

from __future__ import annotations

import random

import pytest

from . import scenario
from .tlb import TlbEntry, TlbLevel


def _evictions(replacement: str, num_ways: int, first: str, accesses: str) -> str:
    """What each access evicts ('-': a hit), after the ways were filled twice: by fillers, then with ``first`` through the victim rule."""
    level = TlbLevel(1, num_ways, "linear", replacement)
    output, now = "", 0
    for letter in [*range(1000, 1000 + num_ways), *first, *accesses]:
        now, vpn = now + 1, letter if isinstance(letter, int) else ord(letter)
        before = {e.vpn for e in level.sets[0] if e is not None}
        if level.lookup(0, vpn) is None:
            level.fill(TlbEntry(0, vpn, 0, False, False, now), now)
        else:
            level.touch(0, vpn, now)
        gone = before - {e.vpn for e in level.sets[0] if e is not None}
        output += chr(gone.pop()) if gone else "-"
    return output[-len(accesses) :]


@pytest.mark.parametrize(
    ("replacement", "num_ways", "first", "accesses", "expected"),
    [
        ("plru", 4, "abcd", "aebfcg", "-bcdae"),
        ("plru", 8, "abcdefgh", "acixbj", "--bedg"),
        ("ring12", 12, "abcdefghijkl", "aMgNbO", "-b-ecd"),
    ],
)
def test_published_vectors(replacement: str, num_ways: int, first: str, accesses: str, expected: str) -> None:
    """Vectors measured on Intel first and second levels [tlbdr]."""
    assert _evictions(replacement, num_ways, first, accesses) == expected


def test_drop_leaves_the_tree_alone_and_empty_ways_come_first() -> None:
    level = TlbLevel(1, 4, "linear", "plru")
    for vpn in range(4):
        level.fill(TlbEntry(0, vpn, 0, False, False, 1), 1)
    nodes = list(level.order[0].nodes)
    level.drop(0, 1)
    level.flush(7)
    assert level.order[0].nodes == nodes
    level.fill(TlbEntry(0, 9, 0, False, False, 2), 2)
    assert [e.vpn for e in level.sets[0]] == [0, 9, 2, 3]
    assert all(e.used == 0 for e in level.sets[0])


def test_ring_takes_its_victim_from_the_group_after_the_one_used_last() -> None:
    level = TlbLevel(1, 12, "linear", "ring12")
    for vpn in range(12):
        level.fill(TlbEntry(0, vpn, 0, False, False, 1), 1)
    victims = []
    for vpn in (0, 5, 11):
        level.touch(0, vpn, 2)
        victims.append(level.order[0].victim(level.sets[0]))
    assert victims == [4, 8, 2]


def test_xor_index_folds_the_next_bits() -> None:
    assert [TlbLevel(4, 1, "xor", "lru").set_of(vpn) for vpn in (0, 3, 4, 5, 0b1110)] == [0, 3, 1, 0, 1]
    assert [TlbLevel(3, 1, "linear", "lru").set_of(vpn) for vpn in (2, 3, 7)] == [2, 0, 1]


def _count_lru_misses(vpns: list[int], sets: int, ways: int) -> list[int]:
    """The accesses that miss in an LRU cache, with one list a set, most recent last."""
    lists: list[list[int]] = [[] for _ in range(sets)]
    missed = []
    for vpn in vpns:
        recent = lists[vpn % sets]
        if vpn in recent:
            recent.remove(vpn)
        else:
            missed.append(vpn)
        recent.append(vpn)
        del recent[:-ways]
    return missed


@pytest.mark.parametrize(("sets1", "ways1", "sets2", "ways2"), [(1, 2, 2, 2), (2, 2, 1, 6), (1, 3, 4, 1)])
def test_lru_misses_match_an_independent_count(sets1: int, ways1: int, sets2: int, ways2: int) -> None:
    level = {"index": "linear", "replacement": "lru"}
    l1, l2 = {"sets": sets1, "ways": ways1} | level, {"sets": sets2, "ways": ways2} | level
    oracle = scenario.machine(dict.fromkeys(range(8), (scenario.ANON_RW, -1)), num_cpus=1, l1=l1, l2=l2)
    rng = random.Random(3)
    vpns = [min(int(rng.expovariate(0.4)), 7) for _ in range(2000)]
    scenario.run(oracle, [(0, scenario.LOAD, vpn) for vpn in vpns])
    l1_misses = _count_lru_misses(vpns, sets1, ways1)
    l2_misses = _count_lru_misses(l1_misses, sets2, ways2)
    counters = oracle.counters()
    assert counters["dtlb_load_misses"] == len(l2_misses)
    assert counters["stlb_hit"] == len(l1_misses) - len(l2_misses)
    assert counters["pgfault"] == 8
