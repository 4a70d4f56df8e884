"""What a measured speed depends on: the device, versions, the C program and its compiler."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lufjax import __version__, engine
from lufjax.provenance import PACKAGE, installed_version

REFERENCES = (PACKAGE.parent / "experiments" / "benchmarks" / "reference.py", PACKAGE / "_benchmarks" / "reference.py")
"""Where the driver of the C program is: in the source tree, in an installed package."""


def load_reference() -> ModuleType:
    """The driver of the C program, beside the source tree or inside the installed package."""
    path = next(path for path in REFERENCES if path.is_file())
    spec = importlib.util.spec_from_file_location("lufjax_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def device_facts(backend: str) -> dict[str, Any]:
    """The device and the CPU model."""
    return engine.device_facts(backend) | {"cpu_model": cpu_model(), "num_cores": engine.num_cores()}


def cpu_model() -> str:
    """Name of the CPU as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, Any]:
    """Versions of everything that decides the speed."""
    packages = ("jax", "jaxlib", "numpy", "llvmlite", "cupy-cuda13x", "cupy-cuda12x")
    return {"lufjax": __version__, "python": platform.python_version()} | {name: installed_version(name) for name in packages}


def c_facts(reference: ModuleType) -> dict[str, Any]:
    """Compiler and flags of the C program."""
    done = subprocess.run([reference.find_compiler(), "--version"], capture_output=True, text=True, check=False)
    return {"compiler": (done.stdout.splitlines() or ["unknown"])[0], "flags": list(reference.FLAGS), "threads": engine.num_cores()}
