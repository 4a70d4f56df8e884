"""MICRO: one micro-step of a litmus file, on the same arrays and under the same judgement as every event (docs/MODEL.md section 11)."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import MicroOp
from lufjax.kernels import tlb
from lufjax.phases.draft import Draft

At = Callable[..., Array]
"""Whether the machine is enabled and its micro-step is one of these."""


def micro(m: Draft, enabled: Array) -> None:
    """Execute the micro-step; it is always enabled, and nothing follows from it but what it says."""

    def at(*ops: MicroOp) -> Array:
        hits = [m.op == op for op in ops]
        return enabled & jnp.stack(hits).any()

    pid = jnp.maximum(m.arg, 0) * m.shape.num_vpns + m.v
    pte = m.get("pte", pid)
    home = m.get("backing", jnp.maximum(m.repeat >> 2, 0), st.HOME) >> 2
    _tlbs(m, at, pte)
    _pages(m, at, pid, pte, home)
    _frames(m, at)
    m.complete(enabled)


def _pages(m: Draft, at: At, pid: Array, pte: Array, home: Array) -> None:
    """PTE edits, new mappings and the promises of calls that return."""
    maps, sets, clears = at(MicroOp.MAP), at(MicroOp.SET_PTE), at(MicroOp.CLEAR_PTE)
    protects, cleans = at(MicroOp.WRITE_PROTECT), at(MicroOp.MAKE_CLEAN)
    backing, is_writable = m.repeat >> 2, (m.repeat & 2) != 0
    frame = jnp.where(maps, home, m.repeat >> 1)
    writable = jnp.where(maps, is_writable, (m.repeat & 1) != 0)
    new = frame << st.PTE_SHIFT | st.PTE_PRESENT | jnp.where(writable, st.PTE_WRITABLE, 0)
    left = jnp.where(clears, 0, jnp.where(protects, pte & ~st.PTE_WRITABLE, pte & ~st.PTE_DIRTY))
    m.put("pte", pid, jnp.where(maps | sets, new, left), maps | sets | clears | protects | cleans)
    m.put("page", (pid, st.CHANGED), m.now, maps | sets | clears | protects)

    boots = maps & ((m.repeat & 1) != 0)
    returns, permits = at(MicroOp.RETURN), at(MicroOp.PERMIT)
    is_mapped = maps | ((m.repeat & 1) != 0)
    named = jnp.stack([jnp.where(is_mapped, 0, -1), jnp.where(is_mapped, backing, -1)])
    m.put("page", (pid, slice(st.VMA, st.BACKING + 1)), named, maps | returns)
    m.put("page", (pid, st.PROMISE), m.repeat, boots | returns | permits)
    m.put("page", (pid, st.EPOCH), m.now, returns)


def _frames(m: Draft, at: At) -> None:
    """What frames hold, and which frame is the home of an object."""
    places, writes, snaps = at(MicroOp.PLACE), at(MicroOp.WRITE_OBJECT), at(MicroOp.SNAP)
    frees, allocs = at(MicroOp.FREE_FRAME), at(MicroOp.ALLOC_FRAME)
    by_object = places | writes | snaps
    backing = jnp.where(by_object, m.arg, 0)
    truth, stored, home = m.get("backing", backing)
    frame = jnp.where(writes, jnp.maximum(home >> 2, 0), jnp.where(places | frees | allocs, m.repeat, 0))
    held = m.get("frame", frame, st.PAGE_OF)
    held_home = m.get("backing", jnp.maximum(held, 0), st.HOME)

    version = truth + writes.astype(jnp.int32)
    placed = m.repeat * 4 + (home & 1)
    new_home = jnp.where(places, placed, jnp.where(snaps, home | 2, home))
    m.put("backing", backing, jnp.stack([version, jnp.where(snaps, truth, stored), new_home]), by_object)
    leaves = (frees | allocs) & (held >= 0) & (held_home >> 2 == frame)
    m.put("backing", (held, st.HOME), (held_home & 3) - 4, leaves)

    m.put("frame", (frame, st.STATE), jnp.where(frees, st.FREE, jnp.where(allocs, st.FOREIGN, st.USED_STATE)), places | frees | allocs)
    holds = jnp.where(allocs, jnp.array([st.FOREIGN_CONTENT, 0], jnp.int32), jnp.stack([backing, version]))
    m.put("frame", (frame, slice(st.CONTENT, st.VERSION + 1)), holds, places | allocs | (writes & (home >> 2 >= 0)))
    m.put("frame", (frame, st.PAGE_OF), backing, places)
    m.put("frame", (frame, st.HANDED), m.now, allocs)


def _tlbs(m: Draft, at: At, pte: Array) -> None:
    """Invalidations, capacity evictions and speculative walks of one CPU."""
    rows = m.get("cpu_mm", m.c)
    drops, fills = at(MicroOp.FLUSH_PAGE), at(MicroOp.FILL) & ((pte & st.PTE_PRESENT) != 0)
    tag = tlb.tag_of(jnp.maximum(m.arg, 0), m.v)
    bits = jnp.where((pte & st.PTE_WRITABLE) != 0, st.WRITABLE, 0) + jnp.where((pte & st.PTE_DIRTY) != 0, st.DIRTY, 0)
    fresh = jnp.stack([tag, (pte >> st.PTE_SHIFT) * 4 + bits, m.now, m.now])
    nothing = jnp.array([-1, 0, 0, 0], jnp.int32)
    for level, geometry in (("tlb1", m.shape.l1), ("tlb2", m.shape.l2)):
        index = tlb.set_index(geometry, m.v)
        row = m.get(level, index, m.c)
        match = tlb.matches(row, tag, rows[:, st.FLUSHED_AT])
        way = tlb.victim(geometry, row, match, rows[:, st.FLUSHED_AT])
        entry = jnp.where(fills, fresh, nothing)
        tlb.write(m, level, geometry, index, row, way, entry, enabled=fills | (drops & match.any()), used=fills)
    flushed = (m.arg < 0) | (jnp.arange(m.shape.num_processes) == m.arg)
    stamps = jnp.stack([rows[:, st.GEN_DONE], jnp.where(flushed, m.now, rows[:, st.FLUSHED_AT])], -1)
    m.put("cpu_mm", m.c, stamps, at(MicroOp.FLUSH_MM))
