"""A TLB level (docs/MODEL.md section 3): sets of ways; an entry that is dropped or flushed is deleted at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass
class TlbEntry:
    """A cached translation of page (m, vpn)."""

    m: int
    vpn: int
    frame: int
    writable: bool
    dirty: bool
    filled: int
    used: int = 0


class Lru:
    """Gives up the entry whose last use is longest ago; ties go to the lowest way."""

    def victim(self, ways: list[TlbEntry | None]) -> int:
        """Way to give up; all ways are full."""
        return min(range(len(ways)), key=lambda way: ways[way].used)

    def touch(self, ways: list[TlbEntry | None], way: int, now: int) -> None:
        """Note a use of ``way``."""
        ways[way].used = now


class TreePlru:
    """Tree-PLRU: node n has children 2n+1 and 2n+2, the leaves are the ways; a node that is 1 points to its right half."""

    def __init__(self, num_ways: int) -> None:
        self.num_ways = num_ways
        self.nodes = [0] * (num_ways - 1)

    def victim_way(self) -> int:
        """The leaf that the nodes point to."""
        node = 0
        while node < self.num_ways - 1:
            node = 2 * node + 1 + self.nodes[node]
        return node - (self.num_ways - 1)

    def touch_way(self, way: int) -> None:
        """Every node above ``way`` points to its other half."""
        node = way + self.num_ways - 1
        while node > 0:
            parent = (node - 1) // 2
            self.nodes[parent] = 1 if node == 2 * parent + 1 else 0
            node = parent

    def victim(self, ways: list[TlbEntry | None]) -> int:
        """Way to give up."""
        return self.victim_way()

    def touch(self, ways: list[TlbEntry | None], way: int, now: int) -> None:
        """Note a use of ``way``."""
        self.touch_way(way)


class Ring12:
    """Three groups of four ways, each a tree-PLRU(4); the victim is that of the group after the most recently used one."""

    def __init__(self) -> None:
        self.groups = [TreePlru(4) for _ in range(3)]
        self.mru = 0

    def victim(self, ways: list[TlbEntry | None]) -> int:
        """Way to give up."""
        group = (self.mru + 1) % 3
        return 4 * group + self.groups[group].victim_way()

    def touch(self, ways: list[TlbEntry | None], way: int, now: int) -> None:
        """Note a use of ``way``."""
        self.mru = way // 4
        self.groups[self.mru].touch_way(way % 4)


REPLACEMENTS: dict[str, Callable[[int], Lru | TreePlru | Ring12]] = {"lru": lambda _: Lru(), "plru": TreePlru, "ring12": lambda _: Ring12()}


class TlbLevel:
    """``sets`` x ``ways`` entries of one CPU."""

    def __init__(self, sets: int, ways: int, index: str, replacement: str) -> None:
        self.num_sets, self.index = sets, index
        self.sets: list[list[TlbEntry | None]] = [[None] * ways for _ in range(sets)]
        self.order = [REPLACEMENTS[replacement](ways) for _ in range(sets)]

    def set_of(self, vpn: int) -> int:
        """Index of the set that holds ``vpn``."""
        if self.index == "xor":
            return (vpn ^ (vpn // self.num_sets)) % self.num_sets
        return vpn % self.num_sets

    def _match(self, m: int, vpn: int) -> int | None:
        matches = [way for way, e in enumerate(self.sets[self.set_of(vpn)]) if e is not None and (e.m, e.vpn) == (m, vpn)]
        assert len(matches) <= 1
        return matches[0] if matches else None

    def lookup(self, m: int, vpn: int) -> TlbEntry | None:
        """The entry of (m, vpn), if any; not a use of it."""
        way = self._match(m, vpn)
        return None if way is None else self.sets[self.set_of(vpn)][way]

    def touch(self, m: int, vpn: int, now: int) -> None:
        """Note a use of the entry of (m, vpn), which is there."""
        index = self.set_of(vpn)
        self.order[index].touch(self.sets[index], self._match(m, vpn), now)

    def fill(self, entry: TlbEntry, now: int) -> None:
        """Put a copy of ``entry`` in its set: the matching way, else the lowest empty one, else the victim."""
        index = self.set_of(entry.vpn)
        ways, order = self.sets[index], self.order[index]
        way = self._match(entry.m, entry.vpn)
        if way is None:
            way = ways.index(None) if None in ways else order.victim(ways)
        ways[way] = replace(entry, used=0)
        order.touch(ways, way, now)

    def drop(self, m: int, vpn: int) -> None:
        """Delete the entry of (m, vpn), if any."""
        way = self._match(m, vpn)
        if way is not None:
            self.sets[self.set_of(vpn)][way] = None

    def flush(self, m: int) -> None:
        """Delete every entry of process ``m``."""
        for ways in self.sets:
            ways[:] = [None if e is not None and e.m == m else e for e in ways]
