"""Names that do not matter: renamings of CPUs, pages, file pages and VMAs that leave a machine and its alphabet as they are.

Frames are renamed by :mod:`lufjax.search.keys`. Pages may be renamed only back to front, because a flush range is an interval; and only where
the TLB has room for all of them, because the set of an entry depends on its page.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lufjax import state as st
from lufjax.events import FIRST_PAGE, Op
from lufjax.params import MachineShape
from lufjax.search.alphabet import Alphabet, has_room
from lufjax.search.keys import key_of
from lufjax.state import MachineState

PAGE_OPS = {
    Op.LOAD, Op.STORE, Op.MMAP, Op.MUNMAP, Op.MPROTECT, Op.MADVISE_DONTNEED, Op.MADVISE_FREE, Op.FORK, Op.EXIT, Op.RECLAIM, Op.MIGRATE,
    Op.FAULT_INSTALL, Op.FAULT_FINISH,
}  # fmt: skip
OTHER_OPS = {
    Op.NOP, Op.GATHER_FINISH, Op.RECLAIM_FLUSH, Op.ALLOC_FOREIGN, Op.FREE_FOREIGN, Op.SWITCH, Op.TICK, Op.ALLOC_ATOMIC,
    Op.TAKE_OFF, Op.DISCHARGE,
}  # fmt: skip
FILE_OPS = {Op.FILE_WRITE, Op.REMOTE_WRITE, Op.TRUNCATE}
"""Ops whose fields are known here; an alphabet with others has no renaming but that of frames."""
MOST_NAMES = 6
"""CPUs or file pages whose orders are tried."""
MOST = 24
"""Renamings that are used at most: each costs a key."""


@dataclass(frozen=True)
class Renaming:
    """New number by old number, for CPUs, vpns, file pages and VMAs."""

    cpu: tuple[int, ...]
    vpn: tuple[int, ...]
    file: tuple[int, ...]
    vma: tuple[int, ...]

    @property
    def is_identity(self) -> bool:
        """Whether nothing is renamed."""
        return all(names == tuple(range(len(names))) for names in (self.cpu, self.vpn, self.file, self.vma))


def renamings(alphabet: Alphabet) -> list[Renaming]:
    """The group of renamings under which the start, the VMAs and the set of entries stay what they are; the identity first."""
    shape = alphabet.shape
    forward = tuple(range(shape.num_vpns))
    identity = Renaming(tuple(range(shape.num_cpus)), forward, tuple(range(shape.num_file_pages)), tuple(range(len(alphabet.trace.vmas))))
    ops = {int(op) for rows in alphabet.rows for op in rows[:, 1]}
    if not ops <= PAGE_OPS | FILE_OPS | OTHER_OPS or max(shape.num_cpus, shape.num_file_pages) > MOST_NAMES:
        return [identity]
    turns = has_room(shape) and shape.num_vpns > 1 and not ops & {Op.REMOTE_WRITE, Op.TRUNCATE}
    found = [identity]
    for vpn in [forward, forward[::-1]] if turns else [forward]:
        for cpu, file in itertools.product(*(itertools.permutations(range(n)) for n in (shape.num_cpus, shape.num_file_pages))):
            vma = _vma_names(alphabet, Renaming(cpu, vpn, file, identity.vma))
            renaming = None if vma is None else Renaming(cpu, vpn, file, vma)
            if renaming is not None and not renaming.is_identity and _keeps_start(alphabet, renaming) and _keeps(alphabet, renaming):
                found.append(renaming)
    return found if len(found) <= MOST else found[:1]


def _vma_names(alphabet: Alphabet, r: Renaming) -> tuple[int, ...] | None:
    """The VMA names that the other names imply, or None if there are none: each entry has to have one image but for its VMA ids."""
    trace, vpn = alphabet.trace, np.array(r.vpn)
    names = {int(a): int(b) for a, b in zip(trace.page_vma.ravel(), trace.page_vma[:, vpn].ravel(), strict=True) if a >= 0}
    images: dict[bytes, list[np.ndarray]] = {}
    for rows in alphabet.rows:
        images.setdefault(_without_vmas(rows).tobytes(), []).append(rows)
    for rows in alphabet.rows:
        image = images.get(_without_vmas(renamed_rows(rows, r)).tobytes(), [])
        if len(image) != 1:
            return None
        for ours, theirs in zip(_vmas_of(rows), _vmas_of(image[0]), strict=True):
            if names.setdefault(ours, theirs) != theirs:
                return None
    vma = tuple(names.get(a, a) for a in range(len(trace.vmas)))
    return vma if sorted(vma) == list(range(len(vma))) else None


def _vmas_of(rows: np.ndarray) -> list[int]:
    """VMA ids in event rows."""
    return [int(arg) if op == Op.MPROTECT else int(repeat) % FIRST_PAGE for _, op, _, arg, repeat in rows if op in (Op.MPROTECT, Op.MMAP, Op.FORK)]


def _without_vmas(rows: np.ndarray) -> np.ndarray:
    out = rows.copy()
    out[rows[:, 1] == Op.MPROTECT, 3] = 0
    out[rows[:, 1] == Op.MMAP, 4] //= FIRST_PAGE
    out[rows[:, 1] == Op.FORK, 4] = 0
    return out


def _keeps_start(alphabet: Alphabet, r: Renaming) -> bool:
    trace, vpn = alphabet.trace, np.array(r.vpn)
    vma, file = np.array([*r.vma, -1]), np.array([*r.file, -1])
    page_vma, page_backing = np.empty_like(trace.page_vma), np.empty_like(trace.page_backing)
    page_vma[:, vpn], page_backing[:, vpn] = vma[trace.page_vma], file[trace.page_backing]
    loaded, flags = np.empty_like(trace.loaded), np.empty_like(trace.vmas)
    loaded[list(r.cpu)], flags[list(r.vma)] = trace.loaded, trace.vmas
    return bool(
        (page_vma == trace.page_vma).all() and (page_backing == trace.page_backing).all() and (loaded == trace.loaded).all()
        and (flags == trace.vmas).all() and (r.vpn == tuple(range(len(r.vpn))) or not (trace.page_backing[trace.page_vma >= 0] < 0).any())
    )  # fmt: skip


def renamed_rows(rows: np.ndarray, r: Renaming) -> np.ndarray:
    """Event rows in the new names."""
    out = rows.copy()
    out[:, 0] = np.array(r.cpu)[rows[:, 0]]
    for row, (_, op, vpn, arg, repeat) in zip(out, rows.tolist(), strict=True):
        if op in PAGE_OPS and (op != Op.RECLAIM or arg >= 0):
            row[2] = r.vpn[vpn]
        if (op == Op.MMAP and arg >= 0) or op in FILE_OPS:
            row[3] = r.file[arg]
        if op == Op.MMAP:
            row[4] = r.vma[repeat % FIRST_PAGE] + repeat // FIRST_PAGE * FIRST_PAGE
        if op == Op.MPROTECT:
            row[3] = r.vma[arg]
        if op == Op.FORK:
            row[4] = r.vma[repeat]
    return out


def _keeps(alphabet: Alphabet, r: Renaming) -> bool:
    entries = {rows.tobytes() for rows in alphabet.rows}
    return {renamed_rows(rows, r).tobytes() for rows in alphabet.rows} == entries


def renamed(shape: MachineShape, s: MachineState, r: Renaming) -> MachineState:
    """One machine in the new names (what :func:`lufjax.search.keys.key_of` reads of it)."""
    if r.is_identity:
        return s
    processes, num_files = shape.num_processes, shape.num_file_pages
    pages = tuple(m * shape.num_vpns + v for m in range(processes) for v in r.vpn)
    backings = (*r.file, *range(num_files, shape.num_backings))
    is_reversed = shape.num_vpns > 1 and r.vpn[0] != 0

    def columns(array: Array, changes: dict[int, Callable[[Array], Array]]) -> Array:
        return jnp.stack([changes.get(i, lambda x: x)(array[..., i]) for i in range(array.shape[-1])], axis=-1)

    def tlb(level: Array) -> Array:
        def tag(value: Array) -> Array:
            vpn = value & ((1 << st.TAG_SHIFT) - 1)
            return jnp.where(value < 0, value, value - vpn + _named(vpn, r.vpn))

        level = jnp.concatenate([tag(level[:, :, : st.TAG + 1]), level[:, :, st.TAG + 1 :]], axis=2)
        level = _moved(level, r.cpu, 1)
        return _moved(level, r.vpn, 0) if is_reversed else level

    def backing(value: Array) -> Array:
        return _named(value, backings)

    gather = s.gather
    if is_reversed:
        v = shape.num_vpns
        in_fault = s.cpu[:, st.GATHER_KIND] < 0
        start = jnp.where(in_fault, v - 1 - gather[:, st.VS], v - gather[:, st.VE])
        flip = {st.VS: start, st.VE: v - gather[:, st.VS], st.CS: v - gather[:, st.CE], st.CE: v - gather[:, st.CS]}
        gather = jnp.stack([flip.get(i, gather[:, i]) for i in range(gather.shape[1])], axis=-1)

    def promise(value: Array) -> Array:
        return jnp.where((value & 1) > 0, backing(value >> 2) * 4 + (value & 3), value)

    page = columns(s.page, {st.VMA: lambda x: _named(x, r.vma), st.BACKING: backing, st.PROMISE: promise})
    return s._replace(
        tlb1=tlb(s.tlb1), tlb2=tlb(s.tlb2), cpu=_moved(s.cpu, r.cpu), cpu_mm=_moved(s.cpu_mm, r.cpu), cpumask=_bits_moved(s.cpumask, r.cpu),
        sweep=_bits_moved(s.sweep, r.cpu), gather=_moved(gather, r.cpu), held=_moved(s.held, r.cpu),
        pte=_moved(s.pte, pages), page=_moved(page, pages), vma_flag=_moved(s.vma_flag, r.vma),
        frame=columns(s.frame, {st.CONTENT: backing, st.PAGE_OF: backing}), owed=_bits_moved(s.owed, r.cpu),
        rmap=_named(s.rmap, pages), backing=_moved(s.backing, backings), parent=backing(s.parent), origin=backing(s.origin),
        pcp_ring=_moved(s.pcp_ring, r.cpu),
        pcp=_moved(s.pcp, r.cpu), taken=_moved(s.taken, r.cpu), taken_owed=_bits_moved(_moved(s.taken_owed, r.cpu), r.cpu),
        mm_owed=_bits_moved(s.mm_owed, r.cpu), file_owed=_bits_moved(_moved(s.file_owed, r.file), r.cpu), file_clock=_moved(s.file_clock, r.file),
        masks=_bits_moved(s.masks, r.cpu),
    )  # fmt: skip


def key_in_names(shape: MachineShape, names: Renaming, named: dict[str, Any], s: MachineState) -> Array:
    """The key of one machine in other names. ``named``: keywords of :func:`lufjax.search.keys.key_of`."""
    return key_of(shape, renamed(shape, s, names), **named)


def _moved(array: Array, names: tuple[int, ...], axis: int = 0) -> Array:
    """Rows in the order of their new names."""
    if names == tuple(range(len(names))):
        return array
    old = np.argsort(names)
    index: list[slice | int] = [slice(None)] * array.ndim
    rows = []
    for i in old:
        index[axis] = int(i)
        rows.append(array[tuple(index)])
    return jnp.stack(rows, axis=axis)


def _named(values: Array, names: tuple[int, ...]) -> Array:
    """Values in their new names; negative ones stand for nothing."""
    for old, new in enumerate(names):
        if old != new:
            values = jnp.where(values == old, new + (1 << 16), values)
    return jnp.where(values >= 1 << 16, values - (1 << 16), values)


def _bits_moved(words: Array, names: tuple[int, ...]) -> Array:
    """CPU sets (one word) in the new names."""
    word = words.astype(jnp.int32)
    return sum((((word >> old) & 1) << new for old, new in enumerate(names)), jnp.zeros_like(word)).astype(words.dtype)
