"""The verdict matrix: every shipped scenario under every preset, in one batch, equal to playing them one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lufjax.cli import main
from lufjax.presets import config_dir, policy_words, preset_names
from lufjax.scenarios.matrix import run_matrix
from lufjax.scenarios.scenario import play
from lufjax.scenarios.scenario_file import load_scenario

SHIPPED = [load_scenario(path) for path in sorted((config_dir() / "scenario").glob("*.yaml"))]


def test_every_verdict_is_as_the_files_expect() -> None:
    cells = run_matrix(SHIPPED, preset_names("policy"))
    assert not [cell for cell in cells if not cell.holds]
    assert len(cells) >= len(SHIPPED) * len(preset_names("policy"))
    unsafe = {cell.policy for cell in cells if cell.classes}
    assert "never" in unsafe
    assert not unsafe & {"eager", "linux", "linux_6_15"}


def test_a_batch_says_what_one_machine_says() -> None:
    policies = ("luf_naive", "luf_v10", "never")
    for cell in run_matrix(SHIPPED, policies):
        scenario = next(s for s in SHIPPED if s.name == cell.scenario)
        assert tuple(play(scenario, cell.policy, policy_words(cell.policy)).violations) == cell.classes


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "matrix.png"
    assert main(["matrix", "munmap_remap", "policy=linux,luf_naive", "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "munmap_remap  ok     MAP" in out
    assert figure.stat().st_size > 5000


def test_a_verdict_that_is_not_expected_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load((config_dir() / "scenario" / "munmap_remap.yaml").read_text())
    content["expect"] = {"default": []}
    path = tmp_path / "hopeful.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["matrix", str(path), "policy=luf_naive", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["cells"] == [{"scenario": "hopeful", "policy": "luf_naive", "classes": ["MAPPING"], "expected": [], "holds": False}]


@pytest.mark.parametrize(("argument", "allowed"), [("policy=nope", "luf_v10"), ("nope", "munmap_remap"), ("rules=1", "policy")])
def test_wrong_input_is_one_line(argument: str, allowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", argument]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert allowed in err


def test_a_wrong_figure_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--figure", "matrix.jpeg2"]) == 2
    assert "allowed are files that end in .png, .pdf or .svg" in capsys.readouterr().err
