"""Mapping calls: page events of a gather, and MMAP (docs/MODEL.md section 7)."""

from __future__ import annotations

from . import allocation, anonymous, finish, flush, frames
from .counting import Counts
from .state import ANON, HELD, READ, SHARED, USED, WRITE, EngineFault, Gather, State

MMAP, MUNMAP, MPROTECT, DONTNEED = 3, 4, 5, 6
MADVISE_FREE, EXIT, MREMAP, FORK = 22, 23, 24, 25
SHARED_KINDS = (DONTNEED, MADVISE_FREE)
VMA_FLAG, PTE_MARKER, GATHER_HOOK = 1, 2, 5
FLUSH_PAGE = 2


def _may_map(s: State, c: int, op: int) -> bool:
    """Locks: whether CPU ``c`` may do a mapping call of this kind now."""
    cpu = s.cpus[c]
    if cpu.lazy or cpu.fault is not None or (cpu.gather is not None and cpu.gather.op != op):
        return False
    own = cpu.gather is not None
    process = s.processes[cpu.loaded]
    if process.excl - (1 if own and op not in SHARED_KINDS else 0) > 0:
        return False
    if op == EXIT and any(other.loaded == cpu.loaded and not other.lazy for other in s.cpus if other is not cpu):
        return False
    shared = process.gathers - process.excl - (1 if own and op in SHARED_KINDS else 0)
    return op in SHARED_KINDS or shared == 0


def page_event(s: State, n: Counts, c: int, op: int, v: int, arg: int, repeat: int) -> bool:
    """One page of a gathered call. False if it is not enabled."""
    if not _may_map(s, c, op):
        return False
    m = s.cpus[c].loaded
    page = s.page(m, v)
    if op in SHARED_KINDS and s.cpus[c].gather is not None and v < s.cpus[c].gather.ve:
        return False
    if op == MREMAP and page.vma is not None and (s.page(m, arg).vma is not None or s.page(m, arg).promise.mapped):
        return False
    if op == FORK and not _may_fork(s, m, v, arg):
        return False
    gather = _open(s, c, op, v)
    if page.vma is None or (op == MADVISE_FREE and not s.flags(page) & ANON):
        return True
    if op != FORK:
        _debt_rule(s, n, c, m, v, gather)
    before = (page.present, page.writable, page.accessed, page.dirty)
    if op == MPROTECT:
        _protect(s, m, v, arg, gather)
    elif op == MREMAP:
        _move(s, n, c, m, v, arg, gather)
    elif op == FORK:
        _copy(s, n, c, m, v, arg, repeat, gather)
    elif op == MADVISE_FREE:
        _let_go(s, m, v, gather)
    else:
        zap(s, m, v, gather)
        if op in (MUNMAP, EXIT):
            page.vma = page.backing = None
        else:
            _renew(s, m, v)
    if s.policy["gather_flush"] == FLUSH_PAGE and (page.present, page.writable, page.accessed, page.dirty) != before:
        flush.flush_mm(s, n, c, m, (v, v + 1), False, "mapping")
    return True


def _may_fork(s: State, m: int, v: int, child: int) -> bool:
    """Whether page ``v`` of process ``m`` can be copied to ``child``."""
    page, copy = s.page(m, v), s.page(child, v)
    is_free = copy.vma is None and not copy.promise.mapped
    return child != m and not s.processes[child].gathers and (page.vma is None or is_free)


def _open(s: State, c: int, op: int, v: int) -> Gather:
    """Open the gather of CPU ``c`` or join it, and widen the range of visited pages."""
    cpu = s.cpus[c]
    if cpu.gather is None:
        cpu.gather = Gather(op, v, v + 1)
        s.processes[cpu.loaded].gathers += 1
        s.processes[cpu.loaded].excl += op not in SHARED_KINDS
    gather = cpu.gather
    gather.vs, gather.ve = min(gather.vs, v), max(gather.ve, v + 1)
    if gather.ve - gather.vs > s.sizes["gather_slots"]:
        raise EngineFault("GATHER_FULL")
    return gather


