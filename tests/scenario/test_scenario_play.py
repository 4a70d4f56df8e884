"""Playing scenarios: the shipped ones show what they expect, on the engine and on the reference simulator alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lufjax.cli import main
from lufjax.faults import EngineFault, Fault
from lufjax.presets import config_dir, policy_words
from lufjax.scenarios.scenario import play, run_scenario, timeline
from lufjax.scenarios.scenario_file import DEFAULT, load_scenario
from lufjax.scenarios.timeline import WIDTH, cpu_list

from .oracle_machine import build_oracle
from .test_scenario_files import SHIPPED, small, written

FOLDER = config_dir() / "scenario"
REMAP = FOLDER / "munmap_remap.yaml"
CLEAN = ("luf_vma_flag", "luf_pte_marker", "luf_v10", "linux", "eager")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_expectations_hold(path: Path) -> None:
    scenario = load_scenario(path)
    for policy in (entry for entry in scenario.expect if entry != DEFAULT):
        words = policy_words(policy)
        result = play(scenario, policy, words)
        assert result.holds, f"{policy}: {result.violations}"
        assert result == play(scenario, policy, words, build_oracle), policy
        assert all(event.verdict != "not enabled" for event in result.events), policy


@pytest.mark.parametrize("name", ["munmap_remap", "munmap_no_remap", "map_fixed"])
def test_the_munmap_hole_is_open_in_luf_naive_alone(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    naive = run_scenario(path, "luf_naive")
    assert naive.violations == {"MAPPING": 1}
    assert naive.events[-1].violations == ("MAPPING",)
    assert timeline(naive).endswith("MAPPING")
    for policy in CLEAN:
        assert timeline(run_scenario(path, policy)).endswith("clean"), policy


def test_a_timeline_has_one_line_an_event_and_fits_a_mail() -> None:
    result = run_scenario(REMAP, "luf_v10")
    lines = timeline(result).splitlines()
    assert max(map(len, lines)) <= WIDTH
    first = next(number for number, line in enumerate(lines) if line.startswith("---")) + 1
    rows = lines[first : first + len(result.events)]
    assert [int(line.split()[0]) for line in rows] == [event.number for event in result.events]
    assert rows[1].split("  ")[-1] == "f0 owes 0-1; D=0-1; pending"
    assert "cpu1: 0->f0" in rows[2]
    assert [event.ipis for event in result.events] == [0, 0, 0, 1, 0, 0, 0, 0]


def test_wide_cells_continue_below(tmp_path: Path) -> None:
    pages = {"process": 0, "pages": "0-7", "file": 0, "prot": "r"}
    events = [{"cpu0": "load 0-7"}, {"cpu1": "load 0-7"}, {"cpu1": "reclaim 0-7 of 0"}]
    content = small(machine={"num_cpus": 2}, maps=[pages], events=events)
    text = timeline(run_scenario(written(tmp_path, content), "luf_pte_marker"))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "7 marker" in text
    assert "->f7" in text


def test_ticks_end_the_window_of_latr_and_nothing_ends_that_of_fpr() -> None:
    path = FOLDER / "lazy_munmap.yaml"
    assert run_scenario(path, "latr").violations == {"MAPPING": 1}
    assert run_scenario(path, "fpr").violations == {"MAPPING": 2}


def test_json_for_one_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", str(REMAP), "policy=luf_naive", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scenario"] == "munmap_remap"
    assert (found["policy"], found["violations"], found["expected"], found["holds"]) == ("luf_naive", {"MAPPING": 1}, ["MAPPING"], True)
    last = found["events"][-1]
    assert last["stale"] == [{"cpu": 1, "process": 0, "vpn": 0, "frame": 0, "stores_only": False}]
    assert last["violations"] == ["MAPPING"]
    assert last["row"] == [1, 1, 0, 0, 1]


def test_all_listed_policies_end_in_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", str(REMAP)]) == 0
    table = capsys.readouterr().out.rsplit("\n\n", 1)[1].splitlines()
    verdicts = {line.split()[0]: line.split()[1] for line in table[2:]}
    assert verdicts["luf_naive"] == "MAPPING"
    assert {verdicts[policy] for policy in CLEAN} == {"clean"}
    assert main(["scenario", str(REMAP), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"]
    assert {result["policy"]: bool(result["violations"]) for result in found["policies"]}.items() >= {
        "luf_naive": True,
        "linux": False,
    }.items()


def test_a_replaced_rule_is_judged_by_its_own_entry_or_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", str(REMAP), "policy=luf_v10", "policy.munmap_debt_rule=none"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("MAPPING")
    assert main(["scenario", str(REMAP), "policy=luf_vma_flag", "policy.munmap_debt_rule=none"]) == 1
    out = capsys.readouterr().out
    assert "policy: luf_vma_flag+munmap_debt_rule:none" in out
    assert "expected clean (does not hold); verdict: MAPPING" in out


def test_a_wrong_expectation_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(REMAP.read_text(encoding="utf-8")) | {"expect": {"luf_naive": [], "linux": []}}
    path = str(written(tmp_path, content))
    assert main(["scenario", path]) == 1
    assert main(["scenario", path, "policy=luf_naive"]) == 1
    assert main(["scenario", path, "policy=linux"]) == 0
    capsys.readouterr()
    assert main(["scenario", path, "policy=eager"]) == 2
    assert "expect: has no entry for policy=eager" in capsys.readouterr().err


def test_a_malformed_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, small(events=[{"cpu0": "load 9"}]))
    assert main(["scenario", str(path), "policy=linux"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "small.yaml: events entry 1 (cpu0: load 9): pages=9" in error


def test_an_engine_fault_names_the_entry() -> None:
    class Faulting:
        def __init__(self, *sizes: Any) -> None:
            self._machine = build_oracle(*sizes)
            self.snapshot, self.counters, self.violations = self._machine.snapshot, self._machine.counters, self._machine.violations

        def step(self, row: list[int]) -> None:
            raise EngineFault(Fault.ANON_POOL_EMPTY, 0, 1)

    with pytest.raises(ValueError, match=r"events entry 1 \(load 0\): .*num_anon"):
        play(load_scenario(REMAP), "linux", policy_words("linux"), Faulting)


def test_cpu_sets_read_as_the_kernel_prints_them() -> None:
    assert [cpu_list(mask) for mask in (0, 1, 0b111, 0b100101, 0b110110)] == ["", "0", "0-2", "0,2,5", "1-2,4-5"]


def test_a_debt_paid_by_another_flush_reads_paid(tmp_path: Path) -> None:
    """An ordinary batched flush of the same CPUs pays under ``absorb``; with debts per frame only for ``uncovered`` targets."""
    maps = [{"pages": 0, "file": 0}, {"pages": 1, "prot": "rw", "flags": "anon"}]
    words = ["cpu0: load 0", "cpu0: store 1", "cpu1: reclaim 0-1 of 0", "cpu1: reclaim_flush"]
    content = small(maps=maps, events=[dict([word.split(": ")]) for word in words])
    scenario = load_scenario(written(tmp_path, content))
    shown = {}
    for policy in ("luf_v10", "luf_v10+absorb:off", "luf_v10+debt_merge:per_frame", "luf_v10+debt_merge:per_frame+targets:uncovered"):
        shown[policy] = play(scenario, policy, policy_words(policy), build_oracle).events[-1].debt[0]
    assert list(shown.values()) == ["f0 paid", "f0 owes 0-1", "f0 owes 0-1", "f0 paid"]
