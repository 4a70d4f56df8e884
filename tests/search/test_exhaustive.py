"""The exhaustive search: shortest violations as the oracle finds them, and the same states however it is run."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lufjax.cli import main
from lufjax.events import Violation
from lufjax.presets import config_dir, load_policy, policy_words
from lufjax.scenarios.scenario import play
from lufjax.scenarios.scenario_file import load_scenario
from lufjax.search import exhaustive, storage, successors
from lufjax.search.exhaustive import Limits, explore
from lufjax.search.storage import Storage
from tests.oracle import Oracle
from tests.scenario.oracle_machine import build_oracle
from tests.search.states import alphabet_of

EXPLORE = config_dir() / "explore"


def shortest(result: exhaustive.Result) -> dict[str, int]:
    """Class -> length of its shortest sequence."""
    found: dict[str, int] = {}
    for finding in result.findings:
        found.setdefault(finding.kind, len(finding.entries))
    return found


FEW = ("cpu0: load 0", "cpu0: store 1", "cpu2: reclaim 0 of 0", "cpu2: reclaim_flush", "cpu0: mmap 0 file=1 prot=r", "cpu0: file_write 0")


@pytest.mark.parametrize("policy", ["luf_naive", "luf_v10", "linux", "never"])
def test_the_oracle_finds_the_same_shortest_violations(policy: str) -> None:
    """Every sequence of up to five of a few events, played on the reference simulator."""
    alphabet = alphabet_of("tiny")
    chosen = [alphabet.words.index(words) for words in FEW]
    alphabet = replace(alphabet, rows=tuple(alphabet.rows[e] for e in chosen), words=FEW)
    params, found = alphabet.scenario.machine_params(load_policy(policy)), {}
    level = [build_oracle(alphabet.shape, params, alphabet.trace)]
    for length in range(1, 6):
        after = []
        for machine, rows in itertools.product(level, alphabet.rows):
            oracle = copy.deepcopy(machine)
            for row in rows.tolist():
                oracle.step(row)
            kinds = classes_seen(oracle)
            found = dict.fromkeys(kinds, length) | found
            if not kinds and oracle.counters()["events_disabled"] == machine.counters()["events_disabled"]:
                after.append(oracle)
        level = after
    assert shortest(explore(alphabet, load_policy(policy), Limits(levels=5))) == found


MACHINES = sorted(path.stem for path in EXPLORE.glob("*.yaml") if path.stem != "small")
"""All but the one for random search: a key of it takes long to compile."""
POLICIES = ("luf_naive", "luf_v10", "luf_v12", "luf_vma_flag", "luf_pte_marker", "fpr", "never", "luf_v10_as_posted", "luf_v11")


@pytest.mark.parametrize("name", MACHINES)
def test_the_oracle_sees_every_finding_when_it_is_played(name: str) -> None:
    """The classes of the last event and no other, and nothing before it."""
    alphabet, machine, found = alphabet_of(name), None, 0
    for policy in POLICIES:
        result = explore(alphabet, load_policy(policy), Limits(states=5_000), machine=machine)
        machine = result.machine
        for finding in result.findings:
            oracle = build_oracle(alphabet.shape, alphabet.scenario.machine_params(load_policy(policy)), alphabet.trace)
            for entry in finding.entries[:-1]:
                for row in alphabet.rows[entry].tolist():
                    oracle.step(row)
            assert not classes_seen(oracle)
            for row in alphabet.rows[finding.entries[-1]].tolist():
                oracle.step(row)
            _, first = machine.play(np.array([finding.entries]))
            assert finding.kind in classes_seen(oracle)
            assert classes_seen(oracle) == {kind.name for kind in Violation if first[0, kind] >= 0}
            found += 1
    assert found


def classes_seen(oracle: Oracle) -> set[str]:
    """Classes of the violations so far."""
    counted = oracle.violations()
    return {kind.name for kind in Violation if counted["loads"][kind] + counted["stores"][kind]}


def test_safe_policies_are_exhausted_without_a_violation() -> None:
    for policy in ("eager", "linux"):
        result = explore(alphabet_of("pair"), load_policy(policy), Limits())
        assert result.coverage.exhausted
        assert not result.findings


def test_symmetry_changes_no_verdict_and_saves_states() -> None:
    for policy in ("luf_v10", "linux"):
        ours, named = (explore(alphabet_of("pair"), load_policy(policy), Limits(levels=7), symmetry=on) for on in (True, False))
        assert shortest(ours) == shortest(named)
        assert 3 * ours.coverage.states < named.coverage.states


def test_nothing_depends_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explore(alphabet_of("tiny"), load_policy("luf_naive"), Limits(levels=6))
    monkeypatch.setattr(successors, "NATIVE_BATCH", 50)
    monkeypatch.setattr(successors, "num_cores", lambda: 1)
    parts = explore(alphabet_of("tiny"), load_policy("luf_naive"), Limits(levels=6))
    assert parts.coverage.per_level == whole.coverage.per_level
    assert (parts.coverage.pairs == whole.coverage.pairs).all()
    assert (parts.samples == whole.samples).all()
    assert {(f.kind, len(f.entries)) for f in parts.findings} == {(f.kind, len(f.entries)) for f in whole.findings}


@pytest.mark.parametrize(("name", "policy", "levels"), [("tiny", "luf_naive", 6), ("pair", "luf_v10", 7), ("migrate", "luf_v12", 6)])
def test_nothing_depends_on_short_keys(name: str, policy: str, levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and rows of what varied so far, made wider when more does; in memory, and on disk with an interrupt."""
    whole = explore(alphabet_of(name), load_policy(policy), Limits(levels=levels))
    real, widened = exhaustive._Search._specialise, list[int]()

    def specialise(self: exhaustive._Search, varies: np.ndarray, level: storage.Level) -> storage.Level:
        widened.append(int(varies.sum()))
        return real(self, varies, level)

    monkeypatch.setattr(exhaustive, "SPECIALISE", 100)
    monkeypatch.setattr(exhaustive._Search, "_specialise", specialise)
    short = explore(alphabet_of(name), load_policy(policy), Limits(levels=levels), machine=whole.machine)
    explore(alphabet_of(name), load_policy(policy), Limits(levels=levels - 1), storage=Storage(tmp_path), machine=whole.machine)
    on_disk = explore(alphabet_of(name), load_policy(policy), Limits(levels=levels), storage=Storage(tmp_path), machine=whole.machine)
    assert len(widened) > 3, "keys were made shorter, and then wider again"
    assert widened[1] > widened[0]
    for result in (short, on_disk):
        assert result.coverage.per_level == whole.coverage.per_level
        assert (result.coverage.pairs == whole.coverage.pairs).all()
        assert result.coverage.violating == whole.coverage.violating
        assert result.findings == whole.findings


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    alphabet, policy = alphabet_of("tiny"), load_policy("luf_naive")
    whole = explore(alphabet, policy, Limits(levels=7))
    explore(alphabet, policy, Limits(levels=4), storage=Storage(tmp_path))
    (tmp_path / "next.bin").write_bytes(b"half a level")
    rest = explore(alphabet, policy, Limits(levels=7), storage=Storage(tmp_path))
    assert rest.findings == whole.findings
    assert rest.coverage.per_level == whole.coverage.per_level
    assert (rest.coverage.used == whole.coverage.used).all()
    assert rest.coverage.transitions == whole.coverage.transitions