def _debt_rule(s: State, n: Counts, c: int, m: int, v: int, gather: Gather) -> None:
    """Pay for unmaps by reclaim that were not flushed yet, as far as the policy knows of them."""
    process, page, rule = s.processes[m], s.page(m, v), s.policy["munmap_debt_rule"]
    if process.pending != process.flushed:
        flush.flush_pending(s, n, c, m)
    if rule == VMA_FLAG and s.vma_flag[page.vma]:
        flush.flush_mm(s, n, c, m, None, False, "mapping")
        s.vma_flag[page.vma] = False
    if rule == GATHER_HOOK:
        allocation.forced_flush(s, n, c, m, s.shared_file(page), "mapping")
    if rule == PTE_MARKER and page.marker:
        gather.clear(v)
        if not s.policy["va_rule"]:
            page.marker = False


def zap(s: State, m: int, v: int, gather: Gather) -> None:
    """Clear the PTE and hold the frame until the flush."""
    page = s.page(m, v)
    backing = s.backings[page.backing]
    f, was_present = backing.home, page.present
    if was_present:
        frames.clear_pte(s, m, v)
        gather.clear(v)
    if s.has_sharers(page.backing):
        backing.sharers -= 1
    elif s.is_anon(page.backing) and f is not None:
        backing.home = None
        if s.frames[f].state == USED:
            s.lru_of(f).remove(f)
            s.frames[f].state = HELD
            hold(s, gather, f)
        return
    if was_present:
        hold(s, gather, f)


def hold(s: State, gather: Gather, f: int) -> None:
    """Keep frame ``f`` until the gather has flushed."""
    if len(gather.held) == s.sizes["gather_slots"]:
        raise EngineFault("GATHER_FULL")
    s.frames[f].refs += 1
    gather.held.append(f)


def _renew(s: State, m: int, v: int) -> None:
    """DONTNEED: the page gets what a first touch of it would see."""
    page, b = s.page(m, v), s.page(m, v).backing
    if not s.is_anon(b):
        return
    origin = s.backings[b].origin
    page.backing = anonymous.fresh(s, b) if origin is None else origin
    if page.promise.backing != b:
        anonymous.release(s, b)


def _move(s: State, n: Counts, c: int, m: int, v: int, w: int, gather: Gather) -> None:
    """MREMAP: page ``v`` moves to ``w``, where nothing is mapped; its frame is kept until the old address is flushed."""
    page, to = s.page(m, v), s.page(m, w)
    _settle_marker(s, n, c, m, w)
    if page.present:
        if page.frame not in gather.held:
            hold(s, gather, page.frame)
        gather.clear(v)
        to.present, to.writable, to.accessed, to.dirty, to.frame = True, page.writable, page.accessed, page.dirty, page.frame
        to.marker = False
        rmap = s.frames[page.frame].rmap
        slot = rmap.index((m, v))
        frames.clear_pte(s, m, v)
        rmap[slot] = (m, w)
    to.vma, to.backing = page.vma, page.backing
    page.vma = page.backing = None
    to.promise, to.epoch = s.mapping_of(to), s.now
    if s.is_anon(to.backing):
        s.backings[to.backing].shared += 1


def _copy(s: State, n: Counts, c: int, m: int, v: int, child: int, vma: int, gather: Gather) -> None:
    """FORK: page ``v`` of ``child`` becomes a copy, and anonymous content is shared until one of them stores to it."""
    page, copy = s.page(m, v), s.page(child, v)
    _settle_marker(s, n, c, child, v)
    s.vma_flag[vma] = s.vma_flag[vma] or s.vma_flag[page.vma]
    copy.vma, copy.backing = vma, page.backing
    if s.is_anon(page.backing):
        s.backings[page.backing].shared += 1
        s.backings[page.backing].sharers += 1
    copy.promise, copy.epoch = s.mapping_of(copy), s.now
    if not page.present or not s.is_anon(page.backing) or s.flags(page) & SHARED:
        return
    is_dirty = page.dirty
    frames.set_pte(s, child, v, page.frame, False)
    copy.accessed, copy.dirty = False, is_dirty
    if page.writable:
        page.writable = False
        page.changed = s.now
        gather.clear(v)


