"""A GPU that is a CPU: the stages of the GPU program compiled for the host, thread after thread. For tests; nothing of it is fast."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Sequence
from math import prod
from typing import Any

import numpy as np
import pytest
from llvmlite import ir

from lufjax.backends.gpu import device
from lufjax.backends.gpu.program import EMULATED, Source
from lufjax.backends.gpu.rows import LINE
from lufjax.backends.native import machine_code


def _prototype(arguments: Sequence[ir.Type]) -> Any:
    of_bits = {32: ctypes.c_int32, 64: ctypes.c_int64}
    kinds = [of_bits[kind.width] if isinstance(kind, ir.IntType) else ctypes.c_void_p for kind in arguments]
    return ctypes.CFUNCTYPE(None, *kinds, ctypes.c_int32, ctypes.c_int32)


class EmulatedDevice:
    """``launches`` says what was asked for: kernel, thread blocks, threads in each."""

    name = "emulated"

    def __init__(self, *, num_processors: int = 4, memory: int = 2**31) -> None:
        self.num_processors, self.memory = num_processors, memory
        self.launches: list[tuple[str, int, int]] = []

    def free_bytes(self) -> int:
        return self.memory

    def put(self, values: np.ndarray) -> np.ndarray:
        return np.array(values, order="C")

    def empty(self, size: tuple[int, ...]) -> np.ndarray:
        memory = np.full(prod(size) + LINE, 0x5A5A5A5A, np.int32)
        first = -memory.ctypes.data // 4 % LINE  # a device gives arrays that begin at a cache line
        return memory[first : first + prod(size)].reshape(size)

    def get(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        target[:] = source

    def load(self, source: Source) -> device.Launch:
        functions = _compiled(source)

        def launch(kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
            self.launches.append((kernel, blocks, threads))
            functions[kernel](*(a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments), blocks, threads)

        return launch


KEPT: dict[Hashable, dict[str, Any]] = {}
"""What was compiled in this process, by the facts of its source."""


def _compiled(source: Source) -> dict[str, Any]:
    """The kernels by name, and the engine that holds their code."""
    if source.facts not in KEPT:
        prototypes = {kernel: _prototype(arguments) for kernel, arguments in source.arguments.items()}
        engine, *functions = machine_code(lambda: source.module(EMULATED), ("emulated", source.facts), **prototypes)
        KEPT[source.facts] = dict(zip(prototypes, functions, strict=True)) | {"engine": engine}
    return KEPT[source.facts]


def emulate(monkeypatch: pytest.MonkeyPatch, **facts: int) -> EmulatedDevice:
    """Let ``backend=cuda`` find this device."""
    found = EmulatedDevice(**facts)
    monkeypatch.setattr(device, "open_device", lambda: found)
    return found
