"""ATOMIC: an allocation from a context that may not wait for other CPUs (docs/MODEL.md section 5, alloc_atomic)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Violation
from lufjax.kernels import cpumask
from lufjax.phases import Phase
from lufjax.phases.alloc import debt_of, targets_of
from lufjax.phases.draft import Draft

LOOKED_AT = 3
"""Frames of the per-CPU list that one allocation looks at."""


def atomic(m: Draft, enabled: Array) -> None:
    """Refill, choose a frame and move it to the head of the per-CPU list, from where ALLOC_POP takes it off; judge the take-off."""
    begin = enabled & (m.r.phase == Phase.ATOMIC)
    m.put_regs(begin & (m.p.load_mode == 1) & (m.r.free_count < m.p.wmark_low), kswapd_on=1)
    m.put_regs(begin, rf_tag=0)
    head, count = m.get("pcp", m.c)
    refills = begin & (count == 0) & (m.r.free_count > 0)
    m.put_regs(refills, rf_left=jnp.minimum(m.p.pcp_batch, m.r.free_count))
    m.goto(Phase.REFILL, refills)
    looks = (begin & ~refills) | (enabled & (m.r.phase == Phase.ATOMIC_CHOOSE))

    steps = jnp.arange(LOOKED_AT)
    slots = (head + steps) & (st.ring_size(m.shape.pcp_slots) - 1)
    candidates = [m.get("pcp_ring", m.c, slots[step]) for step in range(LOOKED_AT)]
    owes = [~cpumask.is_empty(targets_of(m, debt_of(m, m.get("frame", f)), m.get("owed", f))) for f in candidates]
    fits = (steps < count) & ~(jnp.stack(owes) & (m.rules.atomic_alloc == 1))
    chosen = jnp.where(fits.any(), jnp.argmax(fits), jnp.minimum(count, LOOKED_AT))
    m.count("atomic_refused", looks, chosen)
    found = looks & fits.any()
    frame = jnp.where(steps == chosen, jnp.stack(candidates), 0).sum(dtype=jnp.int32)
    m.put("pcp_ring", (jnp.full_like(slots, m.c), slots), jnp.stack([frame, *candidates[:-1]]), found & (steps <= chosen))
    m.put_regs(found, alloc_foreign=1, alloc_ret=Phase.ATOMIC_TAKEN)
    m.goto(Phase.ALLOC_POP, found)
    m.count("alloc_fail", looks & ~found)
    m.complete(looks & ~found)

    taken = enabled & (m.r.phase == Phase.ATOMIC_TAKEN)
    violates = taken & has_waited(m)
    first = m.get("first", int(Violation.ATOMIC_FLUSH))
    nothing = jnp.full_like(m.now, -1)
    m.put("first", int(Violation.ATOMIC_FLUSH), jnp.stack([m.now, m.c, nothing, nothing]), violates & (first[0] == 0))
    m.add("violations", (int(Violation.ATOMIC_FLUSH), 0), 1, violates)
    m.goto(Phase.OTHER_ALLOCATED, taken)


def has_waited(m: Draft) -> Array:
    """Whether the take-off sent interrupts."""
    return m.r.fl_sent > 0
