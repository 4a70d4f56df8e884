"""The working store of a run: Zarr arrays by group, one whole Zarr chunk per simulated chunk of lanes, and a mask of finished chunks.

A chunk's data is written first, its mark in ``done`` last, each through a rename; a run that is killed at any moment loses no finished
chunk, and writing a chunk again changes no byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from lufjax.counters import GAUGES, HISTOGRAMS, NUM_BUCKETS, NUM_CLASSES, SCALARS
from lufjax.sweeps.grid import DIMS, Group

COUNTERS: tuple[str, ...] = (*SCALARS, *GAUGES)
"""Order of the last axis of ``counters``."""


def array_specs(num_samples: int, num_cpus: int) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Name -> shape and dimensions, without the leading ``lane``."""
    return {
        "counters": ((num_samples, len(COUNTERS)), ("sample", "counter")),
        "histograms": ((num_samples, len(HISTOGRAMS), NUM_BUCKETS), ("sample", "histogram", "bucket")),
        "received": ((num_samples, num_cpus), ("sample", "cpu")),
        "violations": ((num_samples, NUM_CLASSES, 2), ("sample", "violation_class", "access")),
        "first_violation": ((NUM_CLASSES, 4), ("violation_class", "field")),
    }


def lane_bytes(num_samples: int, num_cpus: int) -> int:
    """Bytes of the results of one lane."""
    return 8 * sum(int(np.prod(shape)) for shape, _ in array_specs(num_samples, num_cpus).values())


class Store:
    """An open working store.

    Args:
        path: the directory ``store.zarr``.
    """

    def __init__(self, path: Path) -> None:
        self._root = zarr.open_group(str(path), mode="r+")
        self.chunk_lanes = cast(int, self._root.attrs["chunk_lanes"])

    @classmethod
    def create(cls, path: Path, groups: Sequence[Group], chunk_lanes: int, num_samples: int, attrs: dict[str, Any]) -> Store:
        """Lay out an empty store; it appears under its name complete or not at all."""
        draft = path.with_name(f"{path.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        about = {"chunk_lanes": chunk_lanes, "counter_names": list(COUNTERS), "axes": list(DIMS)}
        root = zarr.create_group(str(draft), attributes={**attrs, **about})
        for number, group in enumerate(groups):
            node = root.create_group(f"group_{number}", attributes={"num_cpus": group.shape.num_cpus})
            lanes = group.num_lanes
            for name, (shape, dims) in array_specs(num_samples, group.shape.num_cpus).items():
                chunks, names = (min(chunk_lanes, lanes), *shape), ("lane", *dims)
                node.create_array(name, shape=(lanes, *shape), chunks=chunks, dtype="int64", fill_value=-1, dimension_names=names)
            node.create_array("index", data=group.index, chunks=group.index.shape, dimension_names=("lane", "axis"))
            num_chunks = -(-lanes // chunk_lanes)
            node.create_array("done", shape=(num_chunks,), chunks=(1,), dtype="uint8", fill_value=0, dimension_names=("chunk",))
        os.replace(draft, path)
        return cls(path)

    @staticmethod
    def read_attrs(path: Path) -> dict[str, Any] | None:
        """Attributes of a store without opening its arrays; None where there is no store."""
        try:
            return json.loads((path / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError):
            return None

    def done(self, group: int) -> np.ndarray:
        """Mask of the finished chunks of a group, ``bool[num_chunks]``."""
        return np.asarray(self._array(group, "done")[:]) == 1

    def chunk_slice(self, group: int, chunk: int) -> slice:
        """Lanes of a chunk."""
        lanes = self._array(group, "index").shape[0]
        return slice(chunk * self.chunk_lanes, min((chunk + 1) * self.chunk_lanes, lanes))

    def write(self, group: int, chunk: int, values: dict[str, np.ndarray]) -> None:
        """Store the results of one chunk (arrays of :func:`array_specs`), then mark it done."""
        lanes = self.chunk_slice(group, chunk)
        for name, value in values.items():
            array = self._array(group, name)
            expected = (lanes.stop - lanes.start, *array.shape[1:])
            if value.shape != expected:
                raise ValueError(f"store: {name} of group {group}, chunk {chunk} has shape {value.shape}; expected {expected}")
            array[lanes] = value
        self._array(group, "done")[chunk] = 1

    def read(self, group: int) -> dict[str, np.ndarray]:
        """All arrays of a group; lanes of unfinished chunks hold -1."""
        return {name: np.asarray(self._array(group, name)[:]) for name in (*array_specs(1, 1), "index")}

    def _array(self, group: int, name: str) -> zarr.Array:
        return cast(zarr.Array, self._root[f"group_{group}/{name}"])

    @property
    def num_groups(self) -> int:
        """Groups of the run."""
        return sum(1 for name in self._root.group_keys() if name.startswith("group_"))
