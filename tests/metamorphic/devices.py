"""Run one small batch natively on 1, 2 and 4 cores, under XLA on 1, 2 and 4 devices, and by the emulated GPU program; print digests as JSON.

A process of its own, because the number of CPU devices is fixed when JAX starts. Loads, stores and reclaim only: a program with few phases
compiles faster; the differential tests run all of them under XLA.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from lufjax.backends.gpu import device
from lufjax.engine import Samples
from tests.contract.small_run import build_trace, flatten, small_run
from tests.gpu.emulated import EmulatedDevice

NUM_EVENTS = 1500
COUNTS = (1, 2, 4)
POLICIES = ("linux", "linux_6_15", "luf_v10", "fpr", "latr")


def digest(samples: Samples) -> str:
    """Hash of every number."""
    found = hashlib.sha256()
    for name, values in sorted(flatten(samples).items()):
        found.update(name.encode() + np.ascontiguousarray(values.astype(np.int64)).tobytes())
    return found.hexdigest()


def main() -> None:
    """Print the digests."""
    run = small_run([build_trace("llm", 3, 0, NUM_EVENTS, file_pages=96, layer_pages=12, tick_period=0)], POLICIES)
    points = [NUM_EVENTS // 2, NUM_EVENTS]
    digests = {}
    for num_devices in COUNTS:
        for backend, block_lanes in (("native", 1), ("xla", 2)):
            samples = run.samples(points, backend=backend, num_devices=num_devices, block_lanes=block_lanes)
            digests[f"{backend} {num_devices}"] = digest(samples)
    device.open_device = EmulatedDevice
    digests["cuda"] = digest(run.samples(points, backend="cuda"))
    for backend in ("native", "xla", "cuda"):
        digests[f"{backend} stripped"] = digest(run.samples(points, backend=backend, num_devices=1, block_lanes=2, strip=True))
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
