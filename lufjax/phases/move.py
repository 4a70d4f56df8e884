"""MREMAP: one page of a process moves to another address (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Payer, VmaFlag
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.draft import Draft
from lufjax.phases.mapping import GATHER_PAGE, collect, is_held, is_taken, settle_marker, visit_marker


def mremap(m: Draft, enabled: Array) -> None:
    """move_ptes: is the new address free, does it owe a flush, then PTE, reverse map and mapping move."""
    code, to = m.r.phase, m.m * m.shape.num_vpns + m.arg
    begin, settles, moves = (enabled & (code == phase) for phase in (Phase.MREMAP, Phase.MREMAP_SETTLE, Phase.MREMAP_MOVE))
    page, target = m.get("page", m.pid), m.get("page", to)
    pte, old = m.get("pte", m.pid), m.get("pte", to)
    refuses = is_taken(page, target)
    m.disabled(begin & refuses)
    m.goto(Phase.MAPPING, begin & ~refuses)

    clears = settle_marker(m, settles, old, mm=m.m, vpn=m.arg, then=Phase.MREMAP_MOVE)

    present, frame = (pte & st.PTE_PRESENT) != 0, pte >> st.PTE_SHIFT
    marked, unmarked = visit_marker(m, pte)
    left = jnp.where(present, 0, unmarked)
    m.put("pte", m.pid, left, moves)
    m.put("pte", to, jnp.where(settles, old & ~st.PTE_MARKER, pte), clears | (moves & present))
    m.put("rmap", (frame, jnp.argmax(m.get("rmap", frame) == m.pid)), to, moves & present)
    gather = m.get("gather", m.c)
    holds = moves & present & ~is_held(m, gather, frame)
    m.add("frame", (frame, st.REFS), 1, holds)
    collect(m, gather, frame, holds, moves & (present | marked))

    backing = page[st.BACKING]
    flags = m.get("vma", page[st.VMA])
    writable = ((flags & VmaFlag.WRITE) != 0) & ~frames.is_copy_on_write(m, flags, backing)
    promise = backing * 4 + writable.astype(jnp.int32) * 2 + 1
    m.put("page", (to, slice(st.VMA, st.EPOCH + 1)), jnp.stack([page[st.VMA], backing, promise, m.now]), moves)
    m.put("page", (m.pid, st.VMA), -1, moves)
    m.put("page", (m.pid, st.CHANGED), m.now, moves & present)
    m.add("shared", backing - m.shape.num_file_pages, 1, moves & (backing >= m.shape.num_file_pages))
    flushes = moves & present & (m.rules.gather_flush == GATHER_PAGE)
    m.complete(moves & ~flushes)
    m.flush_mm(flushes, Phase.COMPLETE, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=m.v, end=m.v + 1)
