"""Presets are complete, commented, found from anywhere, and say what they are meant to say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lufjax.policy import CHOICES, RANGES, FlushPolicy
from lufjax.presets import config_dir, load_policy, load_preset, policy_words, preset_names, split_entry

ROOT = Path(__file__).parents[2]
REQUIRED = ("never", "eager", "linux", "linux_6_15", "luf_naive", "luf_vma_flag", "luf_pte_marker", "luf_v10", "fpr", "latr")


def test_all_required_policies_are_there():
    assert set(REQUIRED) <= set(preset_names("policy"))


@pytest.mark.parametrize("name", preset_names("policy"))
def test_a_preset_names_every_rule_with_a_comment(name):
    assert tuple(load_preset("policy", name)) == FlushPolicy._fields
    rules = [line for line in (config_dir() / "policy" / f"{name}.yaml").read_text().splitlines() if not line.startswith("#")]
    assert all("  # " in line for line in rules)


def test_linux_is_the_default_record():
    assert load_policy("linux") == FlushPolicy()


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("never", {"reclaim_flush": "never", "gather_flush": "none", "cow_flush": "off", "switch_flush": "off", "batched_pending": "off"}),
        ("eager", {"reclaim_flush": "page", "gather_flush": "page"}),
        ("linux_6_15", {"mask_on_switch": "keep"}),
        ("luf_naive", {"reclaim_flush": "take_off", "absorb": "on", "munmap_debt_rule": "none"}),
        ("luf_vma_flag", {"reclaim_flush": "take_off", "absorb": "on", "munmap_debt_rule": "vma_flag"}),
        ("luf_pte_marker", {"reclaim_flush": "take_off", "munmap_debt_rule": "pte_marker", "marker_fault": "nothing"}),
        ("luf_v10", {"munmap_debt_rule": "pending", "write_fault_flush": "wp", "mmap_flush": "on", "defer_pages": "read_only"}),
        ("luf_v10_as_posted", {"buddy_tag": "lost", "buddy_merge": "newest", "refill_tag": "task", "gen_bits": 16, "mmap_flush": "on"}),
        ("luf_v11", {"write_fault_flush": "off", "mmap_flush": "off", "file_write_flush": "on", "buddy_tag": "lost"}),
        ("luf_v12", {"debt_merge": "per_frame", "targets": "uncovered", "debt_scope": "mm_and_file", "munmap_debt_rule": "gather_hook"}),
        ("luf_always", {"reclaim_flush": "take_off", "munmap_debt_rule": "always"}),
        ("fpr", {"reclaim_flush": "owner", "defer_pages": "clean", "debt_merge": "per_frame", "gather_flush": "owner", "va_rule": "on"}),
        ("latr", {"reclaim_flush": "batch", "gather_flush": "ticks", "va_rule": "on"}),
    ],
)
def test_what_makes_a_policy_itself(name, rules):
    words = policy_words(name)
    assert {rule: words[rule] for rule in rules} == rules


def test_an_entry_replaces_single_rules():
    assert split_entry("luf_v10+absorb:off+flush_ceiling:5") == ("luf_v10", {"absorb": False, "flush_ceiling": 5})
    changed = policy_words("luf_v10+absorb:off")
    assert changed == policy_words("luf_v10") | {"absorb": "off"}


def test_the_record_has_no_field_without_words_or_range():
    assert set(CHOICES) | set(RANGES) == set(FlushPolicy._fields)


def test_an_installed_package_finds_its_configs_from_anywhere(tmp_path):
    """Lay the files out as the wheel does, and ask from another directory."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    site = tmp_path / "site"
    for package in build["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in build["force-include"].items():
        shutil.copytree(ROOT / source, site / target, dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = (
        "from lufjax.presets import config_dir; from lufjax.config import load_run_config;"
        "print(config_dir()); print(*load_run_config(['policy=luf_v10']).policies)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(site / "lufjax" / "conf"), "luf_v10"]


def test_importing_the_package_touches_no_device(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(ROOT)}
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in (ROOT / "lufjax").rglob("*.py")]
    code = "import sys, importlib; [importlib.import_module(name) for name in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, env=environment, check=True)


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys; from lufjax.cli import main; main(['--help']);"
        "print([m for m in ('jax', 'hydra', 'xarray', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
