"""EXIT and LEAVE: the end of a process (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.kernels import cpumask
from lufjax.phases import Phase
from lufjax.phases.draft import Draft


def process(m: Draft, enabled: Array) -> None:
    """exit_mmap of one page waits until nobody else runs the process; after the last gather its CPU idles, with no mm."""
    begin, leaves = enabled & (m.r.phase == Phase.EXIT), enabled & (m.r.phase == Phase.LEAVE)
    rows = m.get("cpu")
    elsewhere = (rows[:, st.LOADED] == m.loaded) & (rows[:, st.LAZY] == 0) & (jnp.arange(m.shape.num_cpus) != m.c)
    m.disabled(begin & elsewhere.any())
    m.goto(Phase.MAPPING, begin & ~elsewhere.any())

    m.put("cpumask", m.m, m.get("cpumask", m.m) & ~cpumask.single(m.c, m.words), leaves)
    m.put("cpu", (m.c, slice(st.LOADED, st.LAZY + 1)), jnp.array([-1, 1], jnp.int32), leaves)
    m.complete(leaves)
