"""FLUSH: one flush request, delivered to every CPU it concerns, a few CPUs a visit; INVLPG: one page of a ranged one (docs/MODEL.md section 4)."""

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
FULL, _, BATCH_AND_MM = range(3)
"""Values of ``credit``."""
CPUS_A_VISIT = 8


def flush(m: Draft, enabled: Array) -> None:
    """flush_tlb_mm_range or arch_tlbbatch_flush, delivery included: who is interrupted, what each CPU then does, what is counted."""
    r, rules = m.r, m.rules
    start = enabled & (r.phase == Phase.FLUSH)
    is_batch, sender, mm = m.split(r.fl_batch == BATCH), r.fl_cpu, r.fl_mm
    for_mm = ~is_batch
    is_all = (r.fl_end < 0) | (r.fl_end - r.fl_start > rules.flush_ceiling)
    row = m.get("mm", mm)
    new_gen = row[st.TLB_GEN] + jnp.where(start & for_mm, 1, 0)
    mask = jnp.where(is_batch, m.fl_mask, m.get("cpumask", mm))
    any_remote = ~cpumask.is_empty(mask & ~cpumask.single(sender, m.words)) & (r.fl_batch != LOCAL)
    keeps = rules.mask_on_switch == 1
    trims = for_mm & keeps & any_remote & (m.now >= row[st.NEXT_TRIM])
    m.put_regs(start, fl_trim=trims, fl_sent=0, disturbed=m.now)
    m.count("nr_tlb_remote_flush", start & any_remote)

    base = jnp.where(start, 0, r.fl_page)
    cpus = base + jnp.arange(min(CPUS_A_VISIT, m.shape.num_cpus))
    exists = cpus < m.shape.num_cpus
    in_mask = cpumask.part(mask, base, cpus.shape[0]) & exists
    rows = m.get("cpu", cpus)
    loaded, lazy = rows[:, st.LOADED], rows[:, st.LAZY] == 1
    remote = in_mask & (cpus != sender) & (r.fl_batch != LOCAL)
    awake = ~lazy | (rules.lazy_skip == 0)
    wanted = (r.fl_tables == 1) | (awake & (~keeps | (loaded == mm) | (r.fl_trim == 1)))
    hit = enabled & remote & jnp.where(is_batch, awake, wanted)
    _count_interrupts(m, cpus, hit, enabled)

    # What each CPU does with the request, for the mm it has loaded.
    target = jnp.where(is_batch, loaded, mm)
    is_here = (loaded == target) & (loaded >= 0)
    target = jnp.maximum(target, 0)
    acts = hit & is_here
    drops_mm = acts & lazy
    is_local = enabled & in_mask & (cpus == sender) & is_here
    done = m.get("cpu_mm", cpus, target)
    gens = jnp.where(for_mm, new_gen, m.get("mm", target, st.TLB_GEN))
    is_behind = done[:, st.GEN_DONE] != gens
    works = ((acts & ~lazy) | is_local) & is_behind
    ranged = works & for_mm & ~is_all & (gens == done[:, st.GEN_DONE] + 1)
    full = works & ~ranged
    caught_up = jnp.stack([gens, jnp.where(full, m.now, done[:, st.FLUSHED_AT])], -1)
    m.put("cpu_mm", (cpus, target), caught_up, works)
    m.count("needless", enabled, (acts & ~lazy & ~is_behind).sum(dtype=jnp.int32))
    m.count("nr_tlb_local_flush_all", enabled, (full & is_local).sum(dtype=jnp.int32))
    m.count("nr_tlb_local_flush_one", (ranged & is_local).any(), r.fl_end - r.fl_start)
    m.put("cpu", (cpus, jnp.full_like(cpus, st.LOADED)), jnp.full_like(cpus, -1), drops_mm)
    credited = is_batch | ((r.fl_credit == 1) & (rules.credit == BATCH_AND_MM))
    covers = (full & (rules.credit == FULL)) | (enabled & credited & in_mask)
    m.put("cpu", (cpus, jnp.full_like(cpus, st.COVERED)), jnp.full_like(cpus, r.unmap_clock), covers)
    leaves = drops_mm | (hit & ~is_here & keeps & for_mm)
    processes = jnp.arange(m.shape.num_processes)
    gone = leaves[None, :] & (jnp.where(is_batch, target, mm)[None, :] == processes[:, None])
    m.put("cpumask", (), m.get("cpumask") & ~cpumask.place(gone, base, m.words), leaves.any())
    m.put("mm", (mm, st.TLB_GEN), new_gen, start & for_mm)
    m.put("mm", (mm, st.VA_DEBT), 0, start & for_mm & is_all)
    m.put("mm", (mm, st.NEXT_TRIM), m.now + rules.trim_period, start & trims)

    before = jnp.where(start, jnp.zeros_like(mask), m.fl_ranged)
    m.set_mask("fl_ranged", before | cpumask.place(ranged, base, m.words), enabled)
    is_last = base + cpus.shape[0] >= m.shape.num_cpus
    m.bump("unmap_clock", enabled & is_last)
    m.put_regs(enabled, fl_page=jnp.where(is_last, r.fl_start, base + cpus.shape[0]))
    then = jnp.where(cpumask.is_empty(m.fl_ranged), r.fl_ret, Phase.INVLPG)
    m.goto(jnp.where(is_last, then, Phase.FLUSH_NEXT), enabled)


def _count_interrupts(m: Draft, cpus: Array, hit: Array, enabled: Array) -> None:
    """The TLB row of /proc/interrupts, by CPU and by who pays."""
    sent = hit.sum(dtype=jnp.int32)
    m.bump("fl_sent", enabled, sent)
    m.count("nr_tlb_remote_flush_received", enabled, sent)
    m.add("received", (cpus,), jnp.ones_like(cpus), hit)
    for payer in Payer:
        m.count(f"ipi_{payer.name.lower()}", enabled & (m.r.fl_payer == payer), sent)


def invlpg(m: Draft, enabled: Array) -> None:
    """Drop one page of a process from both TLB levels of every CPU that flushes the range."""
    r = m.r
    in_range = cpumask.to_bits(m.fl_ranged, m.shape.num_cpus)
    tag = tlb.tag_of(r.fl_mm, r.fl_page)
    for level, geometry in (("tlb1", m.shape.l1), ("tlb2", m.shape.l2)):
        index = tlb.set_index(geometry, r.fl_page)
        tags = m.get(level, index, slice(None), st.TAG)
        drops = enabled & in_range[:, None] & (tags == tag)
        cpus, ways = jnp.meshgrid(jnp.arange(m.shape.num_cpus), jnp.arange(geometry.ways), indexing="ij")
        places = (jnp.full_like(cpus, index), cpus, jnp.full_like(cpus, st.TAG), ways)
        m.put(level, places, jnp.full_like(tags, -1), drops)
    page = r.fl_page + 1
    m.put_regs(enabled, fl_page=page)
    m.goto(r.fl_ret, enabled & (page >= r.fl_end))
