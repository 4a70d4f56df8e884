"""Figures: which files, the same bytes, honest gaps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lufjax.results import style
from lufjax.results.analysis import MissingBaseline, MissingVariable
from lufjax.results.cost import load_cost
from lufjax.results.plots import INDEX, builders, figure_name, plot_run, scene_of
from lufjax.results.report import write_report
from lufjax.results.run_directory import run_cost, transports

from .synthetic import config_of, results, write_run

NAMES = ("shootdowns", "reduction", "lost_time", "payers", "staleness", "stale_uses")
ROOT = Path(__file__).resolve().parents[2]


def digests(paths: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("plots") / "run", results(policies=("never", "linux", "luf_v10")))
    return run, plot_run(run)


def test_every_figure_has_picture_vector_and_numbers(drawn):
    run, files = drawn
    names = {path.name for path in files}
    for name in NAMES:
        assert {f"{name}-llm.png", f"{name}-llm.pdf"} <= names
        assert any(n.startswith(f"{name}-llm") and n.endswith(".csv") for n in names)
    assert all(path.parent == run / "figures" and path.stat().st_size > 0 for path in files)
    index = json.loads((run / "figures" / INDEX).read_text())
    assert [entry["figure"] for entry in index["figures"]] == [f"{name}-llm" for name in NAMES]
    assert not any("skipped" in entry for entry in index["figures"])


def test_the_same_run_gives_the_same_bytes_in_another_process(drawn):
    run, files = drawn
    before = digests(files)
    code = "import sys; from lufjax.results.plots import plot_run; plot_run(sys.argv[1])"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, env=environment, timeout=120)
    assert digests(files) == before


def test_files_carry_no_date_and_embed_truetype(drawn):
    run, _ = drawn
    pdf = (run / "figures" / "shootdowns-llm.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf
    assert b"Software" not in (run / "figures" / "shootdowns-llm.png").read_bytes()


def test_numbers_beside_the_figure_are_those_of_the_results(drawn):
    run, _ = drawn
    table = pd.read_csv(run / "figures" / "reduction-llm.csv")
    assert "linux" not in set(table["policy"])
    assert table.loc[table["num_cpus"] == 1, "mid"].isna().all()
    assert table.loc[table["num_cpus"] > 1, "mid"].notna().all()
    np.testing.assert_allclose(table.loc[(table["policy"] == "never") & (table["num_cpus"] > 1), "mid"], 100.0)
    one = table[(table["policy"] == "luf_v10") & (table["num_cpus"] == 16)].iloc[0]
    assert one["mid"] == pytest.approx(np.mean([one[f"seed_{i}"] for i in range(4)]), rel=1e-8)


def test_other_prices_change_only_the_lost_time(drawn, tmp_path):
    run, files = drawn
    for name in ("results.nc", "config.yaml"):
        shutil.copy(run / name, tmp_path / name)
    first, second = digests(files), digests(plot_run(tmp_path, cost="vm"))
    assert set(first) == set(second)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"lost_time-llm.png", "lost_time-llm.pdf", "lost_time-llm.csv", "lost_time-llm.parts.csv", INDEX}


def test_what_is_missing_is_skipped_with_its_reason(tmp_path, caplog):
    ds = results(policies=("luf_v10", "fpr"), num_cpus=(4,), pressure=(2.0,), seeds=1).drop_vars(["ipis_per_alloc", "violations"])
    run = write_run(tmp_path / "run", ds)
    names = {path.name for path in plot_run(run)}
    skipped = {e["figure"]: e["skipped"] for e in json.loads((run / "figures" / INDEX).read_text())["figures"] if "skipped" in e}
    assert skipped == {
        "reduction-llm": "policy linux is not in this run (it has luf_v10, fpr)",
        "payers-llm": "results.nc: variable ipis_per_alloc is missing",
        "stale_uses-llm": "results.nc: variable violations is missing",
    }
    assert {"shootdowns-llm.png", "lost_time-llm.png", "staleness-llm.png"} <= names
    assert len(caplog.messages) == 3
    assert "**payers-llm** was skipped: results.nc: variable ipis_per_alloc is missing." in write_report(run).read_text()


def test_one_cpu_only_has_no_reduction():
    ds = results(policies=("linux", "luf_v10"), num_cpus=(1,), pressure=(2.0,), seeds=2)
    draw = builders(ds, scene_of(ds), load_cost("xeon_1s"), {})["reduction"]
    with pytest.raises(MissingBaseline, match=r"^policy linux received no shootdown at any point of this run, so there is none to reduce$"):
        draw()


def test_what_a_rule_costs_is_drawn_beyond_the_naive_policy(tmp_path):
    ds = results(policies=("linux", "luf_naive", "luf_vma_flag"), num_cpus=(1, 4), pressure=(2.0,), seeds=3)
    run = write_run(tmp_path / "run", ds)
    plot_run(run)
    table = pd.read_csv(run / "figures" / "rule_cost-llm.csv")
    assert set(table["policy"]) == {"luf_vma_flag"}
    one = table[table["num_cpus"] == 4].iloc[0]
    at = ds.sel(workload="llm", num_cpus=4, pressure=2.0, seed=1)
    flushes = at["nr_tlb_remote_flush"]
    assert one["seed_1"] == pytest.approx(float(flushes.sel(policy="luf_vma_flag") - flushes.sel(policy="luf_naive")) / 40)
    report = write_report(run).read_text()
    assert "### Beyond `luf_naive`: llm" in report
    assert "2 pages per frame, 4 CPUs" in report
    ds["nr_gathers"] *= 0
    builder = builders(ds, scene_of(ds), load_cost("xeon_1s"), {})["rule_cost"]
    with pytest.raises(MissingVariable, match=r"^no mapping call of this workload"):
        builder()


def test_styles_are_fixed_per_name_and_never_shared():
    names = [*style.PRESETS, "luf_v10:absorb=off", "linux:flush_ceiling=1"]
    styles = style.policy_styles(names)
    assert len(set(map(str, styles.values()))) == len(names)
    assert style.policy_styles(["linux"])["linux"] == styles["linux"]
    assert style.policy_styles(["luf_v10:absorb=off"])["luf_v10:absorb=off"] == styles["luf_v10:absorb=off"]


def test_names_of_files_hold_no_separators():
    assert figure_name("payers", "replay:mode=rate/x y") == "payers-replay_mode=rate_x_y"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0421, "0.0421"), (3.14159, "3.14"), (1526, "1,526"), (48530, "48.5k"), (3.4e6, "3.4M")]
)
def test_short_numbers(value, text):
    assert style.short(value) == text


def test_config_must_say_cost_and_transport(tmp_path):
    ds = results(num_cpus=(2,), pressure=(2.0,), seeds=1)
    run = write_run(tmp_path / "run", ds, config_of(ds, cost=None))
    with pytest.raises(ValueError, match=r"^cost=None: "):
        run_cost(run)
    assert transports(run, ["linux"]) == {"linux": "interrupt"}
    with pytest.raises(ValueError, match=r"^axes\.policy\.fpr: "):
        transports(run, ["fpr"])
