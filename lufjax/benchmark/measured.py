"""Where measurements of speed go: a directory of their own with ``results.nc``, which says how it came about, and figures; and what memory can do."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lufjax import __version__, provenance
from lufjax.backends.gpu import device
from lufjax.results.plots import save_figure
from lufjax.results.style import figure_style

RESULTS = "results.nc"
STREAM_BYTES = 128 * 2**20
"""Of each of the three arrays of a thread: more than a cache holds."""


def write(ds: xr.Dataset, parent: Path, title: str, figures: Mapping[str, Any]) -> Path:
    """Write a data set and its figures to a new directory below ``parent``.

    Args:
        figures: by file name without suffix, functions without arguments that draw.

    Returns:
        The directory.
    """
    facts = provenance.environment()
    attrs = {
        "Conventions": "CF-1.11", "title": title, "source": f"lufjax {__version__}", "history": f"{facts['ended']} {facts['command']}",
        "references": "docs/PERFORMANCE.md of lufjax", "provenance_json": json.dumps(facts, sort_keys=True),
    }  # fmt: skip
    folder = parent / f"{provenance.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    ds.assign_attrs(attrs).to_netcdf(folder / RESULTS, engine="h5netcdf")
    with figure_style():
        for name, draw in figures.items():
            figure: Figure = draw()
            save_figure(figure, {}, folder / name)
    return folder


def stream_bandwidth(threads: int, repeats: int = 5) -> float:
    """Bytes per second that the memory moves for ``a = b + c`` on large arrays, with as many threads; the best of the repeats.

    The two arrays read and the one written are counted, as STREAM counts; what a cache reads before it is written over is not.
    """
    count = STREAM_BYTES // 4
    arrays = [[np.ones(count, np.int32) for _ in range(3)] for _ in range(threads)]

    def add(thread: int) -> None:
        np.add(arrays[thread][1], arrays[thread][2], out=arrays[thread][0])

    best = np.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            list(pool.map(add, range(threads)))
            best = min(best, time.perf_counter() - begin)
    return threads * 3 * STREAM_BYTES / best


def device_bandwidth(backend: str, repeats: int = 5) -> float:
    """The same for ``b = a + 1``, and for ``b = a`` with ``cuda``, on the accelerator of the backend: one array is read, one written."""
    if backend == "cuda":
        gpu = device.open_device()
        a, b = (gpu.empty((STREAM_BYTES,)) for _ in range(2))

        def add() -> None:
            gpu.copy(a, b)
    else:
        a, program = jax.device_put(np.ones(STREAM_BYTES, np.int32)), jax.jit(lambda a: a + 1)

        def add() -> None:
            program(a).block_until_ready()

    best = np.inf
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        add()
        best = min(best, time.perf_counter() - begin)
    return 2 * a.nbytes / best
