"""The pool of anonymous ids (docs/MODEL.md section 7)."""

from __future__ import annotations

from .state import EngineFault, State


def fresh(s: State, parent: int | None) -> int:
    """Take an id from the pool; a new page, whose content is on no store."""
    if not s.anon_pool:
        raise EngineFault("ANON_POOL_EMPTY")
    b = s.anon_pool.pop()
    backing = s.backings[b]
    backing.truth += 1
    backing.stored = backing.truth
    backing.on_store = backing.harvested = False
    backing.home, backing.parent = None, parent
    backing.origin = s.backings[parent].origin if parent is not None and s.is_anon(parent) else parent
    return b


def release(s: State, b: int) -> None:
    """A page does not refer to an id any more; the last one gives it back to the pool."""
    assert b not in s.anon_pool
    if s.backings[b].shared > 0:
        s.backings[b].shared -= 1
        return
    s.backings[b].home = None
    s.anon_pool.append(b)
