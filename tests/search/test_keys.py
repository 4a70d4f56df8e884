"""States with equal keys allow the same events, with the same verdicts, and lead to equal keys."""

from __future__ import annotations

import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lufjax.policy import CHOICES, FlushPolicy
from lufjax.presets import config_dir, load_policy
from lufjax.search import keys, symmetry
from lufjax.search.alphabet import load_alphabet
from lufjax.search.expander import Batch
from lufjax.search.successors import Machine, Strayed
from tests.oracle.policies import random_policy
from tests.search.states import LENGTH, alphabet_of, random_states

MACHINES = sorted(path.stem for path in (config_dir() / "explore").glob("*.yaml") if path.stem != "small")
"""All but the one for random search: a key of it takes long to compile and is never used."""
POLICIES = ("linux", "luf_naive", "luf_v10", "linux_6_15", "luf_vma_flag", "luf_pte_marker", "fpr", "never")
NAMED = ("pair", "private", "processes", "tiny")
"""Machines whose states are looked at without symmetry too."""
PAIRS = 20


def outcomes(batch: Batch) -> list[tuple[int, bytes]]:
    """What each event leads to: its outcome, and the key of the state after it if there is one."""
    keys = {int(number): key.tobytes() for number, key in zip(batch.kept, batch.keys, strict=True)}
    return [(int(outcome), keys.get(number, b"")) for number, outcome in enumerate(batch.outcomes)]


def twins(machine: Machine, seed: int) -> list[np.ndarray]:
    """Pairs of different states with one key, one after the other; from all over the sequences."""
    met: dict[bytes, np.ndarray] = {}
    found: list[np.ndarray] = []
    for rows in random_states(machine, seed):
        own = 0
        for key, row in zip(machine.keys(rows), rows, strict=True):
            first = met.setdefault(key.tobytes(), row)
            if own < PAIRS and not (first == row).all():
                found += [first, row]
                own += 1
    return found


def disagreements(machine: Machine, seed: int) -> tuple[int, int]:
    """Pairs of different states with one key that were looked at, and those of them whose events end differently."""
    n, pairs = len(machine.alphabet.rows), np.array(twins(machine, seed))
    ends = outcomes(machine.after(pairs, np.repeat(np.arange(len(pairs)), n), np.tile(np.arange(n), len(pairs))))
    every = [sorted(ends[first : first + n]) for first in range(0, len(ends), n)]
    return len(pairs) // 2, sum(a != b for a, b in zip(every[::2], every[1::2], strict=True))


@pytest.mark.parametrize(
    ("name", "reduced"), [*((name, True) for name in MACHINES), *((name, False) for name in NAMED)], ids=lambda value: str(value)
)
def test_equal_keys_have_equal_futures(name: str, reduced: bool) -> None:
    alphabet = alphabet_of(name)
    machine = Machine(alphabet, load_policy(POLICIES[0]), LENGTH + 2, symmetry=reduced)
    for seed, policy in enumerate(POLICIES):
        pairs, wrong = disagreements(machine.with_policy(load_policy(policy)), seed)
        assert pairs > 100
        assert not wrong, policy


@pytest.mark.parametrize("name", ["tiny", "pair", "fork", "migrate"])
def test_what_is_left_out_as_unchanged_has_the_key_of_the_state_before(name: str) -> None:
    machine = Machine(alphabet_of(name), load_policy("luf_v10"), LENGTH + 2, symmetry=True)
    rng, left_out = np.random.default_rng(3), 0
    for rows in random_states(machine, 3):
        which, entries = np.arange(len(rows)), rng.integers(0, len(machine.alphabet.rows), len(rows))
        whole, changed = machine.after(rows, which, entries), machine.after(rows, which, entries, every=False)
        assert (whole.outcomes == changed.outcomes).all()
        is_changed = np.isin(whole.kept, changed.kept)
        assert (whole.kept[is_changed] == changed.kept).all()
        assert (whole.rows[is_changed] == changed.rows).all()
        assert (whole.keys[~is_changed] == machine.keys(rows)[whole.kept[~is_changed]]).all()
        left_out += int((~is_changed).sum())
    assert left_out > 100


