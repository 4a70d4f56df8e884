"""MIGRATE: a page moves to a frame of the other tier (docs/MODEL.md section 7)."""

from __future__ import annotations

from . import allocation, frames, reclaim
from .counting import Counts
from .state import State

OFF, _, DEFER = range(3)
PAID = 2


def migrate(s: State, n: Counts, c: int, v: int, m: int) -> bool:
    """Move the frame of page (m, v). False if it is not enabled."""
    f = reclaim.movable(s, m, v)
    if f is None or f in [g for g, _ in s.batch]:
        return False
    has_two_tiers = s.params["fast_frames"] < s.params["frames_in_use"]
    f2 = allocation.alloc_in(s, n, c, has_two_tiers and not frames.is_slow(s, f))
    if f2 is None:
        n.bump("pgmigrate_fail")
        return True
    _move(s, n, f, f2, c)
    return True


def demote(s: State, n: Counts, f: int, i: int) -> None:
    """Reclaim by CPU ``i`` moves the page of frame ``f`` to the slow tier, which has a free frame."""
    f2 = allocation.alloc_in(s, n, i, True)
    assert f2 is not None
    _move(s, n, f, f2, i)


def _move(s: State, n: Counts, f: int, f2: int, c: int) -> None:
    """Unmap frame ``f``, give its page to ``f2`` and map that; free ``f``."""
    rmap, ptes = list(s.frames[f].rmap), _ptes(s, f)
    s.lru_of(f).remove(f)
    _unmap(s, n, f, c)
    _copy(s, f, f2)
    s.frames[f2].rmap = rmap
    for (k, w), (writable, accessed, dirty) in ptes.items():
        page = s.page(k, w)
        page.present, page.frame, page.marker = True, f2, False
        page.writable, page.accessed, page.dirty = writable, accessed, dirty
    if s.frames[f].owed and s.policy["init_on_free"] == PAID:
        allocation.discharge_all(s, n, c, "reclaim")
        frames.forget_debt(s.frames[f])
    frames.free(s, n, f, c)
    n.bump("pgmigrate_success")
    n.bump("pgpromote_success", frames.is_slow(s, f))


def _ptes(s: State, f: int) -> dict[tuple[int, int], tuple[bool, bool, bool]]:
    """Permission and accessed and dirty bits of the PTEs that map frame ``f``."""
    pages = {(m, v): s.page(m, v) for m, v in s.frames[f].mappings()}
    return {where: (page.writable, page.accessed, page.dirty) for where, page in pages.items()}


def _unmap(s: State, n: Counts, f: int, c: int) -> None:
    """Clear the PTEs of frame ``f``; what the policy does not let wait is flushed."""
    deferred, is_queued = reclaim.clear_ptes(s, n, f, c, s.policy["migrate_flush"] == DEFER)
    if deferred:
        s.G |= s.D
        s.D = set()
    elif is_queued and s.policy["migrate_flush"] != OFF:
        reclaim.flush_now(s, n, c, "reclaim")


def _copy(s: State, f: int, f2: int) -> None:
    """The content of frame ``f`` is copied, and ``f2`` is the home of its page from now on."""
    source, b = s.frames[f], s.frames[f].page
    harvested = s.backings[b].harvested
    frames.make_home(s, f2, b, 0)
    s.frames[f2].content = source.content
    s.backings[b].harvested = harvested
