"""The part of one machine's state that its future depends on, as a row of small integers: states with equal keys behave alike from then on.

What is projected away, and why that is sound: docs/EXPLORE.md. Written for one machine with JAX; the operations are those that
:mod:`lufjax.backends.lowering` translates, tables in memory among them. :mod:`lufjax.search.symmetry` renames CPUs and pages before, frames
are renamed here.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from lufjax import state as st
from lufjax.backends.primitives import first_p, pick_p
from lufjax.params import MachineShape
from lufjax.search.alphabet import has_room
from lufjax.state import MachineState

SMALLEST, LARGEST = -3, 252
"""Values of a key: what a byte holds above the smallest."""
IN_BYTE = 7
"""CPUs of a set that are one value of a key."""


def key_of(shape: MachineShape, s: MachineState, *, rename: bool, whole_tags: bool, fast_frames: int) -> Array:
    """``int32[width]`` of one machine between two events.

    Args:
        rename: number frames (of each tier apart) and anonymous pages by where they are (lists first, in order), and forget what a frame holds
            that nobody can read, so that states that differ in these only are one.
        whole_tags: keep generations as they are, because their numbers may wrap; else only whether a tag is 0, paid, or open.
        fast_frames: frames below are the fast tier.
    """
    s = _with_anon_renamed(shape, _without_unreadable(shape, s)) if rename else s
    places = _frame_lists(shape, s)
    new = _names(shape.num_frames, places, fast_frames) if rename else jnp.arange(shape.num_frames)
    old = first_p.bind(new, count=shape.num_frames)

    def frames(values: Array, empty: Array | bool = False) -> Array:
        return jnp.where(jnp.asarray(empty) | (values < 0), -1, _pick(new, values))

    def rows(values: Array) -> Array:
        """Rows of frames in the order of their new numbers."""
        return _pick(values, old, inside=True) if rename else values

    kind = s.cpu[:, st.GATHER_KIND]
    in_fault, has_range = kind < 0, _has_range(s)
    has_cleared = has_range & (s.gather[:, st.CLEARED] > 0)
    parts = [
        s.cpu[:, st.LOADED], s.cpu[:, st.LAZY], s.cpu[:, st.GATHER_KIND],
        jnp.where(has_range[:, None], s.gather[:, : st.CS], 0), jnp.where(in_fault, s.gather[:, st.VS], 0),
        jnp.where(has_cleared[:, None], s.gather[:, st.CS : st.CE + 1], 0),
        s.mm[:, st.GATHERS], s.mm[:, st.EXCL], s.mm[:, st.VA_DEBT], s.mm[:, st.PENDING] != s.mm[:, st.FLUSHED],
        jnp.minimum(s.mm[None, :, st.TLB_GEN] - s.cpu_mm[:, :, st.GEN_DONE], 2),
        _sets(shape, s.cpumask), _sets(shape, s.sweep), _scoped(shape, s, s.mm_owed, s.mm[:, st.DEBT_CLOCK]),
        _scoped(shape, s, s.file_owed, s.file_clock), *_taken(shape, s, whole=whole_tags),
        s.pte & ((1 << st.PTE_SHIFT) - 1), frames(s.pte >> st.PTE_SHIFT, (s.pte & st.PTE_PRESENT) == 0),
        s.page[:, st.VMA], s.page[:, st.BACKING], s.page[:, st.PROMISE], s.vma_flag,
        rows(s.frame[:, st.STATE]), rows(s.frame[:, st.CONTENT]), rows(s.frame[:, st.PAGE_OF]), rows(s.frame[:, st.REFS]),
        rows(_sets(shape, s.owed)), rows(s.rmap), rows(_debts(shape, s)), rows(_tags(s, s.frame[:, st.FRAME_TAG], whole=whole_tags)),
        s.cpu[:, st.COVERED] == st.scalar(s, "unmap_clock"), st.scalar(s, "ugen") if whole_tags else jnp.int32(0),
        frames(s.backing[:, st.HOME] >> 2), s.backing[:, st.HOME] & 3, s.parent, s.origin,
        *_versions(shape, s, rows), *_tlb(shape, s, frames), _sets(shape, s.masks[:3]), st.scalar(s, "need_flush"),
        *(frames(place) for place in places), jnp.where(jnp.arange(len(s.batch)) < st.scalar(s, "batch_count"), s.batch & 1, 0),
        jnp.where(jnp.arange(len(s.anon_pool)) < st.scalar(s, "anon_top"), s.anon_pool, -1),
    ]  # fmt: skip
    return jnp.concatenate([jnp.ravel(jnp.asarray(part).astype(jnp.int32)) for part in parts])


def _has_range(s: MachineState) -> Array:
    """``bool[C]``: whether a mapping call is open there."""
    return s.cpu[:, st.GATHER_KIND] > 0


def _frame_lists(shape: MachineShape, s: MachineState) -> list[Array]:
    """The lists of frames, each in its order, -1 beyond its end."""
    c = range(shape.num_cpus)
    return [
        _ring(s.free_ring, st.scalar(s, "free_head"), st.scalar(s, "free_count"), shape.num_frames),
        _ring(s.slow_ring, st.scalar(s, "slow_head"), st.scalar(s, "slow_count"), shape.num_frames),
        *(_ring(s.pcp_ring[i], s.pcp[i, 0], s.pcp[i, 1], shape.pcp_slots) for i in c),
        jnp.where(jnp.arange(len(s.batch)) < st.scalar(s, "batch_count"), s.batch >> 1, -1),
        _inactive(shape, s, shape.num_frames),
        _inactive(shape, s, shape.num_frames + 1),
        jnp.where(jnp.arange(len(s.foreign)) < st.scalar(s, "foreign_count"), s.foreign, -1),
        *(jnp.where((jnp.arange(s.held.shape[1]) < s.gather[i, st.NUM_HELD]) & _has_range(s)[i], s.held[i], -1) for i in c),
        s.taken[:, 0],
    ]


def _names(count: int, places: list[Array], split: int = 0) -> Array:
    """New number of each of ``count`` things: by its first place in the lists, those on none last; those below ``split`` keep numbers below it."""
    slots = jnp.concatenate(places)
    numbers = jnp.arange(count)
    first = first_p.bind(slots, count=count)
    first = jnp.where(first < len(slots), first, len(slots) + numbers) + jnp.where(numbers < split, 0, len(slots) + count)
    return jnp.sum((first[None, :] < first[:, None]).astype(jnp.int32), axis=1)


def _without_unreadable(shape: MachineShape, s: MachineState) -> MachineState:
    """Contents forgotten of frames that are free or on the way to it and that no live TLB entry maps: they are overwritten before any use."""
    mapped = _maps(shape, s, s.tlb1) if has_room(shape) else _maps(shape, s, s.tlb1) | _maps(shape, s, s.tlb2)
    state = s.frame[:, st.STATE]
    is_dead = ~mapped & (state != st.USED_STATE) & (state != st.IN_BATCH)
    forgotten = {st.CONTENT: jnp.where(is_dead, st.NOTHING, s.frame[:, st.CONTENT]), st.VERSION: jnp.where(is_dead, 0, s.frame[:, st.VERSION])}
    forgotten[st.PAGE_OF] = jnp.where((state == st.USED_STATE) | (state == st.IN_BATCH), s.frame[:, st.PAGE_OF], -1)
    return s._replace(frame=jnp.stack([forgotten[i] if i in forgotten else s.frame[:, i] for i in range(s.frame.shape[1])], axis=1))


def _maps(shape: MachineShape, s: MachineState, level: Array) -> Array:
    """``bool[F]``: which frames a level of TLBs maps."""
    frame = jnp.where(_live(shape, s, level), level[:, :, st.DATA] >> 2, -1)
    return jnp.stack([(frame == f).any() for f in range(shape.num_frames)])


def _live(shape: MachineShape, s: MachineState, level: Array) -> Array:
    tag = level[:, :, st.TAG]
    process = jnp.maximum(tag, 0) >> st.TAG_SHIFT
    stamp = sum(jnp.where(process == m, s.cpu_mm[:, m, st.FLUSHED_AT][None, :, None], 0) for m in range(shape.num_processes))
    return (tag >= 0) & (level[:, :, st.FILLED] >= stamp)


def _with_anon_renamed(shape: MachineShape, s: MachineState) -> MachineState:
    """Anonymous pages numbered by the pages that refer to them, then by their place in the pool, its top first."""
    files, count = shape.num_file_pages, shape.num_anon
    promised = jnp.where((s.page[:, st.PROMISE] & 1) > 0, s.page[:, st.PROMISE] >> 2, -1)
    free = jnp.where(jnp.arange(count) < st.scalar(s, "anon_top"), s.anon_pool, -1)
    new = _names(count, [s.page[:, st.BACKING] - files, promised - files, jnp.stack([free[i] for i in range(count - 1, -1, -1)]) - files])

    old = first_p.bind(new, count=count)

    def named(values: Array) -> Array:
        return jnp.where(values >= files, files + _pick(new, values - files), values)

    def rows(values: Array) -> Array:
        return _pick(values, old, inside=True)

    promise = s.page[:, st.PROMISE]
    columns = {st.BACKING: named(s.page[:, st.BACKING]), st.PROMISE: jnp.where((promise & 1) > 0, named(promise >> 2) * 4 + (promise & 3), promise)}
    of_frame = {column: named(s.frame[:, column]) for column in (st.CONTENT, st.PAGE_OF)}
    return s._replace(
        page=jnp.stack([columns[i] if i in columns else s.page[:, i] for i in range(s.page.shape[1])], axis=1),
        frame=jnp.stack([of_frame[i] if i in of_frame else s.frame[:, i] for i in range(s.frame.shape[1])], axis=1),
        backing=jnp.concatenate([s.backing[:files], rows(s.backing[files:])]), parent=rows(named(s.parent)), origin=rows(s.origin),
        anon_pool=named(s.anon_pool),
    )  # fmt: skip


def _pick(table: Array, index: Array, *, inside: bool = False) -> Array:
    """``table[index]``; 0 for an index outside, of which there must be none with ``inside``."""
    return pick_p.bind(table.astype(jnp.int32), index, inside=inside)


def _ring(ring: Array, head: Array, count: Array, length: int) -> Array:
    """A list from its head."""
    size = ring.shape[0]
    steps = jnp.arange(min(size, length))
    return jnp.where(steps < count, _pick(ring, (head + steps) & (size - 1)), -1)


def _inactive(shape: MachineShape, s: MachineState, end: int) -> Array:
    """An inactive list, oldest first; ``end`` is its row of ``link``."""
    found = []
    at = s.link[end, st.NEXT]
    for _ in range(shape.num_frames):
        found.append(jnp.where(at == end, -1, at))
        at = _pick(s.link[:, st.NEXT], at)
    return jnp.stack(found)


def _bits(shape: MachineShape, words: Array) -> Array:
    """CPU sets as one number for each CPU; sets of up to 32 CPUs."""
    word = words[..., 0].astype(jnp.int32)
    return jnp.stack([(word >> i) & 1 for i in range(shape.num_cpus)], axis=-1)


def _groups(shape: MachineShape) -> list[range]:
    """The CPUs of a set that are one value each."""
    return [range(first, min(first + IN_BYTE, shape.num_cpus)) for first in range(0, shape.num_cpus, IN_BYTE)]


def _sets(shape: MachineShape, words: Array) -> Array:
    """CPU sets as one number for each group of CPUs; sets of up to 32 CPUs."""
    word = words[..., 0].astype(jnp.int32)
    return jnp.stack([(word >> group[0]) & ((1 << len(group)) - 1) for group in _groups(shape)], axis=-1)


def _set_of(shape: MachineShape, flags: Array) -> Array:
    """Truth values of each CPU, ``bool[..., C]``, as :func:`_sets`."""
    values = flags.astype(jnp.int32)
    return jnp.stack([sum((values[..., i] << (i - group[0]) for i in group[1:]), values[..., group[0]]) for group in _groups(shape)], axis=-1)


def _debts(shape: MachineShape, s: MachineState) -> Array:
    """Of each frame with a debt: its owner, and which CPUs have been covered since."""
    has_debt = jnp.max(s.owed.astype(jnp.int32) & 0x7FFFFFFF, axis=1) != 0
    covered = s.cpu[None, :, st.COVERED] >= s.frame[:, st.CLOCK][:, None]
    per_frame = jnp.concatenate([s.frame[:, st.OWNER][:, None], _set_of(shape, covered)], axis=1)
    return jnp.where(has_debt[:, None], per_frame, -1)


def _scoped(shape: MachineShape, s: MachineState, owed: Array, clock: Array) -> Array:
    """Of the debt of each mm or file: the CPUs in it, and those covered since."""
    covered = (s.cpu[None, :, st.COVERED] >= clock[:, None]).astype(jnp.int32)
    return _bits(shape, owed) * (1 + covered)


def _taken(shape: MachineShape, s: MachineState, *, whole: bool) -> list[Array]:
    """Of each CPU: the frame that it has taken off and not handed out, and what it owes for it."""
    is_some = s.taken[:, 0] >= 0
    covered = (s.cpu[None, :, st.COVERED] >= s.taken[:, 4][:, None]).astype(jnp.int32)
    owes = _bits(shape, s.taken_owed) * (1 + covered)
    per_cpu = jnp.concatenate([_tags(s, s.taken[:, 1], whole=whole)[:, None], s.taken[:, 2][:, None], owes], axis=1)
    return [jnp.where(is_some[:, None], per_cpu, 0)]


def _tags(s: MachineState, tag: Array, *, whole: bool) -> Array:
    """Tags, or 0 for none, 1 for one that is paid, 2 for that of the open generation."""
    return tag if whole else (tag > 0).astype(jnp.int32) + (tag == st.scalar(s, "ugen")).astype(jnp.int32)


def _versions(shape: MachineShape, s: MachineState, rows: Any) -> list[Array]:
    """Truth, stored version and the versions that frames hold, within each backing: how many others are older."""
    truth, stored = s.backing[:, st.TRUTH], s.backing[:, st.STORED]
    of_backing = s.frame[None, :, st.CONTENT] == jnp.arange(shape.num_backings)[:, None]
    version = s.frame[None, :, st.VERSION]

    def older(than: Array) -> Array:
        return (
            (truth < than).astype(jnp.int32)
            + (stored < than).astype(jnp.int32)
            + jnp.sum((of_backing & (version < than[:, None])).astype(jnp.int32), axis=1)
        )

    content, held = s.frame[:, st.CONTENT], s.frame[:, st.VERSION]
    older_frames = (content[None, :] == content[:, None]) & (held[None, :] < held[:, None])
    frame_older = (
        (_pick(truth, content) < held).astype(jnp.int32)
        + (_pick(stored, content) < held).astype(jnp.int32)
        + jnp.sum(older_frames.astype(jnp.int32), axis=1)
    )
    return [older(truth), older(stored), rows(jnp.where(content >= 0, frame_older, 0))]


def _tlb(shape: MachineShape, s: MachineState, frames: Any) -> list[Array]:
    """Live entries: what they hold, and whether their frame was handed out or their promise advanced since they were filled."""
    if has_room(shape):
        return _entries(shape, s, s.tlb1, frames, by_page=True)
    return [*_entries(shape, s, s.tlb1, frames, by_page=False), *_entries(shape, s, s.tlb2, frames, by_page=False)]


def _entries(shape: MachineShape, s: MachineState, level: Array, frames: Any, *, by_page: bool) -> list[Array]:
    """Columns ``[sets, C]`` for each process, whatever the way, or ``[sets, C, ways]`` with what a victim is chosen by."""
    tag, data, filled, used = (level[:, :, column] for column in range(4))
    process, vpn = jnp.maximum(tag, 0) >> st.TAG_SHIFT, jnp.maximum(tag, 0) & ((1 << st.TAG_SHIFT) - 1)
    live = _live(shape, s, level)
    handed = _pick(s.frame[:, st.HANDED], data >> 2)
    epoch = _pick(s.page[:, st.EPOCH], process * shape.num_vpns + vpn)
    columns = [frames(data >> 2), (data & 3) + 4 * (handed > filled).astype(jnp.int32) + 8 * (epoch > filled).astype(jnp.int32)]
    if by_page:
        own = [live & (process == m) for m in range(shape.num_processes)]
        return [jnp.sum(jnp.where(mine, column + 1, 0), axis=-1) for mine in own for column in columns]
    older = jnp.sum(((used[..., None, :] < used[..., :, None]) & live[..., None, :]).astype(jnp.int32), axis=-1)
    return [jnp.where(live, column, -1) for column in [process, vpn, *columns, older]]
