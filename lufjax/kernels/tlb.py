"""A set of a TLB level: look up, touch, fill, drop. The entries of one set are columns of ``int32[4, ways]``: tag, data, filled, used.

A flush does not touch entries: an entry of process m on CPU c is gone if it was filled before ``cpu_mm[c, m, FLUSHED_AT]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.params import TlbGeometry

if TYPE_CHECKING:
    from lufjax.phases.draft import Draft


def set_index(geometry: TlbGeometry, vpn: Array) -> Array:
    """The set that holds ``vpn``: low bits, or low bits XOR the next ones (``xor``, as Skylake's second level)."""
    if geometry.index == "xor":
        bits = geometry.sets.bit_length() - 1
        return (vpn ^ (vpn >> bits)) & (geometry.sets - 1)
    if geometry.sets & (geometry.sets - 1) == 0:
        return vpn & (geometry.sets - 1)
    return vpn % geometry.sets


def tag_of(mm: Array, vpn: Array) -> Array:
    """Tag of an entry: process above, vpn below."""
    return (mm << st.TAG_SHIFT) | vpn


def is_live(row: Array, flushed_at: Array) -> Array:
    """``bool[ways]``: holds an entry that no flush removed. ``flushed_at`` is ``int32[num_processes]`` of the row's CPU."""
    tag, filled = row[st.TAG], row[st.FILLED]
    return (tag >= 0) & (filled >= _stamp(tag, flushed_at))


def _stamp(tag: Array, flushed_at: Array) -> Array:
    """When the entries of the process of each tag were last flushed."""
    process, num_processes = tag >> st.TAG_SHIFT, flushed_at.shape[0]
    if num_processes > 8:
        return flushed_at.at[process].get(mode="clip")
    stamp = flushed_at[0]
    for p in range(1, num_processes):
        stamp = jnp.where(process == p, flushed_at[p], stamp)
    return stamp


def matches(row: Array, tag: Array, flushed_at: Array) -> Array:
    """``bool[ways]``: holds the entry ``tag``, which no flush removed."""
    return (row[st.TAG] == tag) & (row[st.FILLED] >= _stamp(tag, flushed_at))


def pick(row: Array, match: Array) -> Array:
    """The entry where ``match``; at most one way matches."""
    return jnp.where(match, row, 0).sum(1, dtype=jnp.int32)


def way_of(match: Array) -> Array:
    """The way where ``match``, 0 if there is none."""
    return jnp.where(match, jnp.arange(match.shape[0], dtype=jnp.int32), 0).sum(dtype=jnp.int32)


def victim(geometry: TlbGeometry, row: Array, match: Array, flushed_at: Array) -> Array:
    """Way to fill: the matching one, else the lowest empty, else the one that the replacement gives up."""
    ways, live = jnp.arange(geometry.ways), is_live(row, flushed_at)
    if geometry.replacement == "lru":
        key = jnp.where(match, -2, jnp.where(live, row[st.USED], -1))
        return jnp.argmin(key).astype(jnp.int32)
    replaced = _tree_victim(geometry, row[st.USED, 0])
    key = jnp.where(match, 0, jnp.where(~live, 1 + ways, jnp.where(ways == replaced, 1000, 2000)))
    return jnp.argmin(key).astype(jnp.int32)


def write(
    m: Draft, level: str, geometry: TlbGeometry, index: Array, row: Array, way: Array, entry: Array, *, enabled: Array, used: Array,
    is_there: Array | bool = False,
) -> None:  # fmt: skip
    """Put ``entry`` in ``way`` of set ``index`` of the event's CPU, unless it ``is_there``; where ``used``, the replacement notes the use.

    LRU keeps the event of the last use in each entry. Tree-PLRU and the 12-way ring keep their bits in the first way's ``USED`` column.
    """
    if geometry.replacement == "lru":
        stamp = jnp.where(used, m.now, entry[st.USED])
        columns = jnp.arange(4, dtype=jnp.int32)
        place = (jnp.broadcast_to(index, (4,)), jnp.broadcast_to(m.c, (4,)), columns, jnp.broadcast_to(way, (4,)))
        changes = enabled & ~jnp.asarray(is_there)
        m.put(level, place, jnp.concatenate([entry[: st.USED], stamp[None]]), jnp.stack([changes, changes, changes, enabled]))
        return
    bits = jnp.where(used, _tree_touch(geometry, row[st.USED, 0], way), row[st.USED, 0])
    ways = jnp.arange(geometry.ways)
    new = jnp.where(ways == way, entry[:, None], row)
    new = jnp.where((jnp.arange(4) == st.USED)[:, None], jnp.where(ways == 0, bits, 0), new)
    m.put(level, (index, m.c), new, enabled)


def _tree_victim(geometry: TlbGeometry, bits: Array) -> Array:
    if geometry.replacement == "ring12":
        ring = (((bits >> 9) & 3) + 1) % 3
        return ring * 4 + _plru_victim((bits >> (ring * 3)) & 7, 4)
    return _plru_victim(bits, geometry.ways)


def _tree_touch(geometry: TlbGeometry, bits: Array, way: Array) -> Array:
    if geometry.replacement == "ring12":
        ring = way // 4
        tree = _plru_touch((bits >> (ring * 3)) & 7, way % 4, 4)
        return (bits & ~((7 << (ring * 3)) | (3 << 9))) | (tree << (ring * 3)) | (ring << 9)
    return _plru_touch(bits, way, geometry.ways)


def _plru_victim(bits: Array, ways: int) -> Array:
    """Follow the tree: bit n (node n, root 0, children 2n+1 and 2n+2) names the half to give up."""
    node = jnp.zeros_like(bits)
    for _ in range(ways.bit_length() - 1):
        node = 2 * node + 1 + ((bits >> node) & 1)
    return node - (ways - 1)


def _plru_touch(bits: Array, way: Array, ways: int) -> Array:
    """Make every node on the way's path point to the other half."""
    node = way + (ways - 1)
    for _ in range(ways.bit_length() - 1):
        parent = (node - 1) // 2
        is_right = node - (2 * parent + 1)
        bits = jnp.where(is_right == 1, bits & ~(1 << parent), bits | (1 << parent))
        node = parent
    return bits
