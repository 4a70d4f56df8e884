"""The reference simulator behind the interface that scenarios step."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from lufjax.params import MachineParams, MachineShape
from lufjax.trace import Trace
from tests.oracle import Oracle


def build_oracle(shape: MachineShape, params: MachineParams, trace: Trace) -> Oracle:
    """A reference simulator of the compiled sizes, with the trace padded to them as the engine pads it."""
    numbers = params._asdict()
    policy = numbers.pop("policy")._asdict()
    pages = ((0, shape.num_processes - trace.num_processes), (0, shape.num_vpns - trace.num_vpns))
    initial = {
        "vmas": np.pad(trace.vmas, (0, shape.num_vmas - len(trace.vmas))).tolist(),
        "page_vma": np.pad(trace.page_vma, pages, constant_values=-1).tolist(),
        "page_backing": np.pad(trace.page_backing, pages, constant_values=-1).tolist(),
        "loaded": np.pad(trace.loaded, (0, shape.num_cpus - trace.num_cpus), constant_values=-1).tolist(),
    }
    return Oracle(asdict(shape), numbers, policy, initial)
