"""HALF: a fault up to its installed PTE, and its end (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Op, Payer, VmaFlag
from lufjax.kernels import tlb
from lufjax.phases import Phase
from lufjax.phases.draft import Draft
from lufjax.phases.fault import AFTER, for_store


def half(m: Draft, enabled: Array) -> None:
    """FAULT_INSTALL: is there a fault to take? Its end leaves a note. FAULT_FINISH: pay what the note says."""
    kind, vpn = m.cpu_row[st.GATHER_KIND], m.get("gather", m.c, st.VS)
    begin = enabled & (m.r.phase == Phase.HALF)
    installs = begin & (m.op == Op.FAULT_INSTALL)
    starts = installs & (m.cpu_row[st.LAZY] == 0) & (kind == 0) & ~_may_access(m, for_store(m))
    _drop(m, starts)
    m.goto(Phase.FAULT, starts)

    installed = enabled & (m.r.phase == Phase.HALF_INSTALLED)
    flags = m.get("vma", m.get("page", m.pid, st.VMA))
    pays = (flags & (VmaFlag.WRITE | VmaFlag.MAYWRITE)) != 0
    finishes = begin & (m.op == Op.FAULT_FINISH) & (kind < 0) & (vpn == m.v)
    note = jnp.where(installed, -1 - pays.astype(jnp.int32), 0)
    m.put("cpu", (m.c, st.GATHER_KIND), note, installed | finishes)
    m.put("gather", (m.c, st.VS), jnp.where(installed, m.v, 0), installed | finishes)
    owes = finishes & (kind == -2) & (m.rules.write_fault_flush == AFTER)
    flushes = m.forced_flush(owes, Phase.COMPLETE, Payer.FAULT, mm=m.m, page=m.shared_file(m.get("page", m.pid)))
    m.complete(installed | (finishes & ~flushes))
    m.disabled(begin & ~starts & ~finishes)


def _may_access(m: Draft, is_store: Array) -> Array:
    """Whether the access needs no fault: an entry that it uses, or a PTE that permits it."""
    flushed_at, tag, pte = m.get("cpu_mm", m.c)[:, st.FLUSHED_AT], tlb.tag_of(m.m, m.v), m.get("pte", m.pid)
    may = ((pte & st.PTE_PRESENT) != 0) & (~is_store | ((pte & st.PTE_WRITABLE) != 0))
    for level, geometry in (("tlb1", m.shape.l1), ("tlb2", m.shape.l2)):
        row = m.get(level, tlb.set_index(geometry, m.v), m.c)
        bits = row[st.DATA] & (st.WRITABLE | st.DIRTY)
        is_usable = ~is_store | (bits == (st.WRITABLE | st.DIRTY))
        may = may | (tlb.matches(row, tag, flushed_at) & is_usable).any()
    return may


def _drop(m: Draft, enabled: Array) -> None:
    """The CPU drops the entry that faulted."""
    tag = tlb.tag_of(m.m, m.v)
    for level, geometry in (("tlb1", m.shape.l1), ("tlb2", m.shape.l2)):
        index, ways = tlb.set_index(geometry, m.v), jnp.arange(geometry.ways)
        tags = m.get(level, index, m.c, st.TAG)
        places = (jnp.full_like(ways, index), jnp.full_like(ways, m.c), jnp.full_like(ways, st.TAG), ways)
        m.put(level, places, jnp.full_like(tags, -1), enabled & (tags == tag))
