"""What the GPU gets: PTX with the kernels that are launched, and an XLA program that lowers for CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from jax import export

from lufjax.backends import rollout
from lufjax.backends.gpu.program import ARGUMENTS, BLOCK, ptx_of
from lufjax.config import load_run_config
from lufjax.events import OP
from lufjax.params import MachineShape
from lufjax.sweeps.grid import plan
from lufjax.sweeps.traces import TraceSource
from tests.perf.test_xla import SHAPE, program_and_arguments

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
    return lru_cache(lambda capability: ptx_of(*default, capability))


@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_kernels_and_their_arguments(
    default: tuple[MachineShape, tuple[str, ...]], ptx_for: Callable[[str], bytes], capability: str
) -> None:
    ptx = ptx_for(capability).decode()
    assert f".target {capability}" in ptx
    entries = dict(re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", ptx))
    widths = {name: re.findall(r"\.param \.([us]\d+)", arguments) for name, arguments in entries.items()}
    assert widths == {name: ["u32" if str(kind) == "i32" else "u64" for kind in kinds] for name, kinds in ARGUMENTS.items()}
    assert ptx.count(f".maxntid {BLOCK}") == len(ARGUMENTS)
    assert {f"kernel_{group}" for group in default[1]} <= set(re.findall(r"\.func\s+(\w+)", ptx))
    assert {f"{kind}.global.v4" for kind in ("ld", "st")} <= set(re.findall(r"(?:ld|st)\.global\.v4", ptx))
    generic = re.findall(r"\b(?:ld|st)\.(?!param|global|shared|local|const)\S+", ptx)
    assert generic == []


def test_it_is_assembled_without_spills(ptx_for: Callable[[str], bytes], tmp_path: Path) -> None:
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas on the path")
    (tmp_path / "program.ptx").write_bytes(ptx_for("sm_90"))
    command = [ptxas, "-v", "-arch=sm_90", str(tmp_path / "program.ptx"), "-o", str(tmp_path / "program.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)) * BLOCK <= REGISTERS
    assert {int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr)} == {0}


def test_the_xla_program_lowers_for_cuda() -> None:
    program, arguments = program_and_arguments(SHAPE)
    exported = export.export(program, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    assert "stablehlo.while" in exported.mlir_module()
