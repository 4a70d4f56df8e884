"""The C program of the benchmarks against the plain-Python oracle: the whole state, every counter and every violation after every event."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import reference
from lufjax import counters
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.trace import Trace
from tests.oracle import Oracle
from tests.oracle.generate import SHAPES, random_events, random_machine
from tests.oracle.generate_events import FORKS, WEIGHTS

LRU_SHAPES = [k for k, sizes in enumerate(SHAPES) if {sizes["l1"]["replacement"], sizes["l2"]["replacement"]} == {"lru"}]
MACHINES, EVENTS = 30, 60
Record = tuple[dict[str, int], dict[str, int]]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The compiled program; None, with the promised message, where there is no compiler."""
    folder, compiler = tmp_path_factory.mktemp("reference"), reference.find_compiler()
    if compiler is None:
        with pytest.raises(reference.ReferenceUnavailable, match="no C compiler found"):
            reference.compile_reference(compiler, folder)
        return None
    return reference.compile_reference(compiler, folder)


def _shape(sizes: dict[str, Any]) -> MachineShape:
    return MachineShape(**{**sizes, "l1": TlbGeometry(**sizes["l1"]), "l2": TlbGeometry(**sizes["l2"])})


def _trace(sizes: dict[str, Any], trace: dict[str, Any], rows: list[list[int]]) -> Trace:
    arrays = {name: np.array(values, np.int32) for name, values in trace.items()}
    return Trace(
        events=np.array(rows, np.int32).reshape(-1, 5), num_file_pages=sizes["num_file_pages"], num_anon=sizes["num_anon"], **arrays
    )


def _as_lists(value: Any) -> Any:
    return [_as_lists(x) for x in value] if isinstance(value, (list, tuple)) else value


def _differences(oracle: Oracle, step: dict[str, Any]) -> list[str]:
    parts = {"snapshot": oracle.snapshot(), "counters": oracle.counters(), "violations": oracle.violations()}
    found = []
    for part, expected in parts.items():
        assert set(expected) == set(step[part])
        found += [f"{part}.{k}: {x} != {step[part][k]}" for k, x in expected.items() if _as_lists(x) != step[part][k]]
    return found


@pytest.mark.parametrize("shape", LRU_SHAPES)
def test_every_event_leaves_the_state_of_the_oracle(binary: Path | None, shape: int) -> None:
    for seed in range(MACHINES if binary else 0):
        rng = random.Random(1000 * shape + seed)
        sizes, params, policy, trace = random_machine(rng, shape)
        rows = random_events(rng, sizes, trace, EVENTS, FORKS if seed % 3 == 2 else WEIGHTS)
        run = reference.run_snapshots(
            binary, _shape(sizes), MachineParams(**params, policy=FlushPolicy(**policy)), _trace(sizes, trace, rows)
        )
        oracle = Oracle(sizes, params, policy, trace)
        for event, row in enumerate(rows, start=1):
            oracle.step(row)
            assert bool(oracle.faults) == (event == run.fault_event), f"shape {shape} seed {seed} event {event}: {oracle.faults}"
            if oracle.faults:
                break
            assert not (found := _differences(oracle, run.steps[event - 1])), f"shape {shape} seed {seed} event {event} {row}: {found}"


def _lanes(num_lanes: int) -> tuple[dict[str, Any], list[Record], list[dict[str, Any]], list[list[list[int]]]]:
    """Sizes, (parameters, policy) of each lane, two initial traces and their event rows."""
    rng = random.Random(7)
    machines = [random_machine(rng, 0) for _ in range(num_lanes)]
    sizes, starts = machines[0][0], [machine[3] for machine in machines[:2]]
    return sizes, [(m[1], m[2]) for m in machines], starts, [random_events(rng, sizes, start, 200) for start in starts]


