"""LOAD and STORE, and the check of stale entries (docs/MODEL.md sections 5 and 8)."""

from __future__ import annotations

from . import fault, flush
from .counting import LOST_STORE, MAPPING, OLD_VALUE, PERMISSION, REUSE, Counts
from .state import CORRUPT, SHARED, Content, State
from .tlb import TlbEntry

TAKE_AWAY = (4, 6, 23, 24)
"""MUNMAP, DONTNEED, EXIT, MREMAP."""


def access(s: State, n: Counts, c: int, v: int, is_store: bool, times: int) -> bool:
    """Execute a LOAD or STORE ``times`` times. False if it is not enabled."""
    cpu = s.cpus[c]
    if cpu.lazy or cpu.is_busy:
        return False
    m = cpu.loaded
    n.bump("accesses", times)
    n.bump("stores" if is_store else "loads", times)
    entry = cpu.l1.lookup(m, v)
    in_l1 = entry is not None
    if entry is None:
        entry = cpu.l2.lookup(m, v)
        if entry is not None:
            n.bump("stlb_hit")
            cpu.l2.touch(m, v, s.now)
    if entry is None:
        n.bump("dtlb_store_misses" if is_store else "dtlb_load_misses")
        _walk(s, n, c, m, v, is_store)
    elif is_store and not (entry.writable and entry.dirty):
        _store_through(s, n, c, entry)
    else:
        if in_l1:
            cpu.l1.touch(m, v, s.now)
        else:
            cpu.l1.fill(entry, s.now)
        _use(s, n, c, entry, is_store, times)
    return True


def would_fault(s: State, c: int, v: int, is_store: bool) -> bool:
    """Whether an access that is enabled would end in a page fault."""
    cpu = s.cpus[c]
    if cpu.lazy or cpu.is_busy:
        return False
    page = s.page(cpu.loaded, v)
    for level in (cpu.l1, cpu.l2):
        entry = level.lookup(cpu.loaded, v)
        if entry is not None and (not is_store or (entry.writable and entry.dirty)):
            return False
    return not page.present or (is_store and not page.writable)


def _walk(s: State, n: Counts, c: int, m: int, v: int, is_store: bool) -> None:
    pte = s.page(m, v)
    if not pte.present or (is_store and not pte.writable):
        fault.fault(s, n, c, m, v, is_store)
        return
    pte.accessed = True
    pte.dirty = pte.dirty or is_store
    n.bump("walk_completed")
    fill_both(s, c, m, v)
    if is_store:
        store_by_pte(s, m, v)


def _store_through(s: State, n: Counts, c: int, entry: TlbEntry) -> None:
    """A store whose entry is not writable or not dirty looks at the PTE."""
    pte = s.page(entry.m, entry.vpn)
    if not (pte.present and pte.writable):
        flush.drop(s, c, entry.m, entry.vpn)
        fault.fault(s, n, c, entry.m, entry.vpn, True)
        return
    if not entry.writable:
        n.bump("spurious_fault")
    pte.accessed = pte.dirty = True
    fill_both(s, c, entry.m, entry.vpn)
    store_by_pte(s, entry.m, entry.vpn)


def fill_both(s: State, c: int, m: int, v: int) -> None:
    """Fill both TLB levels of CPU ``c`` from a present PTE."""
    pte = s.page(m, v)
    entry = TlbEntry(m, v, pte.frame, pte.writable, pte.dirty, s.now)
    s.cpus[c].l2.fill(entry, s.now)
    s.cpus[c].l1.fill(entry, s.now)


def store_by_pte(s: State, m: int, v: int) -> None:
    """Store through a present, dirty PTE: what was written out of the page so far is not the last word."""
    pte = s.page(m, v)
    store(s, pte.frame, pte.backing)
    s.backings[pte.backing].harvested = False


def store(s: State, f: int, b: int) -> None:
    """Store through frame ``f`` to what should be backing ``b``: the truth moves on, once however often."""
    s.backings[b].truth += 1
    frame = s.frames[f]
    frame.content = (b, s.backings[b].truth) if frame.content[0] == b else CORRUPT


def _use(s: State, n: Counts, c: int, entry: TlbEntry, is_store: bool, times: int) -> None:
    """Use an entry that needs no look at the PTE, stale or not."""
    pte = s.page(entry.m, entry.vpn)
    is_stale = pte.frame != entry.frame or (is_store and not (pte.writable and pte.dirty))
    if not is_stale:
        if is_store:
            store_by_pte(s, entry.m, entry.vpn)
        return
    n.observe("age_at_use", s.now - pte.changed, times)
    _judge(s, n, c, entry, is_store, times)
    if is_store and pte.promise.mapped:
        store(s, entry.frame, pte.promise.backing)
    elif is_store:
        s.frames[entry.frame].content = CORRUPT


def _judge(s: State, n: Counts, c: int, entry: TlbEntry, is_store: bool, times: int) -> None:
    page, frame = s.page(entry.m, entry.vpn), s.frames[entry.frame]
    promise, advanced = page.promise, page.epoch > entry.filled
    exact = promise.mapped and frame.content == (promise.backing, s.backings[promise.backing].truth)
    is_dropped = _is_being_dropped(s, entry.m, entry.vpn)
    is_backed = page.backing == promise.backing and not is_dropped
    named = promise.mapped and not advanced and is_backed
    classes = []
    if frame.handed > entry.filled and not exact:
        classes.append(REUSE)
    if advanced and not is_dropped and not exact:
        classes.append(MAPPING)
    if is_store and promise.mapped and not promise.writable:
        classes.append(PERMISSION)
    if is_store and (named or (exact and is_backed)) and _is_lost(s, promise.backing, entry.frame):
        classes.append(LOST_STORE)
    if not is_store and named and _is_old(s, promise.backing, frame.content):
        classes.append(OLD_VALUE)
    for kind in classes:
        n.violate(kind, is_store, times, (s.now, c, entry.m, entry.vpn))
    if not classes:
        n.bump("tolerated", times)
        n.bump("tolerated_epoch", times if advanced else 0)


def _is_being_dropped(s: State, m: int, v: int) -> bool:
    """Is a call in progress that takes the page away, and that has visited it?"""
    gathers = [cpu.gather for cpu in s.cpus if cpu.gather is not None and cpu.loaded == m]
    is_visited = any(gather.op in TAKE_AWAY and gather.vs <= v < gather.ve for gather in gathers)
    return is_visited and not s.flags(s.page(m, v)) & SHARED


def _is_lost(s: State, b: int, f: int) -> bool:
    return s.backings[b].home != f or s.backings[b].harvested


def _is_old(s: State, b: int, content: Content) -> bool:
    """Whether ``content`` is an older version of ``b``, or what ``b`` was copied from."""
    backing = s.backings[b]
    is_parent = backing.parent is not None and content[0] == backing.parent
    return is_parent or (content[0] == b and content[1] < backing.truth)
