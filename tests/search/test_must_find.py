"""What the search must find with nothing but a machine and a policy: every hole that is known, and none in what is safe."""

from __future__ import annotations

import json

import pytest

from lufjax.cli import main
from lufjax.policy import from_words
from lufjax.presets import config_dir, policy_words
from lufjax.search.ablation import NEVER, OPEN, ablate
from lufjax.search.alphabet import load_alphabet
from lufjax.search.exhaustive import Limits, Result, explore
from lufjax.search.hazards import hazard_of, is_bounded
from lufjax.search.rules import deciding_rules

MUST_FIND = [
    ("luf_naive", "tiny", "H1", "MAPPING", 5),
    ("luf_naive", "tiny", "H2", "MAPPING", 4),
    ("never", "allocator", "H12", "REUSE", 5),
    ("luf_v10", "tiny", "H3", "OLD_VALUE", 5),
    ("luf_v10", "tiny", "H5", "OLD_VALUE", 5),
    ("luf_v10", "tiny", "H7", "OLD_VALUE", 5),
    ("luf_v10", "files", "H4", "OLD_VALUE", 4),
    ("luf_v10", "windows", "H14", "ATOMIC_FLUSH", 4),
    ("luf_v10_as_posted", "allocator", "H12", "REUSE", 5),
    ("luf_v11", "tiny", "H5", "OLD_VALUE", 5),
    ("luf_v11", "tiny", "H7", "OLD_VALUE", 5),
    ("luf_v11", "windows", "H14", "ATOMIC_FLUSH", 4),
    ("luf_v10", "migrate", "H3", "OLD_VALUE", 4),
    ("luf_v11", "migrate", "H7", "OLD_VALUE", 4),
    ("linux+migrate_flush:off", "migrate", "", "LOST_STORE", 3),
    ("linux+gather_flush:none", "fork", "", "PERMISSION", 4),
    ("linux+cow_flush:off", "fork", "H7", "OLD_VALUE", 5),
    ("luf_v12", "windows", "H17", "OLD_VALUE", 6),
    ("luf_v10+refill_tag:task", "allocator", "H21", "REUSE", 7),
]
"""Policy, machine, objection, class, events of the shortest sequence."""
SAFE = ["eager", "linux", "luf_v12+write_fault_flush:before"]
MACHINES = ["tiny", "pair", "windows", "files", "migrate", "fork"]


def search(policy: str, machine: str, states: int = 12_000, **more: bool) -> tuple[Result, dict[tuple[str, str], int], list[bool]]:
    """The result, the length of the shortest sequence by class and objection, and whether each finding lies before a flush of the batch."""
    alphabet = load_alphabet(config_dir() / "explore" / f"{machine}.yaml")
    result = explore(alphabet, from_words(policy_words(policy)), Limits(states=states, **more))
    found: dict[tuple[str, str], int] = {}
    rows = [[alphabet.rows[entry] for entry in finding.entries] for finding in result.findings]
    for finding, own in zip(result.findings, rows, strict=True):
        found.setdefault((finding.kind, hazard_of(finding.kind, own)), len(own))
    return result, found, [is_bounded(own) for own in rows]


@pytest.mark.parametrize(("policy", "machine", "hazard", "kind", "length"), MUST_FIND)
def test_it_finds(policy: str, machine: str, hazard: str, kind: str, length: int) -> None:
    assert search(policy, machine)[1].get((kind, hazard)) == length


def test_v11_flushes_at_write_but_v10_does_not() -> None:
    assert ("OLD_VALUE", "H3") not in search("luf_v11", "tiny", 60_000)[1]


def test_generations_of_two_bits_wrap() -> None:
    _, found, _ = search("luf_v10+gen_bits:2+buddy_merge:newest", "generations", 10**7, until_violation=True)
    assert found == {("REUSE", "H12"): 10}


@pytest.mark.parametrize("machine", ["tiny", "drained"])
def test_the_window_of_linux_itself_is_bounded_by_the_flush_of_its_batch(machine: str) -> None:
    result, found, bounded = search("linux+reclaim_remove:before_flush", machine, 10**6)
    assert result.coverage.exhausted
    assert {kind for kind, _ in found} == {"OLD_VALUE"}
    assert all(bounded)
    assert not all(search("luf_v10", machine)[2])


@pytest.mark.parametrize("policy", ["linux", "eager", "luf_v12"])
def test_nothing_falls_between_the_flush_and_the_frees_of_a_batch(policy: str) -> None:
    result, found, _ = search(policy, "drained", 10**6)
    assert result.coverage.exhausted
    assert not found


@pytest.mark.parametrize("policy", SAFE)
@pytest.mark.parametrize("machine", MACHINES)
def test_safe_policies_show_nothing(policy: str, machine: str) -> None:
    assert not search(policy, machine, 60_000)[1]


def test_ablation_names_the_rules_that_close_something() -> None:
    alphabets = [load_alphabet(config_dir() / "explore" / f"{name}.yaml") for name in ("windows", "pair")]
    base, found = ablate(alphabets, policy_words("luf_v12", {"write_fault_flush": "before"}), 6000)
    assert not any(result.findings for result in base.values())
    by = {(a.rule, a.word): a for a in found}
    assert by["write_fault_flush", "after"].hazard == "H17"
    assert by["atomic_alloc", "flush"].outcome == "ATOMIC_FLUSH"
    assert by["flush_dirty", "off"].outcome == "LOST_STORE"
    assert by["transport", "broadcast"].outcome == NEVER
    assert by["absorb", "on"].outcome in (NEVER, OPEN)
    assert by["gen_bits", 2].outcome == OPEN


def test_a_number_decides_something_too() -> None:
    alphabet, policy = load_alphabet(config_dir() / "explore" / "tiny.yaml"), from_words(policy_words("linux"))
    result = explore(alphabet, policy, Limits(states=2000))
    assert deciding_rules(result.machine, policy, result.samples)["flush_ceiling"] == [0]


def test_the_ablate_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "policy=linux", "machine=pair", "states=500", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    by = {(a["rule"], a["word"]): a["outcome"] for a in answer["ablations"]}
    assert answer["base"] == {"pair": []}
    assert by["flush_dirty", "off"] == "LOST_STORE"
    assert ("gather_flush", "ticks") not in by
    assert main(["ablate", "policy=linux", "machine=pair"]) == 0
    assert "flush_dirty=off: cpu0: store 0" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "says"), [(["machine=tiny"], "policy: missing"), (["policy=linux", "states=many"], "states=many: allowed")])
def test_wrong_input_to_ablate_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
