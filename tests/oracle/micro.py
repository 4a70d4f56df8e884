"""Micro-steps of litmus files (docs/MODEL.md section 11)."""

from __future__ import annotations

from .state import FOREIGN, FOREIGN_DATA, FREE, USED, Promise, State
from .tlb import TlbEntry

(PLACE, MAP, SET_PTE, CLEAR_PTE, WRITE_PROTECT, MAKE_CLEAN, FLUSH_PAGE, FLUSH_MM, FREE_FRAME, ALLOC_FRAME, FILL, WRITE_OBJECT, SNAP,
 RETURN, PERMIT) = range(64, 79)  # fmt: skip


def micro_step(s: State, cpu: int, op: int, vpn: int, arg: int, repeat: int) -> None:
    """Do what one micro-step says."""
    if op in (MAP, SET_PTE, CLEAR_PTE, WRITE_PROTECT, MAKE_CLEAN):
        _edit(s, op, arg, vpn, repeat)
    elif op in (RETURN, PERMIT):
        _promise(s, op, arg, vpn, repeat)
    elif op in (FLUSH_PAGE, FLUSH_MM, FILL):
        _tlb(s, op, cpu, arg, vpn)
    elif op in (FREE_FRAME, ALLOC_FRAME):
        _leave(s, op, repeat)
    else:
        _object(s, op, arg, repeat)


def _edit(s: State, op: int, m: int, v: int, extra: int) -> None:
    page = s.page(m, v)
    if op == WRITE_PROTECT:
        page.writable = False
    elif op == MAKE_CLEAN:
        page.dirty = False
        return
    elif op == CLEAR_PTE:
        page.present = page.writable = page.accessed = page.dirty = False
        page.frame = None
    else:
        page.present, page.accessed, page.dirty = True, False, False
        if op == MAP:
            backing = extra // 4
            page.frame, page.writable = s.backings[backing].home, bool(extra & 2)
            page.vma, page.backing = 0, backing
            if extra & 1:
                page.promise = Promise(True, page.writable, backing)
        else:
            page.frame, page.writable = extra // 2, bool(extra & 1)
    page.changed = s.now


def _promise(s: State, op: int, m: int, v: int, packed: int) -> None:
    page = s.page(m, v)
    page.promise = Promise(True, bool(packed & 2), packed // 4) if packed & 1 else Promise()
    if op == RETURN:
        page.vma, page.backing = (0, packed // 4) if packed & 1 else (None, None)
        page.epoch = s.now


def _tlb(s: State, op: int, c: int, m: int, v: int) -> None:
    for level in (s.cpus[c].l2, s.cpus[c].l1):
        if op == FLUSH_PAGE:
            level.drop(m, v)
        elif op == FLUSH_MM:
            for process in range(len(s.processes)) if m < 0 else [m]:
                level.flush(process)
        elif (pte := s.page(m, v)).present:
            level.fill(TlbEntry(m, v, pte.frame, pte.writable, pte.dirty, s.now), s.now)


def _leave(s: State, op: int, f: int) -> None:
    frame = s.frames[f]
    if frame.page is not None and s.backings[frame.page].home == f:
        s.backings[frame.page].home = None
    frame.state = FREE
    if op == ALLOC_FRAME:
        frame.state, frame.content, frame.handed = FOREIGN, FOREIGN_DATA, s.now


def _object(s: State, op: int, b: int, f: int) -> None:
    backing = s.backings[b]
    if op == PLACE:
        backing.home, backing.harvested = f, False
        s.frames[f].state, s.frames[f].page, s.frames[f].content = USED, b, (b, backing.truth)
    elif op == WRITE_OBJECT:
        backing.truth += 1
        if backing.home is not None:
            s.frames[backing.home].content = (b, backing.truth)
    else:
        backing.stored, backing.harvested = backing.truth, True
