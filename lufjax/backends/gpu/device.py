"""The GPU: its memory and its kernels, by way of CuPy, which is imported when a GPU is first asked for.

JAX takes no part in this but to trace the kernels, so it is kept from reserving the memory of the device.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from lufjax.backends.gpu.program import Source, ptx_of

CAPABILITIES = (70, 75, 80, 86, 89, 90)
"""What the program is translated for; a newer GPU takes what is made for an older one."""
Launch = Callable[..., None]
"""``launch(kernel, thread blocks, threads in each, arguments)``: arguments are arrays of the device and NumPy scalars."""


class Device(Protocol):
    """What the engine needs of a GPU; a test has one that is a CPU.

    Attributes:
        name: for people. num_processors: multiprocessors.
    """

    name: str
    num_processors: int

    def free_bytes(self) -> int:
        """Memory that can be had."""
        ...

    def put(self, values: np.ndarray) -> Any:
        """Copy an array to the device."""
        ...

    def empty(self, size: tuple[int, ...]) -> Any:
        """An ``int32`` array of the device with any content."""
        ...

    def get(self, array: Any) -> np.ndarray:
        """Copy an array from the device, after all that was launched."""
        ...

    def copy(self, source: Any, target: Any) -> None:
        """Copy an array within the device, and wait."""
        ...

    def load(self, source: Source) -> Launch:
        """Kernels that can be launched."""
        ...


class CudaDevice:
    """The current CUDA device."""

    def __init__(self) -> None:
        import cupy  # pyright: ignore[reportMissingImports]

        self._cupy = cupy
        facts = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.name, self.num_processors = facts["name"].decode(), int(facts["multiProcessorCount"])
        self.capability = capability_for(10 * int(facts["major"]) + int(facts["minor"]), self.name)

    def free_bytes(self) -> int:
        """What the device has left, and what CuPy keeps for its next array."""
        return int(self._cupy.cuda.runtime.memGetInfo()[0]) + int(self._cupy.get_default_memory_pool().free_bytes())

    def put(self, values: np.ndarray) -> Any:
        """Copy to the device."""
        return self._cupy.asarray(np.ascontiguousarray(values))

    def empty(self, size: tuple[int, ...]) -> Any:
        """Uninitialised ``int32``."""
        return self._cupy.empty(size, np.int32)

    def get(self, array: Any) -> np.ndarray:
        """Wait, and copy to the host."""
        return self._cupy.asnumpy(array)

    def copy(self, source: Any, target: Any) -> None:
        """Without a kernel, so that CuPy needs no compiler."""
        target.data.copy_from_device(source.data, source.nbytes)
        self._cupy.cuda.Device().synchronize()

    def load(self, source: Source) -> Launch:
        """Translate for this device; the driver assembles it, and keeps that itself."""
        module = self._cupy.cuda.function.Module()
        module.load(ptx_of(source, self.capability) + b"\0")

        def launch(kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
            module.get_function(kernel)((blocks,), (threads,), arguments)

        return launch


def capability_for(found: int, name: str) -> str:
    """What to translate for, as in ``sm_90``, for a compute capability as in 90.

    Raises:
        ValueError: the GPU is too old.
    """
    if found < CAPABILITIES[0]:
        raise ValueError(f"backend=cuda: {name} has compute capability {found / 10}; allowed are {CAPABILITIES[0] / 10} and later")
    return f"sm_{max(known for known in CAPABILITIES if known <= found)}"


@lru_cache(maxsize=1)
def open_device() -> Device:
    """The GPU.

    Raises:
        ValueError: one line that says what is missing.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if importlib.util.find_spec("cupy") is None:
        raise ValueError("backend=cuda: needs CuPy; pip install 'lufjax[gpu]'")
    try:
        return CudaDevice()
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"backend=cuda: no CUDA device can be used: {str(error).splitlines()[0]}") from error


def is_there() -> bool:
    """Whether :func:`open_device` succeeds."""
    try:
        open_device()
    except ValueError:
        return False
    return True
