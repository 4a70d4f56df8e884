"""``lufjax bench`` on the emulated device: every step of a measurement on a GPU but its speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lufjax import engine
from lufjax.benchmark import bench, measured, turns
from lufjax.benchmark.cases import build, cases
from lufjax.benchmark.facts import load_reference
from lufjax.benchmark.options import parse
from tests.gpu.emulated import emulate


def test_it_measures_the_device_and_compares_with_the_c_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    emulated = emulate(monkeypatch)
    monkeypatch.setattr(measured, "STREAM_BYTES", 2**16)
    small = replace(cases(parse({"quick": True}), "cuda")[0], num_events=3000)
    monkeypatch.setattr(turns, "cases", lambda chosen, backend: [small] if backend == "cuda" else [])
    assert bench.main({"device": "gpu", "backend": "cuda", "quick": True, "json": True, "outputs": str(tmp_path)}) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backend"] == "cuda"
    assert (report["device"]["platform"], report["device"]["kind"]) == ("gpu", "emulated")
    assert ("run_lanes", 1, 32) in emulated.launches
    has_compiler = load_reference().find_compiler() is not None
    case = report["cases"]["llm_8cpu"]
    assert case.get("counters_equal", False) is has_compiler
    assert (case.get("ratio_to_c_one_core", 0) > 0) is has_compiler
    assert "emulated; backend cuda" in bench.as_text(report)


def test_no_thread_block_has_two_equal_lanes() -> None:
    """Equal lanes would wait for equal phases, and flatter a GPU."""
    case = cases(parse({}), "cuda")[0]
    assert (case.num_lanes, case.max_seeds * len(case.policies)) == (65_536, 512)


def test_the_traces_of_a_measurement_are_few() -> None:
    case = replace(cases(parse({}), "cuda")[0], num_events=1000, max_seeds=2)
    batch = build(case)
    assert len(batch.traces) == 2
    assert len(batch.trace_index) == 65_536
    on_device = 65_536 * engine.bytes_per_lane(batch.shape)
    assert on_device < 0.9 * 80e9
