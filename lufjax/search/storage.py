"""Where a search keeps its states: in memory, or in a directory from which an interrupted search goes on at its last finished level."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

STEP = np.dtype([("state", np.int64), ("entry", np.int32)])
"""How a state was reached first: from which state, by which entry."""
STEPS, NEXT, CHECKPOINT = "steps.bin", "next.bin", "checkpoint.json"
SMALL = 512
"""Rows below which a block is put together with the next."""


class Level:
    """States that are followed together: blocks of rows, and the entry by which each was reached (-1 for the start).

    Args:
        form: what makes the rows that are handed out from those in the blocks.
    """

    def __init__(self, blocks: list[np.ndarray], last: np.ndarray, form: Callable[[np.ndarray], np.ndarray] = np.asarray) -> None:
        self._blocks, self._last, self._form = blocks, last, form

    def in_form(self, form: Callable[[np.ndarray], np.ndarray]) -> Level:
        """The same states in rows that are made of those of this level."""
        return Level(self._blocks, self._last, lambda rows: form(self._form(rows)))

    def __len__(self) -> int:
        return len(self._last)

    def parts(self, most: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number of the first state, rows and last entries of up to ``most`` states at a time."""
        first = 0
        for block in self._blocks:
            for start in range(0, len(block), most):
                rows = block[start : start + most]
                yield first + start, self._form(rows), self._last[first + start : first + start + len(rows)]
            first += len(block)

    def sample(self, most: int) -> np.ndarray:
        """Rows of all over the level, the same ones whatever its blocks."""
        numbers, first, found = np.arange(0, len(self), max(1, len(self) // most))[:most], 0, []
        for block in self._blocks:
            found.append(block[numbers[(numbers >= first) & (numbers < first + len(block))] - first])
            first += len(block)
        return self._form(np.concatenate(found))


class Storage:
    """Levels and paths of one search.

    Args:
        directory: made by the caller; None keeps everything in memory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._steps = [np.zeros(0, STEP)]

    def keys_path(self, form: int) -> Path | None:
        """File for the keys in their ``form``-th form."""
        return None if self._directory is None else self._directory / f"keys_{form}.bin"

    def writer(self) -> LevelWriter:
        """A level that is about to be found."""
        return LevelWriter(None if self._directory is None else self._directory / NEXT)

    def steps(self) -> np.ndarray:
        """How each state but the first was reached."""
        self._steps = [np.concatenate(self._steps)]
        return self._steps[0]

    def path(self, state: int) -> tuple[int, ...]:
        """Entries from the start to a state."""
        steps, found = self.steps(), []
        while state:
            found.append(int(steps["entry"][state - 1]))
            state = int(steps["state"][state - 1])
        return tuple(reversed(found))

    def save(self, level: LevelWriter, facts: Mapping[str, Any]) -> Level:
        """A finished level: it and ``facts`` are what a later search goes on from."""
        blocks, steps = level.close()
        self._steps.append(steps)
        if self._directory is None:
            return Level(blocks, steps["entry"])
        number = facts["coverage"]["levels"]
        with open(self._directory / STEPS, "r+b" if number > 1 else "wb") as file:
            file.seek(STEP.itemsize * (facts["coverage"]["states"] - 1 - len(steps)))
            steps.tofile(file)
        os.replace(self._directory / NEXT, self._directory / f"level_{number}.bin")
        draft = self._directory / f"{CHECKPOINT}.draft"
        draft.write_text(json.dumps(dict(facts)))
        os.replace(draft, self._directory / CHECKPOINT)
        (self._directory / f"level_{number - 1}.bin").unlink(missing_ok=True)
        for path in self._directory.glob("keys_*.bin"):
            if path != self.keys_path(facts["form"]):
                path.unlink()
        return Level(blocks, steps["entry"])

    def clear(self) -> None:
        """Remove what a later search would go on from."""
        if self._directory is not None:
            for path in [*(self._directory / name for name in (STEPS, NEXT, CHECKPOINT)), *self._directory.glob("*_*.bin")]:
                path.unlink(missing_ok=True)

    def facts(self) -> dict[str, Any] | None:
        """What was saved with the last finished level, if there is one."""
        if self._directory is None or not (self._directory / CHECKPOINT).exists():
            return None
        return json.loads((self._directory / CHECKPOINT).read_text())

    def load(self, facts: Mapping[str, Any], width: int) -> Level:
        """The states of the last finished level, with ``width`` elements in a row."""
        assert self._directory is not None
        steps = np.fromfile(self._directory / STEPS, STEP, facts["coverage"]["states"] - 1)
        self._steps = [steps]
        rows = _rows(self._directory / f"level_{facts['coverage']['levels']}.bin", width)
        return Level([rows], steps["entry"][len(steps) - len(rows) :])


class LevelWriter:
    """Rows of new states and how they were reached, in the order of their numbers."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._file = path, None if path is None else path.open("wb")
        self._rows: list[np.ndarray] = []
        self._steps: list[np.ndarray] = [np.zeros(0, STEP)]
        self._width = 0

    def drop(self) -> None:
        """Not to be finished."""
        if self._file is not None:
            self._file.close()

    def add(self, rows: np.ndarray, states: np.ndarray, entries: np.ndarray) -> None:
        """More states."""
        self._width = rows.shape[1]
        if self._file is None and len(self._rows) and len(self._rows[-1]) < SMALL:
            self._rows[-1] = np.concatenate([self._rows[-1], rows])
        elif self._file is None:
            self._rows.append(rows)
        else:
            rows.tofile(self._file)
        steps = np.empty(len(rows), STEP)
        steps["state"], steps["entry"] = states, entries
        self._steps.append(steps)

    def close(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Blocks of rows, and steps."""
        steps = np.concatenate(self._steps)
        if self._file is None or self._path is None:
            return self._rows, steps
        self._file.close()
        return [_rows(self._path, self._width)], steps


def _rows(path: Path, width: int) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros((0, width), np.int32)
    return np.memmap(path, np.int32, "r").reshape(-1, width)
