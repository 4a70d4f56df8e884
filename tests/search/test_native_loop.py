"""The native loop leaves out what a set holds, and nothing else, also while the set grows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lufjax.presets import config_dir, load_policy
from lufjax.search.alphabet import load_alphabet
from lufjax.search.expander import Batch
from lufjax.search.hashing import Seen
from lufjax.search.key_set import KeySet
from lufjax.search.native_loop import WAITING, _pieces, _runs
from lufjax.search.successors import Machine


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(load_alphabet(config_dir() / "explore" / "tiny.yaml"), load_policy("luf_v10"), 10, symmetry=False)


def follow(machine: Machine, rows: np.ndarray, seen: Seen | None = None) -> Batch:
    n = len(machine.alphabet.rows)
    return machine.after(rows, np.repeat(np.arange(len(rows)), n), np.tile(np.arange(n), len(rows)), every=False, seen=seen)


def check(found: Batch, every: Batch, dropped: np.ndarray) -> None:
    left = np.flatnonzero(~dropped)
    assert (found.kept == every.kept[left]).all()
    assert (found.keys == every.keys[left]).all()
    assert (found.rows == every.take(left)).all()
    assert (found.outcomes == every.outcomes).all()
    assert (found.pairs == every.pairs).all()


@pytest.mark.parametrize("useless_hash", [False, True])
def test_it_leaves_out_what_a_set_holds(machine: Machine, useless_hash: bool) -> None:
    rows = follow(machine, follow(machine, machine.start).rows.copy()).rows.copy()
    every = follow(machine, rows)
    assert len(every.kept) > 4 * WAITING
    keys, chosen = KeySet(machine.key_width), np.random.default_rng(0).random(len(every.kept)) < 0.5
    if useless_hash:
        keys._factors[:] = 0
    keys.add(every.keys[chosen])
    known = {key.tobytes() for key in every.keys[chosen]}
    dropped = np.array([key.tobytes() in known for key in every.keys])
    assert dropped.any()
    assert not dropped.all()
    before = keys.seen
    check(follow(machine, rows, before), every, dropped)
    keys.add(every.keys)
    check(follow(machine, rows, before), every, dropped)
    check(follow(machine, rows, keys.seen), every, np.ones_like(dropped))


def test_stretches_cover_a_row() -> None:
    index = np.array([0, 1, 2, 5, 7, 8, 9, 10, 30], np.int32)
    runs = _runs(index)
    assert [place for target, _, length in runs for place in range(target, target + length)] == index.tolist()
    assert [place for _, first, length in runs for place in range(first, first + length)] == list(range(len(index)))
    for length in range(1, 70):
        pieces = list(_pieces(length))
        assert sum(count for _, count in pieces) == length
        assert pieces[0][0] == 0
        assert all(first + count == following for (first, count), (following, _) in pairwise(pieces))
