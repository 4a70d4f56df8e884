"""What holds after every event whatever the policy: frames are in one place, interrupts have a payer, counters add up."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings

from lufjax.machines import counters_of
from lufjax.snapshot import snapshot
from tests.differential.drawing import SKIP, Drawn, machines, row_of
from tests.differential.pair import fault_of, params_of, shape_of, states_after, trace_of
from tests.oracle import Oracle

FREE, USED, BATCH, HELD, FOREIGN, QUARANTINE, TAKEN = range(7)
SHAPE = 0


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example])
@given(drawn=machines(SHAPE))
def test_every_state_is_consistent(drawn: Drawn) -> None:
    rows = rows_of(drawn)
    shape = shape_of(drawn.sizes)
    points = range(1, len(rows) + 1)
    for state in states_after(shape, params_of(drawn.params, drawn.policy), trace_of(drawn.trace, drawn.sizes, rows), points) if rows else ():
        assert fault_of(state) == 0
        whole, counts = snapshot(shape, state), counters_of(state)
        check_frames(whole, drawn.params["frames_in_use"])
        check_page_tables(whole, shape.num_vpns)
        check_counters(counts)
        pending = [f for f in free_frames(whole) if whole["frames"][f][6]]
        assert counts["nr_pending"] == len(pending)


def rows_of(drawn: Drawn) -> list[list[int]]:
    """The rows that the wishes become; the oracle only says what is enabled."""
    oracle, rows = Oracle(drawn.sizes, drawn.params, drawn.policy, drawn.trace), []
    for wish in drawn.wishes:
        if wish.op != SKIP:
            rows.append(row_of(wish, oracle, drawn.sizes))
            oracle.step(rows[-1])
    return [] if oracle.faults else rows


def free_frames(whole: dict[str, Any]) -> list[int]:
    """Frames of the lists of both tiers and of the lists of the CPUs."""
    return [f for frames in (whole["free"], whole["slow"], *whole["pcp"]) for f in frames]


def check_frames(whole: dict[str, Any], frames_in_use: int) -> None:
    """Every frame is on exactly one list, the one of its state."""
    state = [frame[0] for frame in whole["frames"]]
    waiting = {f for f, *_ in whole["quarantine"]}
    held = {f for gather in whole["gather"] if gather for f in gather[6]} | waiting
    batch = sorted({f for f, _ in whole["batch"] if state[f] == BATCH})
    places = {
        FREE: free_frames(whole), USED: whole["lru"] + whole["lru_slow"], BATCH: batch, HELD: [f for f in held if state[f] == HELD],
        FOREIGN: whole["foreign"], QUARANTINE: [f for f in waiting if state[f] == QUARANTINE], TAKEN: [taken[0] for taken in whole["taken"] if taken],
    }  # fmt: skip
    for name, frames in places.items():
        assert {state[f] for f in frames} <= {name}
    assert Counter(f for frames in places.values() for f in frames) == Counter(range(frames_in_use))


def check_page_tables(whole: dict[str, Any], num_vpns: int) -> None:
    """Page tables and reverse maps are inverse to each other."""
    mapped = {m * num_vpns + v: page[5] for m, pages in enumerate(whole["pages"]) for v, page in enumerate(pages) if page[0]}
    slots = [(slot, f) for f, frame in enumerate(whole["frames"]) for slot in frame[4] if slot >= 0]
    assert len(slots) == len(mapped)
    assert dict(slots) == mapped


def check_counters(counts: dict[str, Any]) -> None:
    """Interrupts sent are interrupts received, each with one payer; accesses and scans add up."""
    sent = sum(counts[f"ipi_{payer}"] for payer in ("reclaim", "mapping", "fault", "alloc"))
    assert sent == counts["nr_tlb_remote_flush_received"] == sum(counts["received"])
    assert counts["needless"] <= sent
    assert counts["accesses"] == counts["loads"] + counts["stores"]
    assert counts["pgmajfault"] + counts["segv"] + counts["sigbus"] <= counts["pgfault"]
    assert (sum(counts["ipis_per_alloc"][1:]) > 0) == (counts["ipi_alloc"] > 0)
    assert sum(counts["age_at_use"]) >= counts["tolerated"]
