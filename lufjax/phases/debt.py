"""FORCED_FLUSH: pay the debts of one process and one file page (docs/MODEL.md section 9)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.kernels import cpumask
from lufjax.phases.draft import Draft


def forced_flush(m: Draft, enabled: Array) -> None:
    """luf_flush_mm and luf_flush_mapping: flush the CPUs that owe and have not been flushed since."""
    mm, page = m.r.dg_mm, m.r.dg_page
    covered = m.get("cpu")[:, st.COVERED]

    def uncovered(owed: Array, clock: Array, exists: Array) -> Array:
        return jnp.where(exists, owed & ~cpumask.from_bits(covered >= clock, m.words), jnp.uint32(0))

    of_mm = uncovered(m.get("mm_owed", mm), m.get("mm", mm, st.DEBT_CLOCK), mm >= 0)
    of_file = uncovered(m.get("file_owed", page), m.get("file_clock", page), page >= 0)
    pays = enabled & ~cpumask.is_empty(of_mm | of_file)
    m.count("discharges", pays)
    then = m.r.fl_ret
    m.goto(then, enabled)
    m.flush_batch(pays, then, cpu=m.c, mask=of_mm | of_file, payer=m.r.fl_payer)
