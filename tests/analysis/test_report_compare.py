"""The report and the comparison of two runs, as text."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.results.compare import compare_runs, config_differences, counter_differences
from lufjax.results.plots import plot_run
from lufjax.results.report import write_report

from .synthetic import config_of, results, write_run


def test_report_says_what_was_run_and_what_it_found(tmp_path):
    run = write_run(tmp_path / "run", results(policies=("never", "linux", "luf_v10"), num_cpus=(1, 4), pressure=(2.0,), seeds=4))
    plot_run(run)
    text = write_report(run).read_text()
    for part in (
        "# Results of synthetic",
        "## What was run",
        "## Shootdowns: llm",
        "## Figures",
        "## Cautions",
        "150,000, of which 50,000 are warm-up",
    ):
        assert part in text
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith("| `")
    }
    assert rows["`never` \u2020"][:2] == ["\u2013", "100"]
    assert "MAPPING" in rows["`never` \u2020"][2]
    assert rows["`luf_v10`"][0] == "\u2013"
    assert rows["`luf_v10`"][1].startswith("88.")
    assert " \u00b1 " in rows["`luf_v10`"][1]
    assert rows["`luf_v10`"][2] == "none"
    assert rows["`linux`"][0] == "0"
    assert "![payers-llm](figures/payers-llm.png)" in text
    assert "Let violations through: `never`" in text


def test_report_without_figures_baseline_or_violations(tmp_path):
    ds = results(policies=("luf_v10",), num_cpus=(4,), pressure=(2.0,), seeds=1).drop_vars("violations")
    text = write_report(write_run(tmp_path / "run", ds)).read_text()
    assert "No reductions: policy linux is not in this run (it has luf_v10)." in text
    assert "None were drawn" in text
    assert "There is one seed, so no interval." in text
    assert "unknown" in text


def test_a_run_is_the_same_as_itself(tmp_path):
    run = write_run(tmp_path / "run", results(num_cpus=(1, 2), pressure=(2.0,), seeds=2))
    text = compare_runs(run, run)
    assert "Config: the same." in text
    assert "Points and seeds: the same." in text
    assert "Results: every counter of every paired lane is the same." in text


def test_compare_says_what_differs_and_by_how_much(tmp_path):
    one = results(policies=("linux", "luf_v10"), num_cpus=(1, 4), pressure=(2.0,), seeds=2)
    two = results(policies=("linux", "fpr"), num_cpus=(4, 8), pressure=(2.0,), seeds=3)
    two["pgfault"] = two["pgfault"] * 2
    config = config_of(two, num_events=99)
    config["machine"]["l1"]["ways"] = 8
    text = compare_runs(write_run(tmp_path / "a", one), write_run(tmp_path / "b", two, config))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "machine.l1.ways 4 8" in lines
    assert "num_events 150000 99" in lines
    assert "only in A: policy luf_v10" in lines
    assert "only in B: num_cpus 8" in lines
    assert "only in B: seed 2" in lines
    (row,) = [line for line in lines if line.startswith("llm linux pgfault")]
    assert row.endswith("2 2 [2, 2] 2 of 2")


def test_paired_ratio_of_a_hand_example():
    one = results(policies=("linux",), num_cpus=(2, 4), pressure=(2.0,), seeds=2)
    two = one.copy(deep=True)
    factors = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 1, 2)  # CPU counts x seeds
    two["pgscan"] = (one["pgscan"] * factors).astype(np.int64)
    found = counter_differences(one, two)
    assert list(found) == [("llm", "linux", "pgscan")]
    difference = found["llm", "linux", "pgscan"]
    assert difference["ratio"] == pytest.approx(2.5)  # seeds: (1 + 3) / 2 and (2 + 4) / 2
    assert difference["differ"] == 3
    assert difference["high"] - difference["ratio"] == pytest.approx(12.706204736432095 * np.sqrt(0.5) / np.sqrt(2))


def test_nothing_to_pair_is_said(tmp_path):
    a = write_run(tmp_path / "a", results(num_cpus=(2,), pressure=(2.0,), seeds=1))
    b = write_run(tmp_path / "b", results(num_cpus=(4,), pressure=(2.0,), seeds=1))
    assert "Results: no lane can be paired; the runs share no num_cpus." in compare_runs(a, b)


def test_config_keys_that_only_say_where_are_left_out():
    assert config_differences({"run_dir": "x", "seed": 0}, {"run_dir": "y", "seed": 1}) == {"seed": (0, 1)}


def test_not_a_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^run=.*: no results\.nc there"):
        compare_runs(tmp_path, tmp_path)
