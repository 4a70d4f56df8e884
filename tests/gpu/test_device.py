"""What is asked of CuPy, which has no device here: a module in its place has the same names, and runs the emulated kernels."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lufjax.backends import rollout
from lufjax.backends.gpu import device
from lufjax.backends.gpu.program import source_of
from lufjax.events import OP
from lufjax.params import MachineShape
from tests.contract.small_run import assert_same, build_trace, small_run
from tests.gpu.emulated import EmulatedDevice


class StandIn:
    """CuPy on a GPU of compute capability 9.0. ``images``: what was loaded."""

    int32 = np.int32

    def __init__(self, shape: MachineShape, groups: tuple[str, ...]) -> None:
        self.images: list[bytes] = []
        facts = {"name": b"stand-in", "multiProcessorCount": 2, "major": 9, "minor": 0}
        runtime = SimpleNamespace(getDeviceProperties=lambda number: facts, memGetInfo=lambda: (2**30, 2**31))
        launch = EmulatedDevice().load(source_of(shape, groups))

        class Module:
            def load(module, image: bytes) -> None:
                self.images.append(image)

            def get_function(module, name: str) -> Any:
                def call(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
                    assert all(isinstance(a, np.ndarray | np.int32 | np.int64) for a in arguments)
                    launch(name, *grid, *block, *arguments)

                return call

        self.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=0), runtime=runtime, function=SimpleNamespace(Module=Module))

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: 2**20)

    def asarray(self, values: np.ndarray) -> np.ndarray:
        return np.array(values)

    def empty(self, size: tuple[int, ...], dtype: Any) -> np.ndarray:
        assert dtype == np.int32
        return EmulatedDevice().empty(size)

    def asnumpy(self, array: np.ndarray) -> np.ndarray:
        return array.copy()


def test_a_run_by_way_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run([build_trace("llm", 2, 0, 600, file_pages=96, layer_pages=12, tick_period=0)], ("linux", "luf_v10"))
    needed = rollout.program_for({int(op) for op in np.unique(run.traces[0].events[:, OP])})
    cupy = StandIn(run.shape, needed)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    gpu = device.CudaDevice()
    assert (gpu.name, gpu.num_processors, gpu.capability, gpu.free_bytes()) == ("stand-in", 2, "sm_90", 2**30 + 2**20)
    monkeypatch.setattr(device, "open_device", lambda: gpu)
    assert_same(run.samples(backend="cuda"), run.samples())
    (image,) = cupy.images
    assert image.startswith(b"//")
    assert image.endswith(b"\0")
    assert b".entry run_lanes" in image
