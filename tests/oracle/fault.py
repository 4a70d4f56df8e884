"""Page faults (docs/MODEL.md section 5)."""

from __future__ import annotations

from . import access, allocation, anonymous, flush, frames
from .counting import Counts
from .state import MAYWRITE, READ, SHARED, WRITE, Page, State

OFF, WP, BEFORE, AFTER = range(4)


def fault(s: State, n: Counts, c: int, m: int, v: int, is_store: bool) -> None:
    """Resolve a fault of CPU ``c`` on page (m, v), and perform the store if it is one."""
    if not _resolve(s, n, c, m, v, is_store):
        return
    _hook(s, n, c, s.page(m, v), AFTER)
    access.fill_both(s, c, m, v)
    if is_store:
        access.store_by_pte(s, m, v)


def install_half(s: State, n: Counts, c: int, v: int, is_store: bool) -> bool:
    """FAULT_INSTALL: the fault up to the installed PTE. False if it is not enabled."""
    if not access.would_fault(s, c, v, is_store):
        return False
    m = s.cpus[c].loaded
    flush.drop(s, c, m, v)
    if _resolve(s, n, c, m, v, is_store):
        s.cpus[c].fault = (v, _may_write(s, s.page(m, v)))
    return True


def finish_half(s: State, n: Counts, c: int, v: int) -> bool:
    """FAULT_FINISH: what the fault pays at its end. False if it is not enabled."""
    open_fault = s.cpus[c].fault
    if open_fault is None or open_fault[0] != v:
        return False
    s.cpus[c].fault = None
    if open_fault[1] and s.policy["write_fault_flush"] == AFTER:
        m = s.cpus[c].loaded
        allocation.forced_flush(s, n, c, m, s.shared_file(s.page(m, v)), "fault")
    return True


def _resolve(s: State, n: Counts, c: int, m: int, v: int, is_store: bool) -> bool:
    """The fault up to the installed PTE. False if it is not allowed, past the end of the file, or without a frame."""
    page = s.page(m, v)
    n.bump("pgfault")
    if not s.flags(page) & READ or (is_store and not s.flags(page) & WRITE):
        n.bump("segv")
        return False
    b = page.backing
    if s.is_gone(b):
        n.bump("sigbus")
        return False
    if is_store and page.present and s.policy["write_fault_flush"] == WP:
        allocation.forced_flush(s, n, c, m, s.shared_file(page), "fault")
    is_private_file = not s.flags(page) & SHARED and not s.is_anon(b)
    is_copied = is_private_file or s.is_copy_on_write(page)
    if page.present and not is_copied:
        _hook(s, n, c, page, BEFORE)
        page.writable = page.dirty = page.accessed = True
        _made_writable(s, page)
        return True
    if is_store and is_copied:
        return _copy_on_write(s, n, c, m, v)
    return _install_backing(s, n, c, m, v, is_store)


def _may_write(s: State, page: Page) -> bool:
    return bool(s.flags(page) & (WRITE | MAYWRITE))


def _hook(s: State, n: Counts, c: int, page: Page, when: int) -> None:
    """What a fault pays before or after its PTE can be seen, if the page may ever be written."""
    if s.policy["write_fault_flush"] == when and _may_write(s, page):
        allocation.forced_flush(s, n, c, s.cpus[c].loaded, s.shared_file(page), "fault")


def _copy_on_write(s: State, n: Counts, c: int, m: int, v: int) -> bool:
    page, b = s.page(m, v), s.page(m, v).backing
    f = allocation.alloc(s, n, c)
    if f is None:
        return False
    copy = anonymous.fresh(s, b)
    if s.backings[b].home is None and s.backings[b].on_store:
        n.bump("pgmajfault")
    owes_flush = page.present or (s.backings[b].home, False) in s.batch
    if page.present:
        frames.clear_pte(s, m, v)
    if owes_flush and s.policy["cow_flush"]:
        flush.flush_mm(s, n, c, m, (v, v + 1), False, "fault")
    page.backing = copy
    if page.promise.backing == b:
        page.promise.backing = copy
    frames.make_home(s, f, copy, s.backings[copy].truth)
    if s.is_anon(b):
        s.backings[b].sharers -= 1
        anonymous.release(s, b)
    _install(s, n, c, m, v, f, True)
    return True


def _install_backing(s: State, n: Counts, c: int, m: int, v: int, is_store: bool) -> bool:
    """Map the home of the page's backing; read it in if it has none."""
    b = s.page(m, v).backing
    backing = s.backings[b]
    if backing.home is not None:
        frames.take_back(s, n, c, backing.home)
    else:
        f = allocation.alloc(s, n, c)
        if f is None:
            return False
        if s.is_lazyfree(b):
            backing.truth += 1
            backing.stored = backing.truth
        frames.make_home(s, f, b, backing.stored)
        if backing.on_store:
            n.bump("pgmajfault")
    _install(s, n, c, m, v, backing.home, is_store)
    return True


def _install(s: State, n: Counts, c: int, m: int, v: int, f: int, writable: bool) -> None:
    """Put ``f`` in the PTE, after the marker rule and the hook."""
    if s.page(m, v).marker and writable and s.policy["marker_fault"]:
        flush.flush_mm(s, n, c, m, None, False, "fault")
    _hook(s, n, c, s.page(m, v), BEFORE)
    frames.set_pte(s, m, v, f, writable)
    if writable:
        _made_writable(s, s.page(m, v))


def _made_writable(s: State, page: Page) -> None:
    """A dirty PTE: what is in the page will be written out again; and the program may store to it, if it could not since a fork."""
    s.backings[page.backing].harvested = False
    if page.promise.backing == page.backing:
        page.promise.writable = True
