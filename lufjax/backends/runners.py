"""Ways to advance a block of lanes: natively on the cores of a CPU, on a CUDA device, or with XLA. Results do not depend on which."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lufjax import counters as names
from lufjax import state as st
from lufjax.backends import BACKENDS, code_cache, rollout
from lufjax.params import MachineParams, MachineShape
from lufjax.state import MachineState

LANES = "lanes"
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
    """``native``, ``cuda`` or ``xla`` for ``auto``; the platforms that JAX was told to keep to hold for ``auto`` too.

    Raises:
        ValueError: there is no such backend, or no CUDA device that it could use.
    """
    from lufjax.backends.gpu import device

    if backend not in BACKENDS:
        raise ValueError(f"engine.backend={backend}: allowed are {', '.join(BACKENDS)}")
    if backend == "cuda":
        device.open_device()
    if backend != "auto":
        return backend
    if (platforms_of_jax() or "cuda").split(",")[0] in ("cuda", "gpu") and device.is_there():
        return "cuda"
    return "native" if jax.default_backend() == "cpu" else "xla"


def platforms_of_jax() -> str | None:
    """What JAX was told to keep to, in its order of preference."""
    return jax.config.jax_platforms  # type: ignore[attr-defined]


def device_facts(backend: str) -> dict[str, str]:
    """``platform`` and ``kind`` of the device that a backend uses."""
    from lufjax.backends.gpu import device

    if resolve_backend(backend) == "cuda":
        return {"platform": "gpu", "kind": device.open_device().name}
    used = jax.devices()[0]
    return {"platform": used.platform, "kind": used.device_kind}


@dataclass(frozen=True)
class Runner:
    """A way to advance a block of lanes.

    Attributes:
        block: lanes of a block. workers: blocks that run at the same time.
        put: NumPy array with a lane axis -> array of the runner. put_shared: the same for the traces, which all lanes share.
        start: (params, states of the host, which of them each lane starts as) -> state, of whatever type the runner has.
        run: (params, state, events, trace_index, stop) -> state; the state passed in is used up.
        take: state -> state that counts from 0 again, and what was counted since, by name, on the host.
    """

    block: int
    workers: int
    put: Callable[[np.ndarray], Any]
    put_shared: Callable[[np.ndarray], Any]
    start: Callable[[MachineParams, MachineState, np.ndarray], Any]
    run: Callable[..., Any]
    take: Callable[[Any], tuple[Any, dict[str, Any]]]


def make_runner(
    backend: str, shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None
) -> Runner:  # fmt: skip
    """The runner of a resolved backend."""
    make = {"native": _native_runner, "cuda": _cuda_runner, "xla": _xla_runner}[backend]
    return make(shape, program, num_lanes, block_lanes, num_devices)


def _native_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    from lufjax.backends import native

    compiled = native.compile_for(shape, program)
    block, workers = native_blocks(num_lanes, block_lanes, num_devices)
    return Runner(
        block, workers, np.array, np.ascontiguousarray,
        lambda params, state, which: jax.tree.map(lambda leaf: leaf[which], state), partial(native.run_block, compiled), take_counters,
    )  # fmt: skip


def native_blocks(num_lanes: int, block_lanes: int | None, num_devices: int | None) -> tuple[int, int]:
    """Lanes of a block, and blocks that run at the same time."""
    workers = max(1, num_devices or num_cores())
    block = min(block_lanes or NATIVE_BLOCK_LANES, max(1, -(-num_lanes // (4 * workers))))
    return block, min(workers, -(-num_lanes // block))


def _cuda_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    from lufjax.backends.gpu import device, lanes

    gpu = lanes.load(device.open_device(), shape, program)
    block = min(block_lanes or num_lanes, gpu.lanes_that_fit(num_lanes))
    return Runner(block, 1, np.asarray, gpu.device.put, gpu.start, gpu.run, gpu.take)


def _xla_runner(shape: MachineShape, program: tuple[str, ...], num_lanes: int, block_lanes: int | None, num_devices: int | None) -> Runner:
    code_cache.keep_xla_programs()
    devices = tuple(jax.devices()[:num_devices])
    per_device = min(block_lanes or XLA_BLOCK_LANES, ceil_power(-(-num_lanes // len(devices))))
    slots = slots_for(per_device)
    mesh = Mesh(np.array(devices), (LANES,))
    lanes, everywhere = NamedSharding(mesh, PartitionSpec(LANES)), NamedSharding(mesh, PartitionSpec())
    put = partial(jax.device_put, device=lanes)
    return Runner(
        per_device * len(devices), 1, put, partial(jax.device_put, device=everywhere),
        lambda params, state, which: jax.tree.map(lambda leaf: put(leaf[which]), state), xla_program(shape, program, slots, devices), take_counters,
    )  # fmt: skip


def take_counters(state: MachineState) -> tuple[MachineState, dict[str, Any]]:
    """Read and reset what was counted since the last sample, so that no device counter can wrap in a long run."""
    counting = {"counters": state.counters, "histograms": state.histograms, "received": state.received, "violations": state.violations}
    scalars = {name: st.scalar(state, name) for name in (*names.GAUGES, "fault", "cursor")}
    host = jax.tree.map(np.array, jax.device_get({**counting, **scalars, "first": state.first}))
    return state._replace(**jax.tree.map(_zeros_like, counting)), host


def _zeros_like(leaf: Any) -> Any:
    """On the devices where it is, or in the memory of the host."""
    zeros = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(zeros, leaf.sharding) if isinstance(leaf, jax.Array) else zeros


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ceil_power(n: int) -> int:
    """The first power of two that is not below a positive number."""
    return 1 << max(0, (n - 1).bit_length())


def slots_for(lanes: int) -> int:
    """Lanes that one phase runs on at a time, of those of one device of JAX."""
    return min(lanes, max(64, lanes // SLOT_SHARE))


@lru_cache(maxsize=16)
def xla_program(shape: MachineShape, program: tuple[str, ...], slots: int, devices: tuple[Any, ...]) -> Callable[..., MachineState]:
    """The XLA program: lanes sharded over devices, state arrays updated in place."""
    return jit_over_lanes(partial(rollout.advance, shape, program, slots), Mesh(np.array(devices), (LANES,)), "llsll", donate=(1,))


def jit_over_lanes(function: Callable[..., Any], mesh: Mesh, arguments: str, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Compile for lanes that are shared out to devices.

    Args:
        arguments: a letter for each: ``l`` has a lane axis, as all results have; ``s`` is the same for all lanes. donate: those that are used up.
    """
    specs = {"l": PartitionSpec(LANES), "s": PartitionSpec()}
    sharded = jax.shard_map(function, mesh=mesh, in_specs=tuple(specs[each] for each in arguments), out_specs=specs["l"], check_vma=False)
    options = {"xla_cpu_copy_insertion_use_region_analysis": True} if mesh.devices[0].platform == "cpu" else None
    return jax.jit(sharded, donate_argnums=donate, compiler_options=options)