def test_the_command_answers_with_scenarios_that_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explore", "policy=luf_naive", "levels=5", f"outputs={tmp_path}", "--json"]
    assert main(command) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [v["class"] for v in answer["violations"]].count("MAPPING") == 2
    assert answer["violations"][0]["length"] == 4
    assert answer["stopped"] == "levels"
    for violation in answer["violations"]:
        assert main(["scenario", violation["file"], "policy=luf_naive"]) == 0
        scenario = load_scenario(violation["file"])
        assert play(scenario, "luf_naive", policy_words("luf_naive"), build_oracle).holds
    capsys.readouterr()
    assert main(["explore", "policy=linux", "machine=pair", f"outputs={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "every reachable state" in out
    assert out.rstrip().endswith("answer: no violation in any order of any length of these events, on this machine")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected"), (["machine=tiny"], "policy: missing"), (["policy=linux", "machine=none"], "explore=none"),
        (["policy=linux", "states=0"], "states=0: allowed are integers from 1"),
        (["policy=linux", "mode=depth"], "mode=depth: allowed are exhaustive"),
        (["policy=latr"], "policy.gather_flush=ticks"), (["policy=linux", "colour=red"], "colour=red: no such key"),
        (["policy=linux_6_15", "policy.trim_period=999"], "policy.trim_period=999: the trim"),
        (["policy=linux", "symmetry=maybe"], "symmetry=maybe"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", *arguments, *([f"outputs={tmp_path}"] if arguments else [])]) == 2
    error = capsys.readouterr().err
    assert says in error or not arguments
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_used_events_are_counted() -> None:
    result = explore(alphabet_of("tiny"), load_policy("linux"), Limits(levels=4))
    assert result.coverage.used.sum() == result.coverage.transitions
    assert np.count_nonzero(result.coverage.used) == len(result.machine.alphabet.rows)


def test_wrong_input_removes_no_search_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["explore", "policy=luf_naive", "levels=3", f"outputs={tmp_path}"]
    assert main(command) == 0

    def refuse(*arguments: object, **named: object) -> None:
        raise ValueError("policy.trim_period=1: too short")

    monkeypatch.setattr("lufjax.search.answer.explore", refuse)
    assert main(command) == 2
    assert (next(tmp_path.iterdir()) / "checkpoint.json").exists()
