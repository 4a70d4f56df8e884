"""The benchmark runs, keeps its promises about what it prints, and refuses to report numbers of programs that disagree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lufjax.benchmark import bench, bench_lanes
from lufjax.benchmark.cases import build, cases
from lufjax.benchmark.facts import load_reference
from lufjax.benchmark.options import POLICIES, parse
from lufjax.benchmark.turns import Disagreement, refuse_difference

RATIOS = {"ratio_to_c_llm_8cpu", "ratio_to_c_random_read_8cpu", "ratio_to_c_llm_64cpu_big"}
TIMES = {"events_per_s", "compile_s", "first_s", "steady_s", "steady_s_min", "steady_s_max"}
FACTS = TIMES | {"bytes_per_lane", "lanes", "events", "config", "shape"}


def test_quick_run_prints_one_object_with_the_promised_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    has_compiler = load_reference().find_compiler() is not None
    assert bench.main({"quick": True, "device": "cpu", "json": True, "outputs": str(tmp_path)}) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert {key for key in report if key.startswith("ratio_to_c")} == (RATIOS if has_compiler else set())
    assert report["mixed_over_most_expensive"] > 0
    assert report["most_expensive_policy"] in POLICIES
    assert {"platform", "kind", "cpu_model", "num_cores"} <= set(report["device"])
    assert report["versions"]["jax"]
    assert report["backend"] == "native"
    for case in report["cases"].values():
        assert set(case) >= FACTS
        assert case["events_per_s"] > 0
        assert case.get("counters_equal", False) is has_compiler
        assert (case.get("ratio_to_c_one_core", 0) > 0) is has_compiler
    big = report["cases"]["llm_64cpu_big"]["shape"]
    sizes = {"num_cpus": 64, "num_processes": 4, "num_vpns": 262144, "num_frames": 65536}
    assert {name: big[name] for name in sizes} == sizes
    assert [big[level][n] for level in ("l1", "l2") for n in ("sets", "ways")] == [16, 6, 128, 16]
    assert "llm_8cpu" in bench.as_text(report)
    check_results(Path(report.pop("results")), report, has_compiler)


def check_results(folder: Path, report: dict, has_compiler: bool) -> None:
    """The file holds every repeat of what was printed, and where it comes from; the figure lies beside it."""
    assert {path.name for path in folder.iterdir()} == {"results.nc", "events_per_second.png", "events_per_second.pdf"}
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as ds:
        assert json.loads(ds.attrs["report_json"]) == report
        assert {"command", "git_commit", "code_sha256", "versions", "device"} <= set(json.loads(ds.attrs["provenance_json"]))
        assert ds["lanes"].values.tolist() == [1, 2, 4, 8]
        assert ds.sizes["repeat"] == report["repeats"] >= 5
        assert ("c_seconds" in ds) is has_compiler
        for name in report["cases"]:
            assert np.median(ds["case_engine_seconds"].sel(case=name)) == report["cases"][name]["steady_s"]
        assert 100 < float(ds["bytes_per_event"]) < 10_000
        assert all(variable.attrs.keys() >= {"units", "long_name"} for variable in ds.variables.values())


def test_without_a_compiler_ratios_are_absent_and_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(bench, "measure_all", lambda chosen, backend, reference, binary: {"binary": binary})
    monkeypatch.setattr(bench_lanes, "write", lambda report, parent: parent)
    assert bench.main({"quick": True, "json": True}) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["binary"] is None
    assert "no C compiler found" in printed.err
    assert printed.err.count("\n") == 1


def test_different_counters_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(cases(parse({"quick": True}), "native")[0], policies=("linux",), num_lanes=1)
    _, samples = build(case).run("native")
    refuse_difference("llm", samples, samples)
    other = replace(samples, received=samples.received + (np.arange(8) == 3))
    with pytest.raises(Disagreement, match=r"llm: the engine and reference\.c differ in received on 1 lanes, first on lane 0"):
        refuse_difference("llm", samples, other)

    def differs(*_: object) -> None:
        raise Disagreement("llm: they differ")

    monkeypatch.setattr(bench, "measure_all", differs)
    assert bench.main({"json": True}) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lane": 8}, "lane=8: no such key; allowed are device, backend, lanes, events, quick, outputs"),
        ({"device": "tpu"}, "device=tpu: allowed are cpu, gpu"),
        ({"device": "gpu", "backend": "native"}, "device=gpu: no such device found for backend=native; allowed is cpu; a CUDA device needs CuPy"),
        ({"lanes": 9}, "lanes=9: allowed are multiples of 8"),
        ({"lanes": "many"}, "lanes=many: allowed are integers from 8"),
        ({"events": 1}, "events=1: allowed are integers from 1000"),
        ({"quick": "yes please"}, "quick=yes please: allowed are true, false"),
        ({"backend": "rust"}, "backend=rust: allowed are auto, native, cuda, xla"),
    ],
)
def test_a_wrong_word_is_one_clear_line(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.main(words)
