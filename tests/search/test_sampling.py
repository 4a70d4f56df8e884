"""Random search: it finds what there is, shrinks it, and depends on its seed alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lufjax.cli import main
from lufjax.events import Violation
from lufjax.presets import config_dir, load_policy
from lufjax.search.alphabet import load_alphabet
from lufjax.search.exhaustive import Limits, explore
from lufjax.search.sampling import sample
from lufjax.search.shrink import shrink
from lufjax.search.successors import Machine

ALPHABET = load_alphabet(config_dir() / "explore" / "tiny.yaml")


def test_it_finds_the_classes_that_the_exhaustive_search_finds() -> None:
    for policy in ("luf_naive", "luf_v10"):
        found = sample(ALPHABET, load_policy(policy), events=200_000, seconds=60, seed=0)
        every = explore(ALPHABET, load_policy(policy), Limits(states=30_000)).findings
        assert {f.kind for f in every} <= {f.kind for f in found.findings}
        for finding in found.findings:
            shortest = min((len(f.entries) for f in every if f.kind == finding.kind), default=0)
            assert shortest <= len(finding.entries) <= 12


def test_linux_shows_nothing() -> None:
    found = sample(ALPHABET, load_policy("linux"), events=300_000, seconds=60, seed=1)
    assert found.events >= 300_000
    assert not found.findings


def test_a_prefix_is_played_first() -> None:
    entries = tuple(ALPHABET.words.index(text) for text in ("cpu0: load 0", "cpu2: reclaim 0 of 0"))
    found = sample(ALPHABET, load_policy("luf_naive"), events=1000, seconds=60, seed=0, prefix=entries)
    assert {f.kind for f in found.findings} >= {"MAPPING"}


def test_nothing_can_be_left_out_of_what_is_shrunk() -> None:
    machine = Machine(ALPHABET, load_policy("luf_naive"), 1, symmetry=False)
    drawn = np.random.default_rng(0).integers(0, len(ALPHABET.rows), (64, 200))
    _, first = machine.play(drawn)
    lane = int(np.flatnonzero((first >= 0).any(1))[0])
    kind = Violation(int(np.flatnonzero(first[lane] >= 0)[0])).name
    short = shrink(machine, kind, tuple(drawn[lane, : first[lane, Violation[kind]] + 1].tolist()))
    assert len(short) < 10
    for left_out in range(len(short) - 1):
        fewer = np.array([short[:left_out] + short[left_out + 1 :]])
        assert machine.play(fewer)[1][0, Violation[kind]] < 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "prefix.yaml"
    prefix.write_text("events:\n  - cpu0: load 0\n  - cpu2: reclaim 0 of 0\n")
    command = ["explore", "policy=luf_naive", "mode=random", "events=20000", f"prefix={prefix}", f"outputs={tmp_path / 'out'}", "--json"]
    assert main(command) == 1
    first = json.loads(capsys.readouterr().out)
    assert main(command) == 1
    second = json.loads(capsys.readouterr().out)
    assert [v["events"] for v in first["violations"]] == [v["events"] for v in second["violations"]]
    prefix.write_text("events:\n  - cpu0: load 9\n")
    assert main(command) == 2
    assert "load 9: not an event of" in capsys.readouterr().err
