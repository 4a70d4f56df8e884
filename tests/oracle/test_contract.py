"""The names that the reference simulator repeats are those of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lufjax import counters, policy
from lufjax.events import FIRST_PAGE, Op

from . import generate_events, machine, scenario
from .counting import HISTOGRAMS, NAMES, NUM_BUCKETS, NUM_CLASSES
from .policies import NUM_CHOICES, PRESETS

PRESET_FILES = sorted((Path(__file__).parents[2] / "conf" / "policy").glob("*.yaml"))


def test_counters_have_the_same_names() -> None:
    assert set(NAMES) == {*counters.SCALARS, *counters.GAUGES}
    assert set(HISTOGRAMS) == set(counters.HISTOGRAMS)
    assert (NUM_BUCKETS, NUM_CLASSES) == (counters.NUM_BUCKETS, counters.NUM_CLASSES)


def test_policy_fields_have_the_same_number_of_values() -> None:
    assert {field: len(words) for field, words in policy.CHOICES.items()} == NUM_CHOICES
    assert set(PRESETS["linux"]) == set(policy.FlushPolicy._fields)


@pytest.mark.parametrize("path", PRESET_FILES, ids=lambda path: path.stem)
def test_presets_are_those_of_the_configuration(path: Path) -> None:
    record = policy.from_words(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert record._asdict() == PRESETS[path.stem]


def test_operations_have_the_same_numbers() -> None:
    assert list(generate_events.WEIGHTS) == [int(op) for op in Op]
    assert [getattr(machine, name) for name in ("NOP", "MMAP", "FINISH", "TICK")] == [0, Op.MMAP, Op.GATHER_FINISH, Op.TICK]
    assert [getattr(scenario, name) for name in ("FILE_WRITE", "RECLAIM", "SWITCH")] == [Op.FILE_WRITE, Op.RECLAIM, Op.SWITCH]
    for module in (machine, scenario, generate_events):
        assert {name: getattr(module, name) for name in Op.__members__ if hasattr(module, name)}.items() <= Op.__members__.items()
    assert generate_events.FIRST_PAGE == machine.FIRST_PAGE == FIRST_PAGE
