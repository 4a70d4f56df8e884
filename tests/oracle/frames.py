"""Frames and the PTEs that map them (docs/MODEL.md sections 2, 5 and 7): free, map, clear, owe."""

from __future__ import annotations

from . import flush
from .counting import Counts
from .state import BATCH, FREE, HELD, NOTHING, QUARANTINE, USED, EngineFault, Frame, State

FLUSHED = 2


def free(s: State, n: Counts, f: int, c: int) -> None:
    """Give frame ``f`` back to the per-CPU list of ``c``, or to the list of the slow tier."""
    frame, pcp = s.frames[f], s.slow if is_slow(s, f) else s.cpus[c].pcp
    frame.state = FREE
    if s.policy["init_on_free"]:
        frame.content, frame.handed = NOTHING, s.now
    if frame.owed:
        frame.tag = s.ugen
        n.bump("nr_pending")
    if frame.owed and s.policy["pending_to"]:
        pcp.append(f)
    else:
        pcp.insert(0, f)
    if not is_slow(s, f) and len(pcp) > s.params["pcp_high"]:
        for _ in range(min(s.params["pcp_batch"], len(pcp))):
            _to_free(s, pcp.pop())


def is_slow(s: State, f: int) -> bool:
    """Whether frame ``f`` is of the slow tier."""
    return f >= s.params["fast_frames"]


def _to_free(s: State, f: int) -> None:
    """A frame goes from a per-CPU list to the free list, where it may merge with its buddy."""
    frame = s.frames[f]
    if s.policy["buddy_tag"]:
        frame.tag = 0
    if s.policy["buddy_merge"] and f ^ 1 in s.free:
        buddy = s.frames[f ^ 1]
        frame.tag = buddy.tag = latest(s, frame.tag, buddy.tag)
    s.free.insert(0, f)


def is_older(s: State, a: int, b: int) -> bool:
    """Whether generation ``a`` is older than ``b`` in the signed comparison of ``gen_bits`` bits."""
    size = 2 ** s.policy["gen_bits"]
    return (a - b) % size >= size // 2


def latest(s: State, a: int, b: int) -> int:
    """The newer of two tags; 0 is none."""
    if not a or not b:
        return a or b
    return b if is_older(s, a, b) else a


def put(s: State, n: Counts, f: int, c: int) -> None:
    """A holder of frame ``f`` lets go of it; the last one frees it if its page is gone."""
    frame = s.frames[f]
    frame.refs -= 1
    if frame.refs == 0 and frame.state in (HELD, QUARANTINE):
        free(s, n, f, c)


def evict(s: State, n: Counts, f: int, c: int) -> None:
    """Frame ``f`` stops being the home of its page; it is free once nobody holds it."""
    frame = s.frames[f]
    s.lru_of(f).remove(f)
    s.backings[frame.page].home = None
    frame.state = HELD
    if frame.refs == 0:
        free(s, n, f, c)


def make_home(s: State, f: int, b: int, version: int) -> None:
    """A frame just handed out becomes the home of backing ``b`` with this version of its content, newest on the list."""
    frame, backing = s.frames[f], s.backings[b]
    frame.state, frame.page, frame.content = USED, b, (b, version)
    backing.home, backing.harvested = f, False
    s.lru_of(f).append(f)


def forget_debt(frame: Frame) -> None:
    """Nobody owes anything for the frame any more, as far as it knows."""
    frame.owed, frame.owner = set(), None
    frame.since = frame.tag_clock = 0


def take_back(s: State, n: Counts, c: int, f: int) -> None:
    """A frame that waits in the batch is used again by CPU ``c``; ``kept_debt`` says what becomes of its debt."""
    frame = s.frames[f]
    if frame.state == BATCH:
        if frame.owed and s.policy["kept_debt"]:
            if s.policy["kept_debt"] == FLUSHED:
                flush.flush_batch(s, n, c, frame.owed, "fault")
            forget_debt(frame)
        frame.state = USED
        s.lru_of(f).append(f)
        n.bump("pgrescued")


def clear_pte(s: State, m: int, v: int) -> None:
    """Empty a present PTE and its rmap slot; its marker is not touched (a present PTE has none)."""
    pte = s.page(m, v)
    rmap = s.frames[pte.frame].rmap
    rmap[rmap.index((m, v))] = None
    pte.present = pte.writable = pte.accessed = pte.dirty = False
    pte.frame = None
    pte.changed = s.now


def set_pte(s: State, m: int, v: int, f: int, writable: bool) -> None:
    """Map page (m, v) to frame ``f``, accessed, and dirty if writable; the marker goes."""
    rmap, pte = s.frames[f].rmap, s.page(m, v)
    if None not in rmap:
        raise EngineFault("RMAP_FULL")
    rmap[rmap.index(None)] = (m, v)
    pte.present = pte.accessed = True
    pte.writable = pte.dirty = writable
    pte.marker = False
    pte.frame = f


def add_debt(s: State, f: int, m: int) -> None:
    """The CPUs of process ``m`` owe a flush for frame ``f``."""
    frame, many = s.frames[f], len(s.processes)
    frame.owed |= s.processes[m].cpumask
    frame.owner = m if frame.owner in (None, m) else many
    frame.since, frame.tag_clock = s.now, s.unmap_clock
