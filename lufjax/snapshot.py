"""The whole state of one machine as plain lists and integers: what scenarios print and tests compare. Nothing is -1."""

from __future__ import annotations

from typing import Any

import numpy as np

from lufjax import state as st
from lufjax.params import MachineShape, TlbGeometry


def snapshot(shape: MachineShape, s: st.MachineState) -> dict[str, Any]:
    """Read a state on the host.

    Returns:
        Lists indexed by cpu, process, vpn, frame or backing; CPU sets as integers; lists of frames in order (``free``, ``slow`` and ``pcp`` from the
        head, ``lru`` and ``lru_slow`` from the oldest). ``pages``: present, writable, accessed, dirty, marker, frame, vma, backing, promise
        mapped, writable, backing, epoch, changed. ``frames``: state, handed, content backing and version, rmap slots, refs, owed, tag, owner, since,
        tag_clock. ``backings``: truth, stored, on_store, home, harvested, parent, origin, shared, sharers.
    """
    cpu, mm, scalars = s.cpu, s.mm, {name: int(st.scalar(s, name)) for name in st.BANK_OF}
    masks = dict(zip(st.MASKS, s.masks, strict=True))
    ring = s.free_ring[(scalars["free_head"] + np.arange(scalars["free_count"])) & (len(s.free_ring) - 1)]
    slow = s.slow_ring[(scalars["slow_head"] + np.arange(scalars["slow_count"])) & (len(s.slow_ring) - 1)]
    return {
        "loaded": cpu[:, st.LOADED].tolist(), "lazy": cpu[:, st.LAZY].tolist(), "ticks": cpu[:, st.TICKS].tolist(),
        "tlb1": _tlb(s.tlb1, s.cpu_mm, shape.l1), "tlb2": _tlb(s.tlb2, s.cpu_mm, shape.l2),
        "gather": [_gather(s, c) for c in range(shape.num_cpus)], "fault": [_fault(s, c) for c in range(shape.num_cpus)],
        "taken": [_taken(s, c) for c in range(shape.num_cpus)], "pcp": [_pcp(s, c) for c in range(shape.num_cpus)],
        "free": ring.tolist(), "slow": slow.tolist(), "lru": _lru(s, shape.num_frames), "lru_slow": _lru(s, shape.num_frames + 1),
        "batch": [[int(e) >> 1, int(e) & 1] for e in s.batch[: scalars["batch_count"]]],
        "U": mask(masks["batch_mask"]), "D": mask(masks["deferred_mask"]), "G": mask(masks["debt_mask"]), "need_flush": scalars["need_flush"],
        "foreign": s.foreign[: scalars["foreign_count"]].tolist(), "quarantine": _quarantine(s, scalars), "kswapd_on": scalars["kswapd_on"],
        "ugen": scalars["ugen"], "ugen_done": scalars["ugen_done"], "unmap_clock": scalars["unmap_clock"], "covered": cpu[:, st.COVERED].tolist(),
        "cpumask": [mask(words) for words in s.cpumask], "tlb_gen": mm[:, st.TLB_GEN].tolist(), "pending": mm[:, st.PENDING].tolist(),
        "flushed": mm[:, st.FLUSHED].tolist(), "gathers": mm[:, st.GATHERS].tolist(), "excl": mm[:, st.EXCL].tolist(),
        "sweep": [mask(words) for words in s.sweep], "va_debt": mm[:, st.VA_DEBT].tolist(), "next_trim": mm[:, st.NEXT_TRIM].tolist(),
        "mm_owed": [mask(words) for words in s.mm_owed], "mm_clock": mm[:, st.DEBT_CLOCK].tolist(),
        "file_owed": [mask(words) for words in s.file_owed], "file_clock": s.file_clock.tolist(),
        "gen_done": s.cpu_mm[:, :, st.GEN_DONE].tolist(), "pages": _pages(shape, s), "vma_flag": s.vma_flag.tolist(), "frames": _frames(s),
        "backings": _backings(shape, s), "anon_pool": s.anon_pool[: scalars["anon_top"]].tolist(),
    }  # fmt: skip


def mask(words: np.ndarray) -> int:
    """A CPU set as an integer."""
    return sum(int(word) << (32 * index) for index, word in enumerate(words))