def test_an_element_that_was_held_to_be_fixed_is_found_out() -> None:
    machine = Machine(alphabet_of("tiny"), load_policy("luf_v10"), LENGTH + 2, symmetry=True)
    met = np.concatenate(list(random_states(machine, 4)))
    varies = (met != machine.start).any(0)
    short = machine.with_varying(varies)
    assert short.key_width < machine.key_width
    assert (short.keys_from(machine, machine.keys(met)) == short.keys(short.rows_of(met))).all()
    assert (machine.keys_from(short, short.keys(short.rows_of(met))) == machine.keys(met)).all()
    frames = machine.column("frame")
    fewer = varies.copy()
    fewer[frames] = False
    with pytest.raises(Strayed):
        machine.with_varying(fewer).rows_of(met)
    n = len(machine.alphabet.rows)
    with pytest.raises(Strayed):
        machine.with_varying(fewer).after(machine.with_varying(fewer).start, np.zeros(n), np.arange(n))


def test_a_policy_of_random_rules_has_them_too() -> None:
    rng = random.Random(0)
    for seed in range(5):
        policy = FlushPolicy(**random_policy(rng, 4) | {"trim_period": 2**30})
        policy = policy._replace(gather_flush=policy.gather_flush % CHOICES["gather_flush"].index("ticks"))
        assert not disagreements(Machine(alphabet_of("tiny"), policy, LENGTH + 2, symmetry=True), seed)[1], policy


def test_a_key_without_the_tlbs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = keys._tlb
    monkeypatch.setattr(keys, "_tlb", lambda *arguments: [jnp.zeros_like(part) for part in real(*arguments)])
    assert disagreements(Machine(alphabet_of("tiny"), load_policy("luf_v10"), LENGTH + 2, symmetry=False), 1)[1]


def test_a_key_that_confuses_the_tiers_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = keys._names
    monkeypatch.setattr(keys, "_names", lambda count, places, split=0: real(count, places))
    assert disagreements(Machine(alphabet_of("migrate"), load_policy("luf_v10"), LENGTH + 2, symmetry=True), 1)[1]


@pytest.mark.parametrize("name", MACHINES)
def test_a_renamed_sequence_ends_in_the_same_state(name: str) -> None:
    alphabet = alphabet_of(name)
    machine = Machine(alphabet, load_policy("luf_v10"), LENGTH + 2, symmetry=True)
    number = {rows.tobytes(): entry for entry, rows in enumerate(alphabet.rows)}
    rng = np.random.default_rng(5)
    for renaming in symmetry.renamings(alphabet):
        image = np.array([number[symmetry.renamed_rows(rows, renaming).tobytes()] for rows in alphabet.rows])
        ours = np.repeat(machine.start, 256, axis=0)
        theirs = ours.copy()
        for _ in range(LENGTH):
            entries = rng.integers(0, len(alphabet.rows), len(ours))
            own = np.arange(len(ours))
            a, b = machine.after(ours, own, entries), machine.after(theirs, own, image[entries])
            assert outcomes(a) == outcomes(b)
            ours, theirs = ours[a.outcomes <= 0], theirs[b.outcomes <= 0]
            kept = np.searchsorted(np.flatnonzero(a.outcomes <= 0), a.kept)
            ours[kept], theirs[kept] = a.rows, b.rows


def test_pair_has_four_renamings() -> None:
    assert len(symmetry.renamings(alphabet_of("pair"))) == 4
    assert len(symmetry.renamings(alphabet_of("tiny"))) == 1


def test_a_bounded_tlb_keeps_its_order_of_use(tmp_path: Path) -> None:
    text = (config_dir() / "explore" / "pair.yaml").read_text()
    path = tmp_path / "evicts.yaml"
    path.write_text(text.replace("num_vpns: 2", "num_vpns: 2, l1: {sets: 1, ways: 1}, l2: {sets: 1, ways: 1}"))
    machine = Machine(load_alphabet(path), load_policy("luf_v10"), LENGTH + 2, symmetry=True)
    pairs, wrong = disagreements(machine, 0)
    assert pairs > 100
    assert not wrong
