"""Overrides as Hydra users write them become axes of one batch."""

from __future__ import annotations

import logging

import pytest
import yaml

from lufjax import config as config_module
from lufjax.cli import main
from lufjax.config import load_run_config
from lufjax.presets import policy_words
from lufjax.resolve import identity, resolve, to_mapping


def test_multirun_makes_axes_and_composes_once(monkeypatch):
    calls = []
    compose = config_module.compose
    monkeypatch.setattr(config_module, "compose", lambda *args, **kwargs: calls.append(args) or compose(*args, **kwargs))
    config = load_run_config(["-m", "policy=linux,luf_v10", "num_cpus=2,4,8", "seed=range(0,3)"])
    assert len(calls) == 1
    assert list(config.policies) == ["linux", "luf_v10"]
    assert (config.num_cpus, config.seeds, config.num_lanes) == ((2, 4, 8), (0, 1, 2), 18)


def test_multirun_flag_may_stand_anywhere():
    assert load_run_config(["num_cpus=2,4", "-m", "pressure=1.5,2"]).pressures == (1.5, 2.0)


def test_glob_picks_presets():
    assert list(load_run_config(["-m", "policy=glob(luf_v1*)"]).policies) == ["luf_v10", "luf_v10_as_posted", "luf_v11", "luf_v12"]


def test_a_list_is_an_axis_without_multirun():
    assert load_run_config(["num_cpus=[2,4]"]).num_cpus == (2, 4)


def test_one_value_on_the_command_line_replaces_the_axis_of_an_experiment():
    config = load_run_config(["experiment=scaling", "num_cpus=4", "policy=luf_v10", "seed=3", "workload=llm"])
    assert (config.num_cpus, config.seeds, list(config.policies), list(config.workloads)) == ((4,), (3,), ["luf_v10"], ["llm"])
    assert len(config.pressures) >= 4


def test_seed_zero_is_a_seed_and_a_number_is_that_many_seeds():
    assert load_run_config([]).seeds == (0,)
    assert load_run_config(["axes.seed=3"]).seeds == (0, 1, 2)


def test_a_rule_reaches_every_policy_of_the_sweep():
    config = load_run_config(["-m", "policy=linux,luf_v10", "policy.flush_ceiling=5"])
    assert [words["flush_ceiling"] for words in config.policies.values()] == [5, 5]
    assert list(config.policies) == ["linux", "luf_v10"]


def test_a_rule_equal_to_the_base_preset_still_reaches_the_others():
    config = load_run_config(["-m", "policy=linux,luf_v10", "policy.munmap_debt_rule=none"])
    assert {words["munmap_debt_rule"] for words in config.policies.values()} == {"none"}


def test_a_rule_can_be_swept():
    config = load_run_config(["-m", "policy=linux", "policy.flush_ceiling=1,33"])
    assert list(config.policies) == ["linux+flush_ceiling:1", "linux"]
    assert [words["flush_ceiling"] for words in config.policies.values()] == [1, 33]


def test_a_policy_entry_replaces_its_own_rules():
    config = load_run_config(["-m", "policy=luf_v10,luf_v10+absorb:off"])
    assert config.policies["luf_v10+absorb:off"] == policy_words("luf_v10") | {"absorb": "off"}
    assert config.policies["luf_v10"] == policy_words("luf_v10")
    assert list(load_run_config(["policy=luf_v10+absorb:off"]).policies) == ["luf_v10+absorb:off"]


def test_workload_options_reach_the_workloads_that_have_them():
    config = load_run_config(["workload=llm", "workload.file_pages=8192", "-m", "workload.hot_pages=4,16"])
    assert [options["file_pages"] for options in config.workloads.values()] == [8192, 8192]
    assert sorted(options["hot_pages"] for options in config.workloads.values()) == [4, 16]


def test_a_new_preset_needs_no_python(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text(yaml.safe_dump(policy_words("linux") | {"flush_ceiling": 7}))
    for words in (["policy=mine"], ["-m", "policy=linux,mine"]):
        assert load_run_config(["--config-dir", str(tmp_path), *words]).policies["mine"]["flush_ceiling"] == 7


def test_a_saved_config_is_the_same_run(tmp_path):
    config = load_run_config(["experiment=quick", "policy.absorb=on", "cost=vm"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))
    again = load_run_config(["-cp", str(tmp_path), "-cn", "config"])
    assert identity(again) == identity(config)
    assert again == config
    assert resolve(to_mapping(config), {}) == config


def test_scaling_is_the_main_job():
    config = load_run_config(["experiment=scaling"])
    assert config.num_cpus == (1, 2, 4, 8, 16, 32, 64)
    assert len(config.policies) >= 6
    assert "linux" in config.policies
    assert len(config.pressures) >= 4
    assert len(config.seeds) >= 8
    assert config.num_events >= 100_000
    assert set(config.workloads) == {"llm", "replay"}
    assert config.warmup_events == config.num_events // 3
    assert config.warmup_events in config.sample_points
    assert config.sample_points[-1] == config.num_events


def test_big_is_the_size_it_claims():
    machine = load_run_config(["machine=big", "num_cpus=64"]).machine
    assert (machine.l1.sets * machine.l1.ways, machine.l1.ways, machine.l2.sets * machine.l2.ways) == (96, 6, 2048)
    assert (machine.num_processes, machine.num_frames, machine.num_vpns) == (4, 65536, 262144)


@pytest.fixture
def hydras_logging():
    """Put the root logger back as it was: Hydra sets it up for a process that only prints."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--cfg", "job", "policy=luf_v10", "-m", "num_cpus=2,4"], ["munmap_debt_rule: pending", "  num_cpus:\n  - 2\n  - 4"]),
        (["run", "--help"], ["policy: eager", "machine/tlb: ", "num_events: "]),
        (["run", "--info", "defaults-tree"], ["policy: linux"]),
        (["run", "--hydra-help"], ["--multirun"]),
        (["policy", "list"], ["luf_vma_flag", "latr"]),
        (["policy", "diff", "linux", "luf_v10"], ["* munmap_debt_rule   none             pending"]),
        (["policy", "show", "fpr"], ["reclaim_flush      owner"]),
        (["workload", "list"], ["llm"]),
        (["--version"], ["lufjax "]),
        (["--help"], ["import-trace"]),
    ],
)
def test_what_is_printed(capfd, hydras_logging, arguments, expected):
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    for text in expected:
        assert text in printed
