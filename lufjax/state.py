"""The state of one machine: flat, named ``int32`` arrays, and how it starts. Batching adds a leading lane axis and nothing else.

Rows that one kernel reads together are packed into one array; the column names below are the only way to address them.
"Nothing" is -1. CPU sets are ``uint32`` words (:mod:`lufjax.kernels.cpumask`). Sizes are those of :class:`~lufjax.params.MachineShape`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from lufjax import counters, events
from lufjax.params import MachineParams, MachineShape
from lufjax.trace import Trace

# Rows of a set of ``tlb1`` and ``tlb2``, whose columns are entries; the tag is process << TAG_SHIFT | vpn.
TAG, DATA, FILLED, USED = range(4)
TAG_SHIFT = 24
WRITABLE, DIRTY = 2, 1
# Columns of ``cpu``. While a fault has not returned, GATHER_KIND is -1, or -2 if it pays at its end, and its page is in ``gather``.
LOADED, LAZY, GATHER_KIND, TICKS, COVERED = range(5)
# Columns of ``cpu_mm``: generation caught up with, and the event of the last flush (entries filled before it are gone).
GEN_DONE, FLUSHED_AT = range(2)
# Columns of ``mm``.
TLB_GEN, PENDING, FLUSHED, GATHERS, EXCL, VA_DEBT, NEXT_TRIM, DEBT_CLOCK = range(8)
# Columns of ``gather``.
VS, VE, CLEARED, CS, CE, NUM_HELD = range(6)
# Bits of ``pte``; the frame is above them.
PTE_PRESENT, PTE_WRITABLE, PTE_ACCESSED, PTE_DIRTY, PTE_MARKER = 1, 2, 4, 8, 16
PTE_SHIFT = 5
# Columns of ``page``; the promise packs backing * 4 + writable * 2 + mapped.
VMA, BACKING, PROMISE, EPOCH, CHANGED = range(5)
# Columns of ``frame``.
STATE, CONTENT, VERSION, PAGE_OF, HANDED, REFS, FRAME_TAG, OWNER, SINCE, CLOCK, ON_FREE = range(11)
FREE, USED_STATE, IN_BATCH, HELD, FOREIGN, QUARANTINED, TAKEN = range(7)
NOTHING, FOREIGN_CONTENT, CORRUPT = -1, -2, -3
# Columns of ``backing``; ``home`` packs frame * 4 + harvested * 2 + on_store, frame -1 for none.
TRUTH, STORED, HOME = range(3)
# Columns of ``link``.
PREV, NEXT = range(2)
# Columns of ``quarantine``.
Q_FRAME, Q_KIND, Q_STAMP, Q_PROCESS = range(4)


class MachineState(NamedTuple):
    """One machine. C CPUs, P processes, V vpns, F frames, B backings, W words of a CPU set."""

    tlb1: Any  # [sets, C, 4, ways]
    tlb2: Any  # [sets, C, 4, ways]
    cpu: Any  # [C, 5]
    cpu_mm: Any  # [C, P, 2]
    mm: Any  # [P, 8]
    cpumask: Any  # [P, W]
    sweep: Any  # [P, W]
    mm_owed: Any  # [P, W]
    file_owed: Any  # [NF, W]
    file_clock: Any  # [NF]
    gather: Any  # [C, 6]
    held: Any  # [C, G]
    pte: Any  # [P * V]
    page: Any  # [P * V, 5]
    vma: Any  # [A] constant flags
    vma_flag: Any  # [A]
    frame: Any  # [F, 11]; ON_FREE: on the global list, kept up where a rule asks for it
    owed: Any  # [F, W]
    rmap: Any  # [F, R]
    link: Any  # [F + 2, 2]; rows F and F + 1 are the ends of the inactive lists, fast and slow: next = oldest, prev = newest
    backing: Any  # [B, 3]
    parent: Any  # [NA]
    origin: Any  # [NA] the file page that an anonymous backing was copied from, itself or by way of other copies
    shared: Any  # [NA] pages that refer to an anonymous backing, beside the first
    sharers: Any  # [NA] those that have it, beside the first
    anon_pool: Any  # [NA]
    free_ring: Any  # [power of two >= F]
    slow_ring: Any  # [power of two >= F]
    pcp_ring: Any  # [C, power of two >= pcp_slots]
    pcp: Any  # [C, 2] head, count
    taken: Any  # [C, 5] frame that is not handed out yet, then its FRAME_TAG to CLOCK
    taken_owed: Any  # [C, W]
    batch: Any  # [BMAX] frame * 2 + deferred
    foreign: Any  # [F]
    quarantine: Any  # [power of two >= Q, 4]
    violations: Any  # [classes, 2] loads, stores
    first: Any  # [classes, 4] now, cpu, process, vpn
    received: Any  # [C]
    histograms: Any  # [histograms, 16], rows in the order of counters.HISTOGRAMS
    counters: Any  # [scalars], in the order of counters.SCALARS
    masks: Any  # [MASKS, W] uint32
    un_sites: Any  # [R] PTEs that the unmap in flight flushes at once
    flow: Any  # the remaining fields are banks of scalars, columns in BANKS
    rc: Any
    fl: Any
    lists: Any
    gens: Any
    zap: Any


MASKS = ("batch_mask", "deferred_mask", "debt_mask", "fl_mask", "fl_ranged")
"""U, D and G of docs/MODEL.md; the CPUs of the flush request in flight and those that flush page by page."""
BANKS: dict[str, tuple[str, ...]] = {
    "flow": ("phase", "cursor", "store_frame", "loop", "alloc_ret", "alloc_frame", "alloc_foreign", "fault", "disturbed"),
    "rc": (
        "rc_pages", "rc_entries", "rc_cpu", "rc_background", "rc_named", "rc_ret", "un_frame", "un_deferred", "un_dirty", "dr_cpu", "dr_ret",
        "dr_next",
    ),
    "fl": (
        "fl_batch", "fl_cpu", "fl_mm", "fl_start", "fl_end", "fl_tables", "fl_payer", "fl_ret", "fl_sent", "fl_page", "fl_trim", "fl_credit",
        "pd_cpu", "pd_left", "pd_ret", "rf_left", "rf_tag", "rl_all", "rl_ret", "fin_mode", "fault_hook", "dg_mm", "dg_page",
    ),
    "lists": ("free_head", "free_count", "batch_count", "kswapd_on", "need_flush", "nr_pending", "slow_head", "slow_count"),
    "gens": ("ugen", "ugen_done", "unmap_clock", "anon_top", "foreign_count", "q_head", "q_count"),
    "zap": ("zap_held", "zap_cleared"),
}  # fmt: skip
"""Scalars that are read and written together: global state of the machine, and registers that phases hand to one another."""
BANK_OF = {name: (bank, column) for bank, names in BANKS.items() for column, name in enumerate(names)}


def scalar(state: MachineState, name: str) -> Any:
    """A scalar of the state, whatever leading axes it has."""
    bank, column = BANK_OF[name]
    return getattr(state, bank)[..., column]


def ring_size(n: int) -> int:
    """Smallest power of two that holds ``n`` entries."""
    return 1 << max(0, (n - 1).bit_length())


def num_words(num_cpus: int) -> int:
    """Words of a CPU set."""
    return (num_cpus + 31) // 32


def init_state(shape: MachineShape, params: MachineParams, trace: Trace) -> MachineState:
    """Build the initial state of one lane (docs/MODEL.md section 2) as NumPy arrays.

    Raises:
        ValueError: the trace needs a larger machine; the line names the size.
    """
    _check_fits(shape, trace)
    c, p, v, f = shape.num_cpus, shape.num_processes, shape.num_vpns, shape.num_frames
    w, b, na = num_words(c), shape.num_backings, shape.num_anon

    def full(size: tuple[int, ...], value: int = 0) -> np.ndarray:
        return np.full(size, value, np.int32)

    def tlb(sets: int, ways: int) -> np.ndarray:
        entries = full((sets, c, 4, ways))
        entries[:, :, TAG] = -1
        return entries

    cpu = full((c, 5))
    cpu[:, LOADED], cpu[:, LAZY] = -1, 1
    cpu[: trace.num_cpus, LOADED] = trace.loaded
    cpu[:, LAZY] = cpu[:, LOADED] < 0
    cpumask = np.zeros((p, w), np.uint32)
    for index in range(c):
        if cpu[index, LOADED] >= 0:
            cpumask[cpu[index, LOADED], index // 32] |= np.uint32(1 << (index % 32))

    mm = full((p, 8))
    mm[:, NEXT_TRIM] = int(params.policy.trim_period)
    vma = full((shape.num_vmas,))
    vma[: len(trace.vmas)] = trace.vmas

    page = full((p, v, 5))
    page[..., VMA], page[..., BACKING] = -1, -1
    page_vma, page_backing = full((p, v), -1), full((p, v), -1)
    page_vma[: trace.num_processes, : trace.num_vpns] = trace.page_vma
    page_backing[: trace.num_processes, : trace.num_vpns] = trace.page_backing
    mapped = page_vma >= 0
    is_anon = mapped & (page_backing == events.ANON)
    taken = int(is_anon.sum())
    if taken > na:
        raise ValueError(f"machine.num_anon={na}: the trace starts with {taken} anonymous pages")
    page_backing[is_anon] = shape.num_file_pages + np.arange(taken, dtype=np.int32)
    page[..., VMA] = page_vma
    page[..., BACKING] = np.where(mapped, page_backing, -1)
    writable = mapped & ((vma[np.maximum(page_vma, 0)] & events.VmaFlag.WRITE) != 0)
    page[..., PROMISE] = np.where(mapped, page_backing * 4 + writable * 2 + 1, 0)

    backing = full((b, 3))
    backing[: shape.num_file_pages] = (1, 1, -4 + 1)
    backing[shape.num_file_pages :] = (0, 0, -4)
    backing[shape.num_file_pages : shape.num_file_pages + taken, :2] = 1

    frame = full((f, 11))
    frame[:, CONTENT], frame[:, OWNER], frame[:, PAGE_OF] = NOTHING, -1, -1
    frame[: int(params.fast_frames), ON_FREE] = 1
    link = full((f + 2, 2))
    link[f], link[f + 1] = f, f + 1
    free_ring = full((ring_size(f),))
    free_ring[:f] = np.arange(f)
    banks = {bank: full((len(names),)) for bank, names in BANKS.items()}
    start = {"anon_top": na - taken, "ugen": 1, "unmap_clock": 1, **free_frames(params)}
    for name, value in start.items():
        bank, column = BANK_OF[name]
        banks[bank][column] = value
    return MachineState(
        tlb1=tlb(shape.l1.sets, shape.l1.ways), tlb2=tlb(shape.l2.sets, shape.l2.ways), cpu=cpu, cpu_mm=full((c, p, 2)), mm=mm,
        cpumask=cpumask, sweep=np.zeros((p, w), np.uint32), mm_owed=np.zeros((p, w), np.uint32),
        file_owed=np.zeros((shape.num_file_pages, w), np.uint32), file_clock=full((shape.num_file_pages,)),
        gather=full((c, 6)), held=full((c, shape.gather_slots)),
        pte=full((p * v,)), page=page.reshape(p * v, 5), vma=vma, vma_flag=full((shape.num_vmas,)), frame=frame,
        owed=np.zeros((f, w), np.uint32), rmap=full((f, shape.rmap_slots), -1), link=link, backing=backing, parent=full((na,), -1),
        origin=full((na,), -1), shared=full((na,)), sharers=full((na,)),
        anon_pool=np.arange(shape.num_file_pages + na - 1, shape.num_file_pages - 1, -1, dtype=np.int32), free_ring=free_ring,
        slow_ring=free_ring.copy(),
        pcp_ring=full((c, ring_size(shape.pcp_slots))), pcp=full((c, 2)), taken=full((c, 5), -1),
        taken_owed=np.zeros((c, w), np.uint32), batch=full((shape.batch_slots,)), foreign=full((f,)),
        quarantine=full((ring_size(shape.quarantine_slots), 4)), violations=full((counters.NUM_CLASSES, 2)),
        first=full((counters.NUM_CLASSES, 4)), received=full((c,)), histograms=full((len(counters.HISTOGRAMS), counters.NUM_BUCKETS)),
        counters=full((len(counters.SCALARS),)), masks=np.zeros((len(MASKS), w), np.uint32), un_sites=full((shape.rmap_slots,), -1), **banks,
    )  # fmt: skip


def free_frames(params: MachineParams) -> dict[str, Any]:
    """Scalars by name that say which frames are free at the start: all, of both tiers."""
    return {"free_count": params.fast_frames, "slow_head": params.fast_frames, "slow_count": params.frames_in_use - params.fast_frames}


def _check_fits(shape: MachineShape, trace: Trace) -> None:
    sizes = {
        "num_cpus": (shape.num_cpus, trace.num_cpus), "num_processes": (shape.num_processes, trace.num_processes),
        "num_vpns": (shape.num_vpns, trace.num_vpns), "num_vmas": (shape.num_vmas, len(trace.vmas)),
        "num_file_pages": (shape.num_file_pages, trace.num_file_pages), "num_anon": (shape.num_anon, trace.num_anon),
    }  # fmt: skip
    for name, (have, need) in sizes.items():
        if have < need:
            raise ValueError(f"machine.{name}={have}: the trace needs at least {need}")


def bytes_of(state: MachineState) -> int:
    """Bytes of one lane's state."""
    return sum(int(np.asarray(leaf).nbytes) for leaf in jax.tree.leaves(state))
