"""Stripped and unstripped runs count the same, and as the oracle does: random machines and rules, every preset on every workload."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lufjax import engine
from lufjax.events import CPU, OP, VPN, Op
from lufjax.params import TlbGeometry
from lufjax.presets import preset_names
from lufjax.stripping import QUIET, REACH, leaning
from tests.contract.small_run import assert_same, build_trace, flatten, small_run
from tests.differential.pair import first_difference, params_of, shape_of, trace_of
from tests.differential.test_engine import drawn_machines
from tests.differential.test_traces import engine_counts, oracle_counts
from tests.golden.page_stream import RECORDINGS
from tests.oracle import Oracle
from tests.oracle.generate import SHAPES, random_events
from tests.oracle.generate_events import LOAD, STORE, TICK, WEIGHTS

ACCESSES = WEIGHTS | {LOAD: 1200, STORE: 600, TICK: 40}
"""Mostly accesses: stretches are long enough to be passed over, and every other operation cuts in somewhere."""
LEVELS = ((1, 2, "linear", "lru"), (2, 3, "linear", "lru"), (2, 4, "xor", "plru"), (1, 12, "linear", "ring12"))
NUM_EVENTS, POINTS = 400, [57, 58, 200, 400]


@pytest.mark.parametrize("level", LEVELS)
def test_stripped_unstripped_and_oracle_agree_on_random_machines(level: tuple[int, int, str, str]) -> None:
    rng, index = random.Random(f"{level}"), LEVELS.index(level) % len(SHAPES)
    sizes = SHAPES[index] | {"l1": dict(zip(("sets", "ways", "index", "replacement"), level, strict=True))}
    drawn = [(sizes, *rest) for _, *rest in drawn_machines(rng, index)]
    events = [random_events(rng, sizes, trace, NUM_EVENTS, ACCESSES) for *_, trace in drawn]
    shape, traces = shape_of(sizes), [trace_of(trace, sizes, rows) for (*_, trace), rows in zip(drawn, events, strict=True)]
    params = jax.tree.map(lambda *leaves: np.array(leaves, np.int32), *(params_of(numbers, policy) for _, numbers, policy, _ in drawn))
    assert sum(int((leaning(trace.events, trace.num_vpns, shape.l1) > 0).sum()) for trace in traces) > 200
    stripped, whole = (
        engine.simulate(shape, params, traces, np.arange(len(traces)), sample_points=POINTS, backend="native", strip=strip) for strip in (True, False)
    )
    assert_same(stripped, whole)
    for lane, rows in enumerate(events):
        oracle = Oracle(*drawn[lane])
        for number, row in enumerate(rows, 1):
            oracle.step(row)
            if number in POINTS:
                found = first_difference(engine_counts(stripped, lane, POINTS.index(number)), oracle_counts(oracle))
                assert not found, f"machine {lane}, event {number}, policy {drawn[lane][2]}: {found}"
        assert stripped.first_violation[lane].tolist() == [list(first) for first in oracle.violations()["first"]]


@pytest.mark.parametrize("l1", [TlbGeometry(4, 2, "xor"), TlbGeometry(16, 4), TlbGeometry(1, 12, "linear", "ring12")])
def test_stripping_changes_nothing_in_any_workload_under_any_preset(l1: TlbGeometry) -> None:
    traces = [build_trace(name, 3, 0, 4000, tick_period=700) for name in preset_names("workload") if name != "replay"]
    traces += [build_trace("replay", cpus, 0, 4000, tick_period=700, path=path) for path in RECORDINGS for cpus in (1, 5)]
    run, points = small_run(traces, preset_names("policy"), pressure=2, l1=l1), [1, 1000, 2501, 4000]
    assert_same(run.samples(points, strip=True), run.samples(points))


def _falsified(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], Any]) -> bool:
    """Whether a run counts something else once the records of its stretches are changed."""
    traces = [build_trace("replay", 4, 0, 12_000, path="python_threads", tick_period=2000)]
    run = small_run(traces, ["linux", "luf_v10", "never"], pressure=1.5, l1=TlbGeometry(16, 4))
    true, write_records = run.samples(strip=True), engine.write_records

    def falsified(out: np.ndarray, *args: Any) -> None:
        write_records(out, *args)
        change(out)

    monkeypatch.setattr(engine, "write_records", falsified)
    found = run.samples(strip=True)
    return any((values != flatten(found)[name]).any() for name, values in flatten(true).items())


def test_machines_do_pass_over_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_one_more(records: np.ndarray) -> None:
        records[:, 2] += np.arange(len(records), dtype=np.int32)

    assert _falsified(monkeypatch, count_one_more)


def test_what_happened_since_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_happened(records: np.ndarray) -> None:
        records[:, 0] = 2**30

    assert _falsified(monkeypatch, nothing_happened)


def test_a_larger_first_level_would_be_another_one() -> None:
    """Records of a TLB with more ways than the machine has pass over accesses that miss."""
    run = small_run([build_trace("replay", 1, 0, 12_000, path="sqlite_index")], ["linux"], pressure=1.5, l1=TlbGeometry(4, 2))
    packed = engine.pack_traces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "pack_traces", lambda shape, *rest: packed(replace(shape, l1=TlbGeometry(4, 4)), *rest))
        found = run.samples(strip=True)
    assert (found.counters["stlb_hit"] < run.samples().counters["stlb_hit"]).all()


@pytest.mark.parametrize("level", LEVELS)
def test_leaning_is_what_the_definition_says(level: tuple[int, int, str, str]) -> None:
    """Section 12 of docs/MODEL.md word for word, with lists."""
    l1, rng = TlbGeometry(*level), random.Random(7)
    sizes = SHAPES[3]
    _, *_, trace = drawn_machines(rng, 3)[0]
    events = np.array(random_events(rng, sizes, trace, 900, ACCESSES), np.int32)
    found = leaning(events, sizes["num_vpns"], l1).tolist()
    ways = l1.ways if l1.replacement == "lru" else 1
    rows, expected, kept = events.tolist(), [0] * len(events), dict[tuple[int, int, int], int]()
    calm = np.cumsum(~np.isin(events[:, OP], QUIET)).tolist()

    def place(vpn: int) -> int:
        return (vpn ^ vpn // l1.sets if l1.index == "xor" else vpn) % l1.sets

    pages = [(row[CPU], calm[i], row[VPN]) if row[OP] in (Op.LOAD, Op.STORE) else None for i, row in enumerate(rows)]
    for i, page in enumerate(pages):
        if page is None:
            continue
        before = [j for j in range(i) if pages[j] == page]
        after = [j for j in range(i + 1, len(rows)) if pages[j] == page]
        leans = [j for j in before if rows[i][OP] == Op.LOAD or rows[j][OP] == Op.STORE]
        if leans and after:
            window = {other for other in pages[kept[page] + 1 : after[0]] if other is not None and other[0] == page[0]}
            others = {vpn for _, _, vpn in window if vpn != page[2] and place(vpn) == place(page[2])}
            if len(others) < ways and i - leans[-1] <= REACH:
                expected[i] = leans[-1] + 1
                continue
        kept[page] = i
    assert found == expected
    assert sum(number > 0 for number in found) > 20
