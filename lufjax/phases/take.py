"""TAKE: a frame leaves the free lists with its debt, and is paid for and handed out by a later event (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Op
from lufjax.phases import Phase
from lufjax.phases.alloc import debt_of, discharge
from lufjax.phases.draft import Draft


def take(m: Draft, enabled: Array) -> None:
    """TAKE_OFF: ALLOC up to the pop, then the debt goes from the frame to the task. DISCHARGE: the rest of ALLOC."""
    held, held_owed = m.get("taken", m.c), m.get("taken_owed", m.c)
    is_held = held[0] >= 0
    begin = enabled & (m.r.phase == Phase.TAKE)
    takes, pays = begin & (m.op == Op.TAKE_OFF) & ~is_held, begin & (m.op == Op.DISCHARGE) & is_held
    m.disabled(begin & ~takes & ~pays)
    m.put_regs(takes, alloc_foreign=1, alloc_ret=Phase.OTHER_ALLOCATED)
    m.goto(Phase.ALLOC, takes)

    taken = enabled & (m.r.phase == Phase.TAKEN)
    frame = m.r.alloc_frame
    row, owed = debt_of(m, m.get("frame", frame)), m.get("owed", frame)
    debt = jnp.concatenate([frame[None], row[st.FRAME_TAG : st.CLOCK + 1]])
    nothing = jnp.zeros_like(frame)
    m.put("taken", m.c, jnp.where(taken, debt, -1), taken | pays)
    m.put("taken_owed", m.c, owed, taken)
    m.put("frame", (frame, st.STATE), st.TAKEN, taken)
    m.put("frame", (frame, slice(st.REFS, st.CLOCK + 1)), jnp.stack([nothing, nothing, nothing - 1, nothing, nothing]), taken)
    m.put("owed", frame, jnp.zeros_like(owed), taken)
    m.complete(taken)

    m.put_regs(pays, alloc_frame=held[0], alloc_foreign=1, alloc_ret=Phase.OTHER_ALLOCATED, fl_sent=0)
    m.goto(Phase.ALLOC_DONE, pays)
    debt = jnp.concatenate([jnp.zeros((st.FRAME_TAG,), jnp.int32), held[1:]])
    discharge(m, debt, held_owed, pays, cpu=m.c, is_foreign=True, then=Phase.ALLOC_DONE)
