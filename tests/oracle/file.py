"""Events of a file page: FILE_WRITE, REMOTE_WRITE, TRUNCATE (docs/MODEL.md section 7)."""

from __future__ import annotations

from . import allocation, anonymous, frames, mapping, reclaim
from .counting import Counts
from .state import Page, State


def file_write(s: State, n: Counts, c: int, b: int) -> None:
    """write(2) of one whole page."""
    backing = s.backings[b]
    if backing.home is None:
        f = allocation.alloc(s, n, c)
        if f is None:
            return
        frames.make_home(s, f, b, backing.stored)
    frames.take_back(s, n, c, backing.home)
    if s.policy["file_write_flush"]:
        allocation.forced_flush(s, n, c, None, b, "fault")
    backing.truth += 1
    backing.harvested, backing.on_store = False, True
    s.frames[backing.home].content = (b, backing.truth)


def replace(s: State, n: Counts, c: int, b: int, is_truncate: bool) -> None:
    """The page changes on the server (and is dropped if it is cached), or leaves the file."""
    backing = s.backings[b]
    if s.policy["invalidate_flush"]:
        allocation.forced_flush(s, n, c, None, b, "mapping")
    if backing.home is not None and backing.home in [f for f, _ in s.batch]:
        reclaim.drain(s, n, c)
    f = backing.home
    if is_truncate or (f is not None and (s.frames[f].mappings() or s.frames[f].refs > 0)):
        for m, v, page in s.pages():
            if page.vma is not None and (page.backing == b or (is_truncate and _is_copy(s, page, b))):
                _unmap(s, n, c, m, v, b)
    if backing.home is not None:
        frames.evict(s, n, backing.home, c)
    backing.truth += 1
    backing.stored = backing.truth
    backing.harvested, backing.on_store = False, not is_truncate


def _is_copy(s: State, page: Page, b: int) -> bool:
    return s.is_anon(page.backing) and s.backings[page.backing].origin == b


def _unmap(s: State, n: Counts, c: int, m: int, v: int, b: int) -> None:
    """Take the page away from (m, v); a private copy is forgotten and its file page is mapped again."""
    mapping.zap_now(s, n, c, m, v)
    page, old = s.page(m, v), s.page(m, v).backing
    if old == b:
        return
    page.backing = b
    if page.promise.backing == old:
        page.promise.backing = b
        page.epoch = s.now
    anonymous.release(s, old)