def _tlb(tlb: np.ndarray, cpu_mm: np.ndarray, geometry: TlbGeometry) -> list[list[list[list[int] | None]]]:
    sets, cpus, _, ways = tlb.shape
    levels: list[list[list[list[int] | None]]] = [[[None] * ways for _ in range(sets)] for _ in range(cpus)]
    for index, c, way in zip(*np.nonzero(tlb[:, :, st.TAG] >= 0), strict=True):
        tag, data, filled, used = (int(x) for x in tlb[index, c, :, way])
        process, vpn = tag >> st.TAG_SHIFT, tag & ((1 << st.TAG_SHIFT) - 1)
        if filled >= cpu_mm[c, process, st.FLUSHED_AT]:
            used = used if geometry.replacement == "lru" else 0
            levels[c][index][way] = [process, vpn, data >> 2, (data >> 1) & 1, data & 1, filled, used]
    return levels


def _gather(s: st.MachineState, c: int) -> list[Any] | None:
    kind, row = int(s.cpu[c, st.GATHER_KIND]), s.gather[c].tolist()
    if kind <= 0:
        return None
    return [kind, row[st.VS], row[st.VE], row[st.CLEARED], row[st.CS], row[st.CE], s.held[c, : row[st.NUM_HELD]].tolist()]


def _fault(s: st.MachineState, c: int) -> list[int] | None:
    kind = int(s.cpu[c, st.GATHER_KIND])
    return [int(s.gather[c, st.VS]), -1 - kind] if kind < 0 else None


def _taken(s: st.MachineState, c: int) -> list[int] | None:
    frame, tag, owner, since, clock = s.taken[c].tolist()
    return [frame, mask(s.taken_owed[c]), tag, owner, since, clock] if frame >= 0 else None


def _pcp(s: st.MachineState, c: int) -> list[int]:
    head, count = (int(x) for x in s.pcp[c])
    return s.pcp_ring[c, (head + np.arange(count)) & (s.pcp_ring.shape[1] - 1)].tolist()


def _lru(s: st.MachineState, end: int) -> list[int]:
    order, frame = [], int(s.link[end, st.NEXT])
    while frame != end and len(order) <= end:
        order.append(frame)
        frame = int(s.link[frame, st.NEXT])
    return order


def _quarantine(s: st.MachineState, scalars: dict[str, int]) -> list[list[int]]:
    places = (scalars["q_head"] + np.arange(scalars["q_count"])) & (len(s.quarantine) - 1)
    return s.quarantine[places].tolist()


def _pages(shape: MachineShape, s: st.MachineState) -> list[list[list[int]]]:
    pte, page = s.pte.astype(np.int64), s.page
    present = pte & 1
    mapped, promised = page[:, st.VMA] >= 0, (page[:, st.PROMISE] & 1) == 1
    columns = [
        present, (pte >> 1) & present, (pte >> 2) & present, (pte >> 3) & present, (pte & st.PTE_MARKER) // st.PTE_MARKER,
        np.where(present == 1, pte >> st.PTE_SHIFT, -1), page[:, st.VMA], np.where(mapped, page[:, st.BACKING], -1), promised.astype(int),
        np.where(promised, (page[:, st.PROMISE] >> 1) & 1, 0), np.where(promised, page[:, st.PROMISE] >> 2, -1), page[:, st.EPOCH],
        page[:, st.CHANGED],
    ]  # fmt: skip
    return np.stack(columns, 1).reshape(shape.num_processes, shape.num_vpns, -1).tolist()


def _frames(s: st.MachineState) -> list[list[Any]]:
    rows = []
    for row, slots, owed in zip(s.frame.tolist(), s.rmap.tolist(), s.owed, strict=True):
        rows.append([
            row[st.STATE], row[st.HANDED], row[st.CONTENT], row[st.VERSION], slots, row[st.REFS], mask(owed), row[st.FRAME_TAG], row[st.OWNER],
            row[st.SINCE], row[st.CLOCK],
        ])  # fmt: skip
    return rows


def _backings(shape: MachineShape, s: st.MachineState) -> list[list[int]]:
    of_anon = np.stack([s.parent, s.origin, s.shared, s.sharers], 1).tolist()
    of_files = [[-1, -1, 0, 0]] * shape.num_file_pages
    return [
        [row[st.TRUTH], row[st.STORED], row[st.HOME] & 1, row[st.HOME] >> 2, (row[st.HOME] >> 1) & 1, *more]
        for row, more in zip(s.backing.tolist(), of_files + of_anon, strict=True)
    ]
