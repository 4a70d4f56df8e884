"""Where frames are: the inactive list, the per-CPU lists and the global free list, the reverse map, the pool of anonymous backings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.events import VmaFlag

if TYPE_CHECKING:
    from lufjax.phases.draft import Draft

MOVE = 16
"""Frames that one phase moves between a per-CPU list and the global list."""


def lru_append(m: Draft, frame: Array, enabled: Array) -> None:
    """Make a frame the newest of the inactive list of its tier."""
    end = lru_end(m, frame)
    _relink(m, _append_words(frame, m.get("link", end, st.PREV), end), [enabled] * 4)


def lru_end(m: Draft, frame: Array) -> Array:
    """The row of ``link`` that is the end of the list of a frame's tier."""
    return m.shape.num_frames + (frame >= m.p.fast_frames).astype(jnp.int32)


def lru_take(m: Draft, frame: Array, enabled: Array, *, rotates: Array) -> Array:
    """Take a frame off its list or, where ``rotates`` (then it is the oldest), make it the newest. Returns the oldest afterwards."""
    end = lru_end(m, frame)
    row, ends = m.get("link", frame), m.get("link", end)
    is_alone = (row[st.PREV] == end) & (row[st.NEXT] == end)
    moves = enabled & ~(rotates & is_alone)
    words = [(row[st.PREV], st.NEXT, row[st.NEXT]), (row[st.NEXT], st.PREV, row[st.PREV])]
    _relink(m, words + _append_words(frame, ends[st.PREV], end), [moves] * 2 + [moves & rotates] * 4)
    return jnp.where(ends[st.NEXT] == frame, jnp.where(rotates & is_alone, frame, row[st.NEXT]), ends[st.NEXT])


def _append_words(frame: Array, newest: Array, end: Array) -> list[tuple[Array, int, Array]]:
    return [(newest, st.NEXT, frame), (frame, st.PREV, newest), (frame, st.NEXT, end), (end, st.PREV, frame)]


def _relink(m: Draft, words: list[tuple[Array, int, Array]], enabled: list[Array]) -> None:
    """Write all words of the list at once; no two of the enabled ones are the same word."""
    rows = jnp.stack([row for row, _, _ in words])
    columns = jnp.array([column for _, column, _ in words], jnp.int32)
    m.put("link", (rows, columns), jnp.stack([value for _, _, value in words]), jnp.stack(enabled))


def free_frame(m: Draft, frame: Array, cpu: Array, enabled: Array, *, has_debt: Array) -> tuple[Array, Array]:
    """Free a frame to the per-CPU list of ``cpu``. Returns the length of that list, and whether it is above its high mark."""
    head, count = m.get("pcp", cpu)
    m.put("frame", (frame, st.STATE), st.FREE, enabled)
    cleared = enabled & (m.rules.init_on_free != 0)
    m.put("frame", (frame, slice(st.CONTENT, st.VERSION + 1)), jnp.array([st.NOTHING, 0], jnp.int32), cleared)
    m.put("frame", (frame, st.HANDED), m.now, cleared)
    m.put("frame", (frame, st.FRAME_TAG), m.r.ugen, enabled & has_debt)
    m.bump("nr_pending", enabled & has_debt)
    at_tail = has_debt & (m.rules.pending_to == 1)
    new_head = jnp.where(at_tail, head, head - 1)
    slot = jnp.where(at_tail, head + count, head - 1) & (st.ring_size(m.shape.pcp_slots) - 1)
    m.put("pcp_ring", (cpu, slot), frame, enabled)
    m.put("pcp", cpu, jnp.stack([new_head, count + 1]), enabled)
    return count + 1, enabled & (count + 1 > m.p.pcp_high)


def move_frames(m: Draft, cpu: Array, left: Array, refills: Array, drains: Array) -> Array:
    """Move up to MOVE of ``left`` frames between the per-CPU list of ``cpu`` and the head of the free list. Returns what is left.

    A refill appends to the tail of the per-CPU list; a drain takes from there, so the oldest go first. Where tags change on the way,
    frames move one at a time.
    """
    step = jnp.arange(MOVE)
    rules = m.rules
    changes_tags = m.split((rules.buddy_tag == 1) | (rules.buddy_merge == 1) | (rules.refill_tag == 1))
    moved = jnp.where(refills | drains, jnp.minimum(left, jnp.where(changes_tags, 1, MOVE)), 0)
    (head, count), free_head = m.get("pcp", cpu), m.r.free_head
    cpus = jnp.full((MOVE,), cpu)
    pcp_place = (jnp.where(refills, head + count + step, head + count - 1 - step)) & (st.ring_size(m.shape.pcp_slots) - 1)
    free_place = (jnp.where(refills, free_head + step, free_head - 1 - step)) & (st.ring_size(m.shape.num_frames) - 1)
    from_free, from_pcp = m.get("free_ring", free_place), m.get("pcp_ring", cpus, pcp_place)
    m.put("pcp_ring", (cpus, pcp_place), from_free, refills & (step < moved))
    m.put("free_ring", (free_place,), from_pcp, drains & (step < moved))
    _move_tag(m, jnp.where(refills, from_free[0], from_pcp[0]), refills & changes_tags, drains & changes_tags)
    signed = jnp.where(refills, moved, -moved)
    m.put("pcp", (cpu, 1), count + signed, refills | drains)
    m.bump("free_head", refills | drains, signed)
    m.bump("free_count", refills | drains, -signed)
    return left - moved


