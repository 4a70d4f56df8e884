"""The checker, one condition left out at a time: a verdict of a shipped scenario changes for each."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lufjax.backends import native
from lufjax.events import Op, Violation
from lufjax.phases import atomic, fetch
from lufjax.phases.fetch import Facts, classes_of
from lufjax.presets import config_dir, preset_names
from lufjax.scenarios.matrix import policies_of, violations_after
from lufjax.scenarios.scenario_file import load_scenario

SCENARIOS = [load_scenario(path) for path in sorted((config_dir() / "scenario").glob("*.yaml"))]
LANES = [(i, policy) for i, scenario in enumerate(SCENARIOS) for policy in policies_of(scenario, preset_names("policy"))]
CLASSES = [kind for kind in Violation if kind is not Violation.ATOMIC_FLUSH]


@pytest.fixture(scope="module")
def judged() -> tuple[np.ndarray, Facts]:
    """Every stale access of every scenario under every policy: its lane, and the facts that the engine judges it by."""
    names = [name for name in Facts._fields if name != "is_store"]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "compile_program", native.compile_program.__wrapped__)
        for first in range(0, len(names), 5):
            own = names[first : first + 5]
            patch.setattr(fetch, "classes_of", lambda facts, own=own: _shown(facts, own))
            counted = violations_after(SCENARIOS, LANES, every_event=True).sum(-1)
            new = np.diff(counted, axis=1, prepend=0) > 0
            found |= {"is_stale": new[..., 0]} | {name: new[..., 1 + i] for i, name in enumerate(own)}
    ops = np.full((len(LANES), found["is_stale"].shape[1]), int(Op.NOP))
    for lane, (i, _) in enumerate(LANES):
        ops[lane, : SCENARIOS[i].trace.num_events] = SCENARIOS[i].trace.events[:, 1]
    lane, at = np.nonzero(found["is_stale"] & np.isin(ops, (Op.LOAD, Op.STORE)))
    return lane, Facts(**{name: found[name][lane, at] for name in names}, is_store=ops[lane, at] == Op.STORE)


def _shown(facts: Facts, names: list[str]) -> jnp.ndarray:
    """The facts in place of the classes, after one that always holds."""
    shown = [jnp.ones_like(facts.is_store), *(getattr(facts, name) for name in names)]
    return jnp.stack([*shown, *[jnp.zeros_like(facts.is_store)] * (len(Violation) - len(shown))])


def verdicts(lane: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """``bool[lanes, classes]``: which occurred."""
    found = np.zeros((len(LANES), len(CLASSES)), bool)
    for kind in CLASSES:
        found[lane[classes[kind]], kind] = True
    return found


def conditions() -> list[tuple[Violation, str, bool]]:
    """Each fact that a class depends on, and each value of it that, taken for granted, would change the class somewhere."""
    every = Facts(*np.array(list(itertools.product((False, True), repeat=len(Facts._fields)))).T)
    whole = np.asarray(classes_of(every))
    found = itertools.product(CLASSES, Facts._fields, (False, True))
    return [(kind, name, value) for kind, name, value in found if (granted(every, name, value)[kind] != whole[kind]).any()]


def granted(facts: Facts, name: str, value: bool) -> np.ndarray:
    """``bool[classes, n]`` of a checker that takes one fact for granted."""
    return np.asarray(classes_of(facts._replace(**{name: np.full_like(facts.is_store, value)})))


NEVER_MATTERS = {(kind, name, True) for kind in (Violation.LOST_STORE, Violation.OLD_VALUE) for name in ("is_mapped", "is_backed")}
"""Where the promise is that nothing is mapped, it has advanced since any entry of the page was filled, so that the page is not named anyway. Where
the page is not backed a call is in progress that drops it; in litmus files, whose calls have no beginning, it is not (tests/litmus)."""


def test_the_facts_give_the_verdicts_that_the_files_expect(judged: tuple[np.ndarray, Facts]) -> None:
    lane, facts = judged
    expected = [[kind.name in SCENARIOS[i].expected(policy) for kind in CLASSES] for i, policy in LANES]
    assert (verdicts(lane, np.asarray(classes_of(facts))) == np.array(expected)).all()
    assert set(CLASSES) == {kind for kind in CLASSES if any(row[kind] for row in expected)}


@pytest.mark.parametrize(("kind", "name", "value"), conditions(), ids=lambda value: str(value))
def test_a_condition_that_is_left_out_changes_a_verdict(judged: tuple[np.ndarray, Facts], kind: Violation, name: str, value: bool) -> None:
    lane, facts = judged
    whole = np.asarray(classes_of(facts))
    weak = whole.copy()
    weak[kind] = granted(facts, name, value)[kind]
    changes = (verdicts(lane, weak) != verdicts(lane, whole)).any()
    assert changes == ((kind, name, value) not in NEVER_MATTERS)
    assert changes or (facts.advanced | facts.is_mapped if name == "is_mapped" else facts.is_backed | facts.is_dropped | facts.advanced).all()


@pytest.mark.parametrize("always", [True, False])
def test_a_checker_of_atomic_allocations_that_does_not_look_fails(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = [i for i, scenario in enumerate(SCENARIOS) if scenario.name == "atomic_alloc"]
    lanes = [lane for lane in LANES if lane[0] == own]
    monkeypatch.setattr(native, "compile_program", native.compile_program.__wrapped__)
    monkeypatch.setattr(atomic, "has_waited", lambda m: jnp.bool_(always))
    counted = violations_after([SCENARIOS[own]], [(0, policy) for _, policy in lanes], every_event=False)[:, -1, Violation.ATOMIC_FLUSH].sum(-1)
    expected = [Violation.ATOMIC_FLUSH.name in SCENARIOS[own].expected(policy) for _, policy in lanes]
    assert ((counted > 0) != np.array(expected)).any()
