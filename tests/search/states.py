"""Shipped machines of searches, and states of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lufjax.presets import config_dir
from lufjax.search.alphabet import Alphabet, load_alphabet
from lufjax.search.successors import Machine

SEQUENCES, LENGTH = 256, 24


def alphabet_of(name: str) -> Alphabet:
    """A shipped machine."""
    return load_alphabet(config_dir() / "explore" / f"{name}.yaml")


def random_states(machine: Machine, seed: int) -> Iterator[np.ndarray]:
    """Rows of many machines after each event of random sequences; those that violated, or whose event was not enabled, stay where they were."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(machine.start, SEQUENCES, axis=0)
    for _ in range(LENGTH):
        yield rows
        batch = machine.after(rows, np.arange(len(rows)), rng.integers(0, len(machine.alphabet.rows), len(rows)))
        rows = rows.copy()
        rows[batch.kept] = batch.rows
