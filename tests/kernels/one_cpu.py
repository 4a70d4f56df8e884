"""One CPU with enough memory: what its TLBs do with a stream of pages."""

from __future__ import annotations

import numpy as np

from lufjax.engine import Samples, simulate
from lufjax.events import ANON, Op, VmaFlag
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.trace import Trace


def run_stream(vpn: np.ndarray, is_store: np.ndarray, l1: TlbGeometry, l2: TlbGeometry) -> dict[str, int]:
    """Run accesses to anonymous pages that are never unmapped; counters by name."""
    num_vpns = -(-(int(vpn.max()) + 1) // 64) * 64
    flags = VmaFlag.READ | VmaFlag.WRITE | VmaFlag.MAYWRITE | VmaFlag.ANON
    events = np.zeros((len(vpn), 5), np.int32)
    events[:, 1], events[:, 2], events[:, 4] = np.where(is_store, Op.STORE, Op.LOAD), vpn, 1
    trace = Trace(
        events=events, vmas=np.array([flags], np.int32), page_vma=np.zeros((1, num_vpns), np.int32),
        page_backing=np.full((1, num_vpns), ANON, np.int32), loaded=np.zeros(1, np.int32), num_file_pages=0, num_anon=num_vpns,
    )  # fmt: skip
    shape = MachineShape(
        num_cpus=1, num_processes=1, num_vpns=num_vpns, num_frames=num_vpns, num_vmas=1, num_file_pages=0, num_anon=num_vpns, l1=l1, l2=l2,
        rmap_slots=1, gather_slots=1, batch_slots=1, pcp_slots=2, quarantine_slots=1,
    )  # fmt: skip
    params = MachineParams(
        frames_in_use=num_vpns, wmark_min=0, wmark_low=0, wmark_high=0, pcp_batch=1, pcp_high=1, reclaim_batch=1, kswapd_cpu=0, load_mode=0,
        fast_frames=num_vpns,
        policy=FlushPolicy(),
    )  # fmt: skip
    lane = MachineParams(*(np.array([x], np.int32) for x in params[:-1]), policy=FlushPolicy(*(np.array([x], np.int32) for x in params.policy)))
    samples: Samples = simulate(shape, lane, [trace], np.zeros(1, np.int32), sample_points=[len(vpn)], backend="native")
    counts = {name: int(values[0, -1]) for name, values in samples.counters.items()}
    assert (counts["events_disabled"], counts["segv"], counts["alloc_fail"]) == (0, 0, 0)
    return counts
