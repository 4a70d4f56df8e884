"""FLUSH: one flush request, delivered to every CPU it concerns; INVLPG: one page of a ranged one (docs/MODEL.md section 4)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import Payer
from lufjax.kernels import cpumask, tlb
from lufjax.phases import Phase
from lufjax.phases.draft import Draft

MM, BATCH, LOCAL = range(3)
"""Kinds of request (``fl_batch``): an mm everywhere, whatever a CPU set has loaded, an mm on the initiator alone."""


def flush(m: Draft, enabled: Array) -> None:
    """flush_tlb_mm_range or arch_tlbbatch_flush, delivery included: who is interrupted, what each CPU then does, what is counted."""
    r, rules = m.r, m.rules
    num_cpus, cpus = m.shape.num_cpus, jnp.arange(m.shape.num_cpus)
    is_batch, sender, mm = r.fl_batch == BATCH, r.fl_cpu, r.fl_mm
    for_mm = enabled & ~is_batch
    pages = r.fl_end - r.fl_start
    is_all = (r.fl_end < 0) | (pages > rules.flush_ceiling)

    row = m.get("mm", mm)
    new_gen = row[st.TLB_GEN] + for_mm.astype(jnp.int32)
    mask = jnp.where(is_batch, m.fl_mask, m.get("cpumask", mm))
    in_mask = cpumask.to_bits(mask, num_cpus)
    rows = m.get("cpu")
    loaded, lazy = rows[:, st.LOADED], rows[:, st.LAZY] == 1
    remote = in_mask & (cpus != sender) & (r.fl_batch != LOCAL)
    any_remote = remote.any()
    m.count("nr_tlb_remote_flush", enabled & any_remote)

    keeps = rules.mask_on_switch == 1
    trims = for_mm & keeps & any_remote & (m.now >= row[st.NEXT_TRIM])
    awake = ~lazy | (rules.lazy_skip == 0)
    wanted = (r.fl_tables == 1) | (awake & (~keeps | (loaded == mm) | trims))
    hit = enabled & remote & jnp.where(is_batch, awake, wanted)
    sent = hit.sum(dtype=jnp.int32)
    m.count("nr_tlb_remote_flush_received", enabled, sent)
    m.add("received", (), hit.astype(jnp.int32), enabled)
    for payer in Payer:
        m.count(f"ipi_{payer.name.lower()}", enabled & (r.fl_payer == payer), sent)

    # What each CPU does with the request, for the mm it has loaded.
    target = jnp.where(is_batch, loaded, mm)
    is_here = loaded == target
    target = jnp.maximum(target, 0)
    acts = hit & is_here & (loaded >= 0)
    drops_mm = acts & lazy
    done = m.get("cpu_mm", cpus, target)
    gens = jnp.where(for_mm & (target == mm), new_gen, m.get("mm", target, st.TLB_GEN))
    is_behind = done[:, st.GEN_DONE] != gens
    m.count("needless", enabled, (acts & ~lazy & ~is_behind).sum(dtype=jnp.int32))
    is_local = enabled & in_mask & (cpus == sender) & is_here & (loaded >= 0)
    works = ((acts & ~lazy) | is_local) & is_behind
    ranged = works & ~is_batch & ~is_all & (gens == done[:, st.GEN_DONE] + 1)
    full = works & ~ranged
    new = jnp.stack([jnp.where(works, gens, done[:, st.GEN_DONE]), jnp.where(full, m.now, done[:, st.FLUSHED_AT])], -1)
    m.put("cpu_mm", (cpus, target), new, works)
    m.count("nr_tlb_local_flush_all", enabled, (full & is_local).sum(dtype=jnp.int32))
    m.count("nr_tlb_local_flush_one", enabled, jnp.where((ranged & is_local).any(), pages, 0))

    leaves = drops_mm | (hit & ~is_here & keeps & ~is_batch)
    left_mm = jnp.where(is_batch, target, mm)
    processes = jnp.arange(m.shape.num_processes)
    gone = cpumask.from_bits(leaves[None, :] & (left_mm[None, :] == processes[:, None]), m.words)
    m.put("cpumask", (), m.get("cpumask") & ~gone, leaves.any())
    covers = full | (enabled & is_batch & in_mask)
    m.put("cpu", (cpus, jnp.full_like(cpus, st.LOADED)), jnp.full_like(cpus, -1), drops_mm)
    m.put("cpu", (cpus, jnp.full_like(cpus, st.COVERED)), jnp.full_like(cpus, m.r.unmap_clock), covers)
    m.bump("unmap_clock", enabled & is_batch)
    m.put("mm", (mm, st.TLB_GEN), new_gen, for_mm)
    m.put("mm", (mm, st.VA_DEBT), 0, for_mm & is_all)
    m.put("mm", (mm, st.NEXT_TRIM), m.now + rules.trim_period, trims)

    m.set_mask("fl_ranged", cpumask.from_bits(ranged, m.words), enabled)
    m.put_regs(enabled, fl_sent=sent, fl_page=r.fl_start)
    m.goto(jnp.where(ranged.any(), Phase.INVLPG, r.fl_ret), enabled)


def invlpg(m: Draft, enabled: Array) -> None:
    """Drop one page of a process from both TLB levels of every CPU that flushes the range."""
    r = m.r
    in_range = cpumask.to_bits(m.fl_ranged, m.shape.num_cpus)
    tag = tlb.tag_of(r.fl_mm, r.fl_page)
    for level, geometry in (("tlb1", m.shape.l1), ("tlb2", m.shape.l2)):
        index = tlb.set_index(geometry, r.fl_page)
        tags = m.get(level, index, slice(None), slice(None), st.TAG)
        kept = jnp.where(in_range[:, None] & (tags == tag), -1, tags)
        m.put(level, (index, slice(None), slice(None), slice(st.TAG, st.TAG + 1)), kept[..., None], enabled)
    page = r.fl_page + 1
    m.put_regs(enabled, fl_page=page)
    m.goto(r.fl_ret, enabled & (page >= r.fl_end))
