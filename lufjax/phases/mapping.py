"""MAPPING: one page of MMAP, MUNMAP, MPROTECT or MADVISE_DONTNEED (docs/MODEL.md section 7)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import ANON, FIRST_PAGE, Op, Payer, VmaFlag
from lufjax.faults import Fault
from lufjax.kernels import frames
from lufjax.phases import Phase
from lufjax.phases.alloc import owes, put_then
from lufjax.phases.draft import Draft

GATHER_NONE, GATHER_NOW, GATHER_PAGE, GATHER_OWNER, GATHER_TICKS = range(5)
RULE_NONE, RULE_FLAG, RULE_MARKER, RULE_PENDING, RULE_ALWAYS, RULE_GATHER_HOOK = range(6)


def mapping(m: Draft, enabled: Array) -> None:
    """A page event up to the edit: locks, the hooks of MMAP, and the debts that the call must pay first."""
    code = m.r.phase

    def at(phase: Phase) -> Array:
        return enabled & (code == phase)

    is_mmap = m.op == Op.MMAP
    pte, vma, row = m.get("pte", m.pid), m.get("page", m.pid, st.VMA), m.get("mm", m.m)
    flags = m.get("vma", jnp.maximum(vma, 0))
    is_visited = (vma >= 0) & ((m.op != Op.MADVISE_FREE) | ((flags & VmaFlag.ANON) != 0))
    is_mapped, has_marker = vma >= 0, (pte & st.PTE_MARKER) != 0
    opened = _enter(m, at(Phase.MAPPING), row, is_visited)
    hooked = _mmap_hook(m, opened & is_mmap)

    va = (opened & is_mmap & ~hooked) | at(Phase.MAPPING_VA)
    owes_va = va & (m.rules.va_rule == 1) & has_marker
    pays_va = owes_va & (row[st.VA_DEBT] == 1)
    m.flush_mm(pays_va, Phase.MAPPING_VA_PAID, cpu=m.c, mm=m.m, payer=Payer.MAPPING)
    cleared = (owes_va & ~pays_va) | at(Phase.MAPPING_VA_PAID)
    past_va = (va & ~pays_va) | at(Phase.MAPPING_VA_PAID)
    fixed = past_va & is_mapped
    unmapped = past_va & ~is_mapped
    owes_marker = unmapped & ~cleared & (m.rules.munmap_debt_rule == RULE_MARKER) & has_marker
    m.put("pte", m.pid, pte & ~st.PTE_MARKER, cleared | owes_marker)
    m.flush_mm(owes_marker, Phase.MAPPING_MAP, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=m.v, end=m.v + 1)
    m.goto(Phase.MAPPING_MAP, unmapped & ~owes_marker)

    edits = jnp.where(m.op == Op.MADVISE_FREE, Phase.LAZYFREE, jnp.where(m.op == Op.MREMAP, Phase.MREMAP_SETTLE, Phase.MAPPING_EDIT))
    m.goto(Phase.FORK_SETTLE, opened & (m.op == Op.FORK))
    visits = opened & ~is_mmap & (m.op != Op.FORK)
    debt_rule(m, visits | fixed, at(Phase.MAPPING_FLAG), mm=m.m, row=row, pid=m.pid, again=Phase.MAPPING_FLAG, then=edits)


def debt_rule(
    m: Draft, begins: Array, resumes: Array, *, mm: Array, row: Array, pid: Array, again: Phase, then: Array | Phase
) -> None:  # fmt: skip
    """What a mapping call pays before it edits page ``pid`` of ``mm``, whose ``row`` was read: the counter, then (``again``) the flag or the hook."""
    page = m.get("page", pid)
    vma = jnp.maximum(page[st.VMA], 0)
    has_bit, shared = m.get("vma_flag", vma) == 1, m.shared_file(page)
    pays = begins & (row[st.PENDING] != row[st.FLUSHED])
    m.put("mm", (mm, st.FLUSHED), row[st.PENDING], pays)
    m.flush_mm(pays, again, cpu=m.c, mm=mm, payer=Payer.MAPPING, tables=1, credit=1)
    flag = (begins & ~pays) | resumes
    has_flag = flag & (m.rules.munmap_debt_rule == RULE_FLAG) & has_bit
    m.put("vma_flag", vma, 0, has_flag)
    m.goto(then, flag & ~has_flag)
    m.forced_flush(flag & (m.rules.munmap_debt_rule == RULE_GATHER_HOOK), then, Payer.MAPPING, mm=mm, page=shared)
    m.flush_mm(has_flag, then, cpu=m.c, mm=mm, payer=Payer.MAPPING)


def is_taken(page: Array, target: Array) -> Array:
    """Whether a mapped page cannot go to a target (rows of ``page``): something is mapped there, or is promised to be."""
    return (page[st.VMA] >= 0) & ((target[st.VMA] >= 0) | ((target[st.PROMISE] & 1) != 0))


def settle_marker(m: Draft, enabled: Array, pte: Array, *, mm: Array, vpn: Array, then: Phase) -> Array:
    """A page is mapped where none was, over ``pte``: pay what the address owes, and go on in ``then``. Returns whether the marker goes."""
    has_marker = enabled & ((pte & st.PTE_MARKER) != 0)
    by_va, by_marker = m.rules.va_rule == 1, (m.rules.va_rule == 0) & (m.rules.munmap_debt_rule == RULE_MARKER)
    m.goto(then, enabled)
    m.flush_mm(has_marker & by_va & (m.get("mm", mm, st.VA_DEBT) == 1), then, cpu=m.c, mm=mm, payer=Payer.MAPPING)
    m.flush_mm(has_marker & by_marker, then, cpu=m.c, mm=mm, payer=Payer.MAPPING, start=vpn, end=vpn + 1)
    return has_marker & (by_va | by_marker)


def visit_marker(m: Draft, pte: Array) -> tuple[Array, Array]:
    """Whether a PTE has a marker that a mapping call honours, and the PTE without it (with ``va_rule`` it stays)."""
    marked = (m.rules.munmap_debt_rule == RULE_MARKER) & ((pte & st.PTE_MARKER) != 0)
    return marked, jnp.where(marked & (m.rules.va_rule == 0), pte & ~st.PTE_MARKER, pte)


def _enter(m: Draft, enabled: Array, row: Array, is_visited: Array) -> Array:
    """Locks; open or join the gather. Returns where the event goes on (a page that is not visited only widens the gather)."""
    kind = m.cpu_row[st.GATHER_KIND]
    is_mmap, reads = m.op == Op.MMAP, locks_for_reading(m.op)
    other_excl = row[st.EXCL] - ((kind > 0) & ~locks_for_reading(kind)).astype(jnp.int32)
    other_shared = row[st.GATHERS] - row[st.EXCL] - locks_for_reading(kind).astype(jnp.int32)
    fits = jnp.where(is_mmap, kind == 0, (kind == 0) | (kind == m.op))
    gather = m.get("gather", m.c)
    walks_on = (kind == 0) | ~reads | (m.v >= gather[st.VE])
    allowed = (m.cpu_row[st.LAZY] == 0) & (other_excl == 0) & fits & (reads | (other_shared == 0)) & walks_on
    m.disabled(enabled & ~allowed)
    todo = enabled & allowed

    joins = todo & ~is_mmap
    opens = joins & (kind == 0)
    m.put("cpu", (m.c, st.GATHER_KIND), m.op, opens)
    m.add("mm", (m.m, slice(st.GATHERS, st.EXCL + 1)), jnp.stack([jnp.int32(1), (~reads).astype(jnp.int32)]), opens)
    start = jnp.where(opens, m.v, jnp.minimum(gather[st.VS], m.v))
    end = jnp.where(opens, m.v + 1, jnp.maximum(gather[st.VE], m.v + 1))
    rest = jnp.where(opens, 0, gather[st.CLEARED : st.NUM_HELD + 1])
    joined = jnp.concatenate([jnp.stack([start, end]), rest])
    one_page = jnp.concatenate([jnp.stack([m.v, m.v + 1]), jnp.zeros((4,), jnp.int32)])
    m.put("gather", m.c, jnp.where(is_mmap, one_page, joined), todo)
    m.fault(Fault.GATHER_FULL, joins & (end - start > m.shape.gather_slots))
    m.complete(joins & ~is_visited)
    return todo & (is_mmap | is_visited)


def locks_for_reading(op: Array) -> Array:
    """Calls that other CPUs may run at the same time; the others exclude one another and these."""
    return (op == Op.MADVISE_DONTNEED) | (op == Op.MADVISE_FREE)


def _mmap_hook(m: Draft, enabled: Array) -> Array:
    """First page of a call: a writable mapping may pay every debt. Returns whether a flush was requested."""
    vma, is_first = m.repeat & (FIRST_PAGE - 1), m.repeat >= FIRST_PAGE
    flags = m.get("vma", vma)
    pays = enabled & is_first & ((flags & VmaFlag.WRITE) != 0) & (m.rules.mmap_flush == 1)
    page = jnp.where((flags & VmaFlag.SHARED) != 0, m.arg, -1)
    return m.forced_flush(pays, Phase.MAPPING_VA, Payer.MAPPING, mm=m.m, page=page)


def edit(m: Draft, enabled: Array) -> None:
    """Change VMA and PTE of one page, and hold its frame; then the event is over, or goes on as MMAP over a mapped page."""
    todo = enabled & (m.r.phase == Phase.MAPPING_EDIT)
    after_flush = enabled & (m.r.phase == Phase.MAPPING_FIXED)
    pte, page, gather = m.get("pte", m.pid), m.get("page", m.pid), m.get("gather", m.c)
    is_protect, is_mmap = m.op == Op.MPROTECT, m.op == Op.MMAP
    marked, pte = visit_marker(m, pte)
    new_pte, cleared, protected, changed = _edited(m, pte, page, is_protect)
    m.put("pte", m.pid, new_pte, todo)
    frame, backing, vma = pte >> st.PTE_SHIFT, page[st.BACKING], page[st.VMA]
    frames.rmap_remove(m, frame, m.pid, todo & cleared)
    new_flag = m.get("vma_flag", jnp.maximum(vma, 0)) == 1
    m.put("vma_flag", m.arg, 1, todo & is_protect & new_flag)

    # Zap: the frame is held until the gather has flushed.
    takes = todo & ~is_protect
    is_anon, present = backing >= m.shape.num_file_pages, (pte & st.PTE_PRESENT) != 0
    packed = m.get("backing", backing, st.HOME)
    home = packed >> 2
    others = frames.has_sharers(m, backing)
    loses_home = takes & is_anon & ~others & (home >= 0)
    held_anon = loses_home & (m.get("frame", home, st.STATE) == st.USED_STATE)
    held_file = (takes & (~is_anon | others) & present) | (todo & is_protect & cleared)
    frames.lru_take(m, jnp.maximum(home, 0), held_anon, rotates=jnp.bool_(False))
    m.put("frame", (home, st.STATE), st.HELD, held_anon)
    holds, held = held_anon | held_file, jnp.where(held_anon, home, frame)
    m.add("frame", (held, st.REFS), 1, holds)
    collect(m, gather, held, holds, todo & (changed | marked))
    _new_mapping(m, page, packed, todo, loses_home, cleared | protected)
    m.add("sharers", backing - m.shape.num_file_pages, -1, takes & others)
    flushes = todo & changed & (m.rules.gather_flush == GATHER_PAGE)
    done = (todo & ~flushes) | after_flush
    m.complete(done & ~is_mmap)
    m.goto(Phase.FIXED_FINISH, done & is_mmap)
    m.flush_mm(flushes, Phase.MAPPING_FIXED, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=m.v, end=m.v + 1)


def collect(m: Draft, gather: Array, held: Array, holds: Array, widens: Array) -> None:
    """The gather of this CPU keeps a frame until its flush, and will have to flush this page."""
    slot, was = gather[st.NUM_HELD], gather[st.CLEARED] == 1
    m.fault(Fault.GATHER_FULL, holds & (slot >= m.shape.gather_slots))
    m.put("held", (m.c, slot), held, holds)
    start = jnp.where(was, jnp.minimum(gather[st.CS], m.v), m.v)
    end = jnp.where(was, jnp.maximum(gather[st.CE], m.v + 1), m.v + 1)
    span = jnp.where(widens, jnp.stack([jnp.ones_like(start), start, end]), gather[st.CLEARED : st.CE + 1])
    m.put("gather", (m.c, slice(st.CLEARED, st.NUM_HELD + 1)), jnp.concatenate([span, (slot + holds.astype(jnp.int32))[None]]), widens | holds)


def is_held(m: Draft, gather: Array, frame: Array) -> Array:
    """Whether the gather of this CPU keeps a frame already."""
    held = m.get("held", m.c)
    return ((held == frame) & (jnp.arange(held.shape[0]) < gather[st.NUM_HELD])).any()


def _edited(m: Draft, pte: Array, page: Array, is_protect: Array) -> tuple[Array, Array, Array, Array]:
    """The PTE afterwards, and whether it was cleared, lost write permission, changed at all."""
    flags = m.get("vma", m.arg)
    can_read, can_write, is_shared = ((flags & bit) != 0 for bit in (VmaFlag.READ, VmaFlag.WRITE, VmaFlag.SHARED))
    present, writable, dirty = ((pte & bit) != 0 for bit in (st.PTE_PRESENT, st.PTE_WRITABLE, st.PTE_DIRTY))
    is_anon = page[st.BACKING] >= m.shape.num_file_pages
    cleared = present & (~is_protect | ~can_read)
    protects = is_protect & present & can_read
    protected = protects & ~can_write & writable
    opened = protects & can_write & ~writable & dirty & (is_shared | is_anon) & ~frames.is_copy_on_write(m, flags, page[st.BACKING])
    new = jnp.where(protected, pte & ~st.PTE_WRITABLE, jnp.where(opened, pte | st.PTE_WRITABLE, pte))
    return jnp.where(cleared, 0, new), cleared, protected, cleared | protected | opened


def _new_mapping(m: Draft, page: Array, packed: Array, enabled: Array, loses_home: Array, lost: Array) -> None:
    """VMA and backing of the page after the edit: MADVISE_DONTNEED leaves a fresh page, or the file page under a private mapping."""
    backing = page[st.BACKING]
    is_anon = enabled & (m.op == Op.MADVISE_DONTNEED) & (backing >= m.shape.num_file_pages)
    origin = m.get("origin", backing - m.shape.num_file_pages)
    reverts = is_anon & (origin >= 0)
    fresh = is_anon & ~reverts
    m.fault(Fault.ANON_POOL_EMPTY, fresh & (m.r.anon_top <= 0))
    taken, _ = frames.take_anon(m, backing, fresh)
    m.put("backing", (backing, st.HOME), (packed & 3) - 4, loses_home)
    is_promised = ((page[st.PROMISE] & 1) != 0) & (page[st.PROMISE] >> 2 == backing)
    frames.release_anon(m, backing, is_anon & ~is_promised)
    unmaps = (m.op == Op.MUNMAP) | (m.op == Op.EXIT)
    vma = jnp.where(m.op == Op.MPROTECT, m.arg, jnp.where(unmaps, -1, page[st.VMA]))
    new_backing = jnp.where(reverts, origin, jnp.where(fresh, taken, backing))
    changed = jnp.where(lost, m.now, page[st.CHANGED])
    flags = m.get("vma", m.arg)
    may_write = ((flags & VmaFlag.WRITE) != 0) & ~frames.is_copy_on_write(m, flags, backing)
    granted = (m.op == Op.MPROTECT) & ((page[st.PROMISE] & 1) != 0) & may_write
    promise = page[st.PROMISE] | jnp.where(granted, 2, 0)
    m.put("page", m.pid, jnp.stack([vma, new_backing, promise, page[st.EPOCH], changed]), enabled)


def fixed(m: Draft, enabled: Array) -> None:
    """MMAP: over a mapped page, the finish of its one-page gather; then the new mapping, and its promise at once."""
    begins = enabled & (m.r.phase == Phase.FIXED_FINISH)
    gather, page = m.get("gather", m.c), m.get("page", m.pid)
    always = m.rules.munmap_debt_rule == RULE_ALWAYS
    cleared = gather[st.CLEARED] == 1
    by_page = m.rules.gather_flush == GATHER_PAGE
    flushes = begins & (cleared | always) & (m.rules.gather_flush != GATHER_NONE) & (~by_page | always)
    whole = always | ~cleared
    m.flush_mm(
        flushes, Phase.FIXED_FREE, cpu=m.c, mm=m.m, payer=Payer.MAPPING, start=jnp.where(whole, 0, gather[st.CS]),
        end=jnp.where(whole, -1, gather[st.CE]),
    )  # fmt: skip
    frees = (begins & ~flushes) | (enabled & (m.r.phase == Phase.FIXED_FREE))
    frame = m.get("held", m.c, 0)
    row, has = m.get("frame", frame), frees & (gather[st.NUM_HELD] > 0)
    frames.release_anon(m, page[st.BACKING], frees & (page[st.BACKING] >= m.shape.num_file_pages))
    m.put("page", (m.pid, st.VMA), -1, frees)
    m.goto(Phase.MAPPING_MAP, frees)
    put_then(m, frame, row, m.c, has, Phase.MAPPING_MAP, has_debt=owes(m, frame))


def map_page(m: Draft, enabled: Array) -> None:
    """The new mapping of an MMAP, and its promise at once; the policy bit of a new VMA starts clear."""
    vma, is_anon = m.repeat & (FIRST_PAGE - 1), m.arg == ANON
    m.fault(Fault.ANON_POOL_EMPTY, enabled & is_anon & (m.r.anon_top <= 0))
    fresh, _ = frames.take_anon(m, jnp.full_like(m.arg, -1), enabled & is_anon)
    backing = jnp.where(is_anon, fresh, m.arg)
    writable = (m.get("vma", vma) & VmaFlag.WRITE) != 0
    promise = backing * 4 + writable.astype(jnp.int32) * 2 + 1
    m.put("page", (m.pid, slice(st.VMA, st.EPOCH + 1)), jnp.stack([vma, backing, promise, m.now]), enabled)
    m.put("vma_flag", vma, 0, enabled & (m.repeat >= FIRST_PAGE))
    m.put("gather", m.c, jnp.zeros((6,), jnp.int32), enabled)
    m.complete(enabled)
