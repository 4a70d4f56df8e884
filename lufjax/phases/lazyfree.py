"""LAZYFREE, MARK: MADVISE_FREE of one page, and what its return means for one frame (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Payer
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.alloc import owes, put_then
from lufjax.phases.draft import Draft
from lufjax.phases.mapping import GATHER_PAGE, collect, is_held, visit_marker


def lazyfree(m: Draft, enabled: Array) -> None:
    """madvise_free_pte_range: the page looks old and clean until something is stored."""
    pte, page, gather = m.get("pte", m.pid), m.get("page", m.pid), m.get("gather", m.c)
    own = enabled & ~frames.has_sharers(m, page[st.BACKING])
    present, dirty = (pte & st.PTE_PRESENT) != 0, (pte & st.PTE_DIRTY) != 0
    changed = own & present & ((pte & (st.PTE_ACCESSED | st.PTE_DIRTY)) != 0)
    marked, unmarked = visit_marker(m, pte)
    m.put("pte", m.pid, jnp.where(present, pte & ~(st.PTE_ACCESSED | st.PTE_DIRTY), unmarked), own | (enabled & ~present))
    m.put("page", (m.pid, st.CHANGED), m.now, changed & dirty)
    frame = pte >> st.PTE_SHIFT
    holds = own & present & ~is_held(m, gather, frame)
    m.add("frame", (frame, st.REFS), 1, holds)
    collect(m, gather, frame, holds, changed | (enabled & marked))
    home = m.get("backing", page[st.BACKING], st.HOME)
    m.put("backing", (page[st.BACKING], st.HOME), -4 + 2, own & ~present & (home < 0))
    flushes = changed & (m.rules.gather_flush == GATHER_PAGE)
    m.complete(enabled & ~flushes)
    m.flush_mm(flushes, Phase.COMPLETE, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=m.v, end=m.v + 1)


def mark(m: Draft, enabled: Array) -> None:
    """folio_mark_lazyfree of one held frame when the call returns: unless something was stored, or the page went, since its page event."""
    frame = m.get("held", m.c, m.r.loop)
    row, sites = m.get("frame", frame), m.get("rmap", frame)
    is_dirty = ((sites >= 0) & ((m.get("pte", sites) & st.PTE_DIRTY) != 0)).any()
    marks = enabled & (row[st.STATE] == st.USED_STATE) & ~is_dirty
    m.put("backing", (row[st.PAGE_OF], st.HOME), frame * 4 + 2, marks)
    m.count("pglazyfree", marks)
    m.put_regs(enabled, loop=m.r.loop + 1)
    put_then(m, frame, row, m.c, enabled, Phase.FINISH_HELD, has_debt=owes(m, frame))
