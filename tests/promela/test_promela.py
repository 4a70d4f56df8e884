"""A model of the machine in another language, searched by another program, gives the same verdicts, lengths, states and transitions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from lufjax.presets import load_policy, policy_words
from lufjax.search.alphabet import load_alphabet
from lufjax.search.exhaustive import Coverage, Limits, explore
from tests.promela import spin

pytestmark = pytest.mark.skipif(bool(spin.missing()), reason=f"not installed: {spin.missing()}")
SMALL = load_alphabet(Path(__file__).with_name("small.yaml"))
STAMPED = "luf_naive+debt_merge:per_frame+targets:uncovered+credit:batch_and_mm+munmap_debt_rule:pending"
POLICIES = ("linux", "eager", "luf_naive", "luf_v10", "luf_vma_flag", "luf_pte_marker", STAMPED)


@cache
def ours(policy: str) -> tuple[dict[str, int], Coverage]:
    """Class -> shortest length, and what was covered, of every named state."""
    result = explore(SMALL, load_policy(policy), Limits(), symmetry=False)
    assert result.coverage.exhausted
    shortest: dict[str, int] = {}
    for finding in result.findings:
        shortest.setdefault(finding.kind, len(finding.entries))
    return shortest, result.coverage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    """Policy -> what SPIN finds."""

    @cache
    def searched(policy: str, *, unread: bool = True) -> spin.Outcome:
        return spin.run(spin.build(SMALL, policy_words(policy), tmp_path_factory.mktemp("spin"), unread=unread))

    return searched


@pytest.mark.parametrize("policy", POLICIES)
def test_verdicts_and_shortest_lengths(policy: str, model) -> None:
    assert ours(policy)[0] == model(policy).shortest


@pytest.mark.parametrize("policy", POLICIES)
def test_states_and_transitions(policy: str, model) -> None:
    coverage, other = ours(policy)[1], model(policy)
    assert (coverage.states, coverage.transitions, coverage.violating) == (other.states, other.transitions, other.violating)
    assert coverage.levels == other.depth + 1


def test_what_no_event_reads_changes_no_verdict(model) -> None:
    """SPIN leaves it out by itself: the order of foreign frames, which debts are covered, which entries of the batch are deferred."""
    whole, read = model("luf_naive"), model("luf_naive", unread=False)
    assert read.shortest == whole.shortest
    assert read.states < whole.states


def test_the_model_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy\.reclaim_flush=owner: tiny\.pml has never, page, batch, take_off"):
        spin.build(SMALL, policy_words("fpr"), tmp_path)
    with pytest.raises(ValueError, match=r"tiny\.pml has one process, one tier, shared file mappings"):
        spin.build(load_alphabet(Path(__file__).parents[2] / "conf/explore/private.yaml"), policy_words("linux"), tmp_path)
    with pytest.raises(ValueError, match=r"event \[\[2, 10, 0, 1, 0\]\]: not in tiny\.pml"):
        spin.build(load_alphabet(Path(__file__).parents[2] / "conf/explore/drained.yaml"), policy_words("linux"), tmp_path)
