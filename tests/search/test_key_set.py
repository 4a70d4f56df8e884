"""The set of keys against Python's, with good and with useless hashes, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lufjax.search.key_set import KeySet


def check(keys: KeySet, batches: int) -> None:
    rng, known = np.random.default_rng(0), set()
    for number in range(batches):
        rows = rng.integers(0, 3 if number % 2 else 2, (rng.integers(0, 500), keys.words)).astype(np.uint64)
        expected = [i for i, row in enumerate(rows) if row.tobytes() not in known and not known.add(row.tobytes())]
        assert keys.add(rows).tolist() == expected
        assert keys.count == len(known)
        assert (keys.keys()[keys.count - len(expected) :] == rows[expected]).all()


def test_it_holds_what_a_set_holds() -> None:
    check(KeySet(80), 200)


def test_equal_hashes_do_not_make_keys_equal() -> None:
    keys = KeySet(40)
    keys._factors[:] = 0
    check(keys, 200)


def test_a_file_is_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.bin"
    first = KeySet(70, path)
    check(first, 100)
    count, rows = first.count, first.keys().copy()
    again = KeySet(70, path)
    again.restore(count - 10)
    assert again.add(rows).tolist() == list(range(count - 10, count))
    assert again.count == count


def test_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lufjax.search.key_set.START", 16)
    check(KeySet(72), 60)
