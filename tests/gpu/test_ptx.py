"""What the GPU gets: PTX with the kernels that are launched, and an XLA program that lowers for CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh

from lufjax.backends import rollout
from lufjax.backends.gpu.program import ARGUMENTS, BLOCK, ptx_of, source_of
from lufjax.backends.gpu.rows import layout_of
from lufjax.backends.native import NUM_PARAMS
from lufjax.backends.runners import LANES
from lufjax.config import load_run_config
from lufjax.events import OP
from lufjax.params import MachineShape
from lufjax.presets import load_policy
from lufjax.search import on_cuda, on_xla
from lufjax.search.successors import Machine
from lufjax.sweeps.grid import plan
from lufjax.sweeps.traces import TraceSource
from tests.perf.test_xla import SHAPE, program_and_arguments
from tests.search.states import alphabet_of

REGISTERS = 65536
"""Of a multiprocessor."""


@pytest.fixture(scope="module")
def default() -> tuple[MachineShape, tuple[str, ...]]:
    """Shape and program of the default machine with 8 CPUs under the default workload."""
    config = load_run_config(["machine=default", "workload=llm", "num_cpus=8", "pressure=4", "num_events=2000"])
    source = TraceSource(config.workloads, config.num_events, 2**30)
    (group,) = plan(config, source)
    ops = {int(op) for key in group.trace_keys for op in np.unique(source.get(key).events[:, OP])}
    return group.shape, rollout.program_for(ops)


@pytest.fixture(scope="module")
def ptx_for(default: tuple[MachineShape, tuple[str, ...]]) -> Callable[[str], bytes]:
    """PTX by capability, made once."""
    return lru_cache(lambda capability: ptx_of(source_of(*default), capability))


def assert_has_kernels(ptx: str, capability: str, kernels: Mapping[str, Sequence[Any]], threads: int) -> None:
    assert f".target {capability}" in ptx
    entries = dict(re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", ptx))
    widths = {name: re.findall(r"\.param \.([us]\d+)", arguments) for name, arguments in entries.items()}
    assert widths == {name: ["u32" if str(kind) == "i32" else "u64" for kind in kinds] for name, kinds in kernels.items()}
    assert ptx.count(f".maxntid {threads}") == len(kernels)


def assembled(ptx: bytes, folder: Path) -> str:
    """What the assembler says of it."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas on the path")
    (folder / "program.ptx").write_bytes(ptx)
    command = [ptxas, "-v", "-arch=sm_90", str(folder / "program.ptx"), "-o", str(folder / "program.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_kernels_and_their_arguments(
    default: tuple[MachineShape, tuple[str, ...]], ptx_for: Callable[[str], bytes], capability: str
) -> None:
    ptx = ptx_for(capability).decode()
    assert_has_kernels(ptx, capability, ARGUMENTS, BLOCK)
    assert {f"kernel_{group}" for group in default[1]} <= set(re.findall(r"\.func\s+(\w+)", ptx))
    assert {f"{kind}.global.v4" for kind in ("ld", "st")} <= set(re.findall(r"(?:ld|st)\.global\.v4", ptx))
    generic = re.findall(r"\b(?:ld|st)\.(?!param|global|shared|local|const)\S+", ptx)
    assert generic == []


def test_it_is_assembled_without_spills(ptx_for: Callable[[str], bytes], tmp_path: Path) -> None:
    said = assembled(ptx_for("sm_90"), tmp_path)
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", said)) * BLOCK <= REGISTERS
    assert {int(n) for n in re.findall(r"(\d+) bytes spill", said)} == {0}


@pytest.fixture(scope="module")
def search_ptx() -> bytes:
    """The kernels of a search."""
    machine = Machine(alphabet_of("tiny"), load_policy("linux"), 4, symmetry=True)
    return ptx_of(on_cuda.source_of(machine.compiled, layout_of(machine.shape)), "sm_90")


def test_the_kernels_of_a_search(search_ptx: bytes) -> None:
    assert_has_kernels(search_ptx.decode(), "sm_90", on_cuda.ARGUMENTS, on_cuda.THREADS)


def test_they_are_assembled_too(search_ptx: bytes, tmp_path: Path) -> None:
    said = assembled(search_ptx, tmp_path)
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", said)) * on_cuda.THREADS <= REGISTERS
    assert max(int(n) for n in re.findall(r"(\d+) bytes spill", said)) < 256


def assert_lowers_for_cuda(program: Any, arguments: Sequence[Any]) -> None:
    exported = export.export(program, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    assert "stablehlo.while" in exported.mlir_module()


def test_the_xla_program_lowers_for_cuda() -> None:
    assert_lowers_for_cuda(*program_and_arguments(SHAPE))


def test_the_xla_program_of_a_search_does_too() -> None:
    compiled = Machine(alphabet_of("lists"), load_policy("linux"), 4, symmetry=True).compiled
    elements, lanes = sum(compiled.sizes.values()), 64
    program = on_xla.program_for(compiled, lanes, Mesh(np.array(jax.devices()[:1]), (LANES,)))
    sizes = [(lanes, elements), (lanes,), (lanes,), (NUM_PARAMS,), (elements,), (elements,), (elements,), (9, 4, 4), (9,)]
    assert_lowers_for_cuda(program, [jax.ShapeDtypeStruct(size, np.int32) for size in sizes])