@pytest.mark.parametrize("threads", [1, 2])
def test_lanes_report_the_oracles_counts_at_every_sample_point(binary: Path | None, threads: int) -> None:
    if binary is None:
        return
    sizes, records, starts, rows = _lanes(6)
    params = MachineParams(
        **{name: np.array([p[name] for p, _ in records], np.int32) for name in MachineParams._fields[:-1]},
        policy=FlushPolicy(*np.array([list(policy.values()) for _, policy in records], np.int32).T),
    )
    assert tuple(records[0][1]) == FlushPolicy._fields
    traces, index, points = [_trace(sizes, s, r) for s, r in zip(starts, rows, strict=True)], np.arange(6) % 2, [1, 50, 200]
    result = reference.run_reference(binary, _shape(sizes), params, traces, index, points, threads)
    assert result.threads == threads
    assert result.seconds > 0
    for lane, (numbers, policy) in enumerate(records):
        oracle, done = Oracle(sizes, numbers, policy, starts[index[lane]]), 0
        for sample, point in enumerate(points):
            for row in rows[index[lane]][done:point]:
                oracle.step(row)
            done, counts, wrong = point, oracle.counters(), oracle.violations()
            assert {name: result.counters[name][lane, sample] for name in result.counters} == {
                name: counts[name] for name in (*counters.SCALARS, *counters.GAUGES)
            }
            assert {name: result.histograms[name][lane, sample].tolist() for name in counters.HISTOGRAMS} == {
                name: counts[name] for name in counters.HISTOGRAMS
            }
            assert result.received[lane, sample].tolist() == counts["received"]
            assert result.violations[lane, sample].T.tolist() == [wrong["loads"], wrong["stores"]]
        assert result.first_violation[lane].tolist() == _as_lists(oracle.violations()["first"])


def test_lane_record_has_the_fields_of_the_contract() -> None:
    record = re.search(r"struct lane \{(.*?)\};", reference.SOURCE.read_text(), re.DOTALL)
    assert record is not None
    fields = re.findall(r"\w+(?=[,;])", record.group(1))
    assert tuple(fields) == (*MachineParams._fields[:-1], *FlushPolicy._fields)


def test_a_full_pool_of_anonymous_ids_is_a_fault(binary: Path | None) -> None:
    if binary is None:
        return
    sizes, (record, *_), (start, _), _ = _lanes(2)
    used = int(((np.array(start["page_vma"]) >= 0) & (np.array(start["page_backing"]) < 0)).sum())
    tight = {**sizes, "num_anon": used}
    start = {**start, "loaded": [0] * sizes["num_cpus"]}
    trace = _trace(tight, start, [[0, 3, 0, -1, 7 + 65536]] * 2 + [[0, 3, v, -1, 7] for v in range(1, sizes["num_vpns"])])
    params = MachineParams(**record[0], policy=FlushPolicy(**record[1]))
    with pytest.raises(reference.ReferenceFault, match=r"lane 0 stopped at event .* ANON_POOL_EMPTY"):
        reference.run_reference(binary, _shape(tight), params, [trace], np.zeros(1, np.int32), [trace.num_events])


def test_bad_input_is_refused_in_one_line(binary: Path | None) -> None:
    sizes, records, starts, rows = _lanes(2)
    params = MachineParams(**records[0][0], policy=FlushPolicy(**records[0][1]))
    trace, index = _trace(sizes, starts[0], rows[0]), np.zeros(1, np.int32)
    tree = _shape({**sizes, "l2": {"sets": 1, "ways": 4, "index": "linear", "replacement": "plru"}})
    with pytest.raises(ValueError, match="replacement=plru: the reference program knows only lru"):
        reference.run_reference(Path("unused"), tree, params, [trace], index, [200])
    if binary is not None:
        with pytest.raises(ValueError, match="pcp_high=99: allowed are 0 to 7"):
            reference.run_reference(binary, _shape(sizes), params._replace(pcp_high=99), [trace], index, [200])


def test_a_missing_or_broken_compiler_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(reference.ReferenceUnavailable, match="no C compiler found: install gcc or clang"):
        reference.compile_reference(None, tmp_path)
    with pytest.raises(reference.ReferenceUnavailable, match="does not start"):
        reference.compile_reference(str(tmp_path / "no-such-compiler"), tmp_path)
    with pytest.raises(reference.ReferenceUnavailable, match=r"cannot build reference\.c"):
        reference.compile_reference("/bin/false", tmp_path)