def _settle_marker(s: State, n: Counts, c: int, m: int, v: int) -> None:
    """A page is mapped where none was: pay what the address owes."""
    page = s.page(m, v)
    if not page.marker:
        return
    if s.policy["va_rule"]:
        if s.processes[m].va_debt:
            flush.flush_mm(s, n, c, m, None, False, "mapping")
        page.marker = False
    elif s.policy["munmap_debt_rule"] == PTE_MARKER:
        flush.flush_mm(s, n, c, m, (v, v + 1), False, "mapping")
        page.marker = False


def _let_go(s: State, m: int, v: int, gather: Gather) -> None:
    """MADVISE_FREE: nobody minds if the content goes, unless something is stored after the call."""
    page = s.page(m, v)
    if s.has_sharers(page.backing):
        return
    if not page.present:
        backing = s.backings[page.backing]
        if backing.home is None:
            backing.harvested, backing.on_store = True, False
        return
    if page.frame not in gather.held:
        hold(s, gather, page.frame)
    if page.accessed or page.dirty:
        gather.clear(v)
    if page.dirty:
        page.changed = s.now
    page.accessed = page.dirty = False


def _protect(s: State, m: int, v: int, new_vma: int, gather: Gather) -> None:
    page = s.page(m, v)
    s.vma_flag[new_vma] = s.vma_flag[new_vma] or s.vma_flag[page.vma]
    page.vma = new_vma
    flags = s.flags(page)
    page.promise.writable = page.promise.writable or s.mapping_of(page).writable
    if not page.present:
        return
    may_upgrade = page.dirty and (flags & SHARED or s.is_anon(page.backing)) and not s.is_copy_on_write(page)
    if not flags & READ:
        hold(s, gather, page.frame)
        frames.clear_pte(s, m, v)
    elif not flags & WRITE and page.writable:
        page.writable = False
        page.changed = s.now
    elif flags & WRITE and not page.writable and may_upgrade:
        page.writable = True
    else:
        return
    gather.clear(v)


def mmap(s: State, n: Counts, c: int, v: int, backing: int, vma: int, is_first: bool) -> bool:
    """Map one page, over whatever is there (MAP_FIXED). False if it is not enabled."""
    if s.cpus[c].gather is not None or not _may_map(s, c, MMAP):
        return False
    m = s.cpus[c].loaded
    page = s.page(m, v)
    if is_first and s.policy["mmap_flush"] and s.vmas[vma] & WRITE:
        is_shared = s.vmas[vma] & SHARED and backing >= 0
        allocation.forced_flush(s, n, c, m, backing if is_shared else None, "mapping")
    if s.policy["va_rule"] or page.vma is None:
        _settle_marker(s, n, c, m, v)
    if page.vma is not None:
        _unmap_fixed(s, n, c, m, v)
    if is_first:
        s.vma_flag[vma] = False
    page.vma = vma
    page.backing = backing if backing >= 0 else anonymous.fresh(s, None)
    page.promise = s.mapping_of(page)
    page.epoch = s.now
    return True


def _unmap_fixed(s: State, n: Counts, c: int, m: int, v: int) -> None:
    """The munmap inside an MMAP."""
    zap_now(s, n, c, m, v)
    page = s.page(m, v)
    page.vma = page.backing = None
    finish.advance(s, m, v, MUNMAP)


def zap_now(s: State, n: Counts, c: int, m: int, v: int) -> None:
    """Zap page (m, v) with a gather of its own that opens, flushes and frees within the event."""
    page, gather = s.page(m, v), Gather(MUNMAP, v, v + 1)
    _debt_rule(s, n, c, m, v, gather)
    was_present = page.present
    zap(s, m, v, gather)
    if s.policy["gather_flush"] == FLUSH_PAGE and was_present:
        flush.flush_mm(s, n, c, m, (v, v + 1), False, "mapping")
    finish.settle(s, n, c, m, gather, False, s.processes[m].gathers > 0, True)
