"""Ways to advance a block of lanes: natively on the cores of a CPU, or with XLA on JAX's devices. Results do not depend on which."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lufjax import code_cache, rollout
from lufjax.params import MachineShape
from lufjax.state import MachineState

LANES = "lanes"
BACKENDS = ("auto", "native", "xla")
NATIVE_BLOCK_LANES = 32
"""Lanes that a core has in memory at a time; it runs them one after the other."""
XLA_BLOCK_LANES = 1024
"""Lanes of one device that advance together: more lanes fill the slots of a phase better, fewer stay in the cache."""
SLOT_SHARE = 4
"""A phase runs on one lane in this many at a time."""



def use_all_cores() -> None:
    """Make each CPU core a device, unless JAX has started or was told otherwise. XLA's own threading is no substitute."""
    if "jax_num_cpu_devices" in os.environ.get("XLA_FLAGS", "") or os.environ.get("JAX_NUM_CPU_DEVICES"):
        return
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:
        return


def resolve_backend(backend: str) -> str:
    """``native`` or ``xla`` for ``auto``."""
    if backend not in BACKENDS:
        raise ValueError(f"engine.backend={backend}: allowed are {', '.join(BACKENDS)}")
    return backend if backend != "auto" else ("native" if jax.default_backend() == "cpu" else "xla")


@dataclass(frozen=True)
class Runner:
    """A way to advance a block of lanes.

    Attributes:
        block: lanes of a block. workers: blocks that run at the same time.
        put: NumPy array with a lane axis -> array of the runner. put_shared: the same for the traces, which all lanes share.
        run: (params, state, events, trace_index, stop) -> state; the state passed in is used up.
    """

    block: int
    workers: int
    put: Callable[[np.ndarray], Any]
    put_shared: Callable[[np.ndarray], Any]
    run: Callable[..., MachineState]


def make_runner(
    backend: str, shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None
) -> Runner:  # fmt: skip
    """The runner of a resolved backend."""
    make = _native_runner if backend == "native" else _xla_runner
    return make(shape, program, num_lanes, block_lanes, num_devices)


def _native_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    from lufjax import native

    compiled = native.compile_for(shape, program)
    block, workers = native_blocks(num_lanes, block_lanes, num_devices)
    return Runner(block, workers, np.array, np.ascontiguousarray, partial(native.run_block, compiled))


def native_blocks(num_lanes: int, block_lanes: int | None, num_devices: int | None) -> tuple[int, int]:
    """Lanes of a block, and blocks that run at the same time."""
    workers = max(1, num_devices or num_cores())
    block = min(block_lanes or NATIVE_BLOCK_LANES, max(1, -(-num_lanes // (4 * workers))))
    return block, min(workers, -(-num_lanes // block))


def _xla_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    code_cache.keep_xla_programs()
    devices = tuple(jax.devices()[:num_devices])
    per_device = min(block_lanes or XLA_BLOCK_LANES, _ceil_power(-(-num_lanes // len(devices))))
    slots = min(per_device, max(64, per_device // SLOT_SHARE))
    mesh = Mesh(np.array(devices), (LANES,))
    lanes, everywhere = NamedSharding(mesh, PartitionSpec(LANES)), NamedSharding(mesh, PartitionSpec())
    return Runner(
        per_device * len(devices), 1, partial(jax.device_put, device=lanes), partial(jax.device_put, device=everywhere),
        xla_program(shape, program, slots, devices),
    )  # fmt: skip


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ceil_power(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


@lru_cache(maxsize=16)
def xla_program(shape: MachineShape, program: tuple[str, ...], slots: int, devices: tuple[Any, ...]) -> Callable[..., MachineState]:
    """The XLA program: lanes sharded over devices, state arrays updated in place."""
    mesh = Mesh(np.array(devices), (LANES,))
    lanes, everywhere = PartitionSpec(LANES), PartitionSpec()
    sharded = jax.shard_map(
        partial(rollout.advance, shape, program, slots), mesh=mesh, in_specs=(lanes, lanes, everywhere, lanes, lanes), out_specs=lanes,
        check_vma=False,
    )  # fmt: skip
    options = {"xla_cpu_copy_insertion_use_region_analysis": True} if devices[0].platform == "cpu" else None
    return jax.jit(sharded, donate_argnums=(1,), compiler_options=options)
