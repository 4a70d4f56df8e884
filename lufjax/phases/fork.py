"""FORK: one page of a process is copied to another one (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Payer, VmaFlag
from lufjax.faults import Fault
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.draft import Draft
from lufjax.phases.mapping import GATHER_PAGE, collect, is_taken, settle_marker


def fork(m: Draft, enabled: Array) -> None:
    """copy_present_pte: is there room in the child, does its address owe a flush, then VMA and backing, and one frame under two read-only PTEs."""
    code, child = m.r.phase, m.arg * m.shape.num_vpns + m.v
    begin, settles, copies = (enabled & (code == phase) for phase in (Phase.FORK, Phase.FORK_SETTLE, Phase.FORK_COPY))
    page, copy = m.get("page", m.pid), m.get("page", child)
    pte, old = m.get("pte", m.pid), m.get("pte", child)
    refuses = (m.arg == m.loaded) | (m.get("mm", m.arg, st.GATHERS) > 0) | is_taken(page, copy)
    m.disabled(begin & refuses)
    m.goto(Phase.MAPPING, begin & ~refuses)

    clears = settle_marker(m, settles, old, mm=m.arg, vpn=m.v, then=Phase.FORK_COPY)

    vma, backing, flags = page[st.VMA], page[st.BACKING], m.get("vma", m.repeat)
    is_anon = backing >= m.shape.num_file_pages
    present = (pte & st.PTE_PRESENT) != 0
    shares = copies & present & is_anon & ((m.get("vma", jnp.maximum(vma, 0)) & VmaFlag.SHARED) == 0)
    protects = shares & ((pte & st.PTE_WRITABLE) != 0)
    frame = pte >> st.PTE_SHIFT
    m.fault(Fault.RMAP_FULL, frames.rmap_add(m, frame, child, shares))
    m.put("pte", child, jnp.where(settles, old & ~st.PTE_MARKER, pte & ~(st.PTE_WRITABLE | st.PTE_ACCESSED)), clears | shares)
    m.put("pte", m.pid, pte & ~st.PTE_WRITABLE, protects)
    m.put("page", (m.pid, st.CHANGED), m.now, protects)
    collect(m, m.get("gather", m.c), frame, jnp.bool_(False), protects)

    writable = ((flags & VmaFlag.WRITE) != 0) & (~is_anon | ((flags & VmaFlag.SHARED) != 0))
    promise = backing * 4 + writable.astype(jnp.int32) * 2 + 1
    m.put("page", (child, slice(st.VMA, st.EPOCH + 1)), jnp.stack([m.repeat, backing, promise, m.now]), copies)
    m.put("vma_flag", m.repeat, 1, copies & (m.get("vma_flag", jnp.maximum(vma, 0)) == 1))
    index = backing - m.shape.num_file_pages
    m.add("shared", index, 1, copies & is_anon)
    m.add("sharers", index, 1, copies & is_anon)
    flushes = protects & (m.rules.gather_flush == GATHER_PAGE)
    m.complete(copies & ~flushes)
    m.flush_mm(flushes, Phase.COMPLETE, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=m.v, end=m.v + 1)