def _move_tag(m: Draft, frame: Array, refills: Array, drains: Array) -> None:
    """The tag of a frame that moves, and of a buddy that it merges with or is split from."""
    rules, buddy = m.rules, frame ^ 1
    tag, there, is_free = m.get("frame", frame, st.FRAME_TAG), m.get("frame", buddy, st.FRAME_TAG), m.get("frame", buddy, st.ON_FREE) == 1
    is_block = (rules.buddy_merge == 1) & is_free & (buddy < m.shape.num_frames)
    drained = jnp.where(rules.buddy_tag == 1, 0, tag)
    drained = jnp.where(is_block, latest(m, drained, there), drained)
    takes = refills & (rules.refill_tag == 1)
    m.put_regs(takes, rf_tag=latest(m, m.r.rf_tag, tag))
    left = jnp.where(drains, drained, 0)
    m.put("frame", (frame, st.FRAME_TAG), left, drains | takes)
    m.put("frame", (buddy, st.FRAME_TAG), left, (drains | takes) & is_block)
    m.put("frame", (frame, st.ON_FREE), drains, drains | refills)


def latest(m: Draft, a: Array, b: Array) -> Array:
    """The newer of two tags in the signed comparison of ``gen_bits`` bits; 0 is none."""
    a_is_older = ((a - b) >> (m.rules.gen_bits - 1)) & 1
    return jnp.where((b != 0) & ((a == 0) | (a_is_older == 1)), b, a)


def in_batch(m: Draft, frame: Array) -> Array:
    """Whether an entry of the unmap batch names a frame, taken back or not."""
    return ((m.get("batch") >> 1 == frame) & (jnp.arange(m.shape.batch_slots) < m.r.batch_count)).any()


def forget_debt(m: Draft, frame: Array, enabled: Array) -> None:
    """A frame owes nothing any more. Its tag is left as it is."""
    m.put("owed", frame, jnp.zeros((m.words,), jnp.uint32), enabled)
    m.put("frame", (frame, slice(st.OWNER, st.CLOCK + 1)), jnp.array([-1, 0, 0], jnp.int32), enabled)


def join_owner(m: Draft, owner: Array, mm: Array) -> Array:
    """Owner of a frame's debt once process ``mm`` owes for it too: ``mm`` if nobody else did, else MANY."""
    return jnp.where((owner < 0) | (owner == mm), mm, m.shape.num_processes)


def rmap_add(m: Draft, frame: Array, pid: Array, enabled: Array) -> Array:
    """Note that PTE ``pid`` maps ``frame``, in the lowest empty slot. Returns whether there was none (fault RMAP_FULL)."""
    is_empty = m.get("rmap", frame) < 0
    m.put("rmap", (frame, jnp.argmax(is_empty)), pid, enabled & is_empty.any())
    return enabled & ~is_empty.any()


def rmap_remove(m: Draft, frame: Array, pid: Array, enabled: Array) -> None:
    """Forget that PTE ``pid`` maps ``frame``."""
    slots = m.get("rmap", frame)
    m.put("rmap", (frame, jnp.argmax(slots == pid)), -1, enabled)


def take_anon(m: Draft, parent: Array, enabled: Array, *, home: Array | int = -4) -> tuple[Array, Array]:
    """Take a fresh anonymous backing, a new version of whatever used the id before. Returns id and version; the caller checks the pool.

    Args:
        home: packed home, none by default.
    """
    m.bump("anon_top", enabled, -1)
    backing = m.get("anon_pool", m.r.anon_top)
    truth = m.get("backing", backing, st.TRUTH) + 1
    m.put("backing", backing, jnp.stack([truth, truth, jnp.broadcast_to(jnp.asarray(home, jnp.int32), truth.shape)]), enabled)
    files, index = m.shape.num_file_pages, backing - m.shape.num_file_pages
    m.put("parent", index, parent, enabled)
    m.put("origin", index, jnp.where(parent >= files, m.get("origin", parent - files), parent), enabled)
    return backing, truth


def release_anon(m: Draft, backing: Array, enabled: Array) -> None:
    """A page does not refer to an anonymous backing any more. The last one gives it back; it has no home any more: its page was zapped."""
    index = backing - m.shape.num_file_pages
    is_shared = m.get("shared", index) > 0
    m.add("shared", index, -1, enabled & is_shared)
    m.put("anon_pool", m.r.anon_top, backing, enabled & ~is_shared)
    m.bump("anon_top", enabled & ~is_shared)


def has_sharers(m: Draft, backing: Array) -> Array:
    """Whether ``backing`` is anonymous and more than one page has it."""
    index = backing - m.shape.num_file_pages
    return (index >= 0) & (m.get("sharers", index) > 0)


def is_copy_on_write(m: Draft, flags: Array, backing: Array) -> Array:
    """Whether a page with these VMA flags may not be written in place, because others have its anonymous ``backing`` too."""
    return has_sharers(m, backing) & ((flags & VmaFlag.SHARED) == 0)


def home_of(m: Draft, backing: Array) -> Array:
    """The frame that is the home of ``backing``, -1 if none."""
    return m.get("backing", backing, st.HOME) >> 2
