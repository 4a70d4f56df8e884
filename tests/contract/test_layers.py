"""Imports only go down, workloads know no policy, the oracle knows none of the package, and importing touches no device."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lufjax"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("events", "policy", "counters", "faults"),
    ("params", "trace"),
    ("state",),
    ("snapshot", "kernels", "event_check"),
    ("phases",),
    ("backends.rollout", "backends.operations", "backends.primitives", "provenance"),
    ("backends.lowering", "backends.code_cache"),
    ("backends.native",),
    ("backends.gpu",),
    ("backends.runners", "stripping"),
    ("machines",),
    ("engine",),
)
"""Modules and packages of the machine, from the bottom. Those that are not named here stand above the engine or beside it, and none of these may
import them."""
WORKLOAD_MAY = {"events", "trace", "workloads"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below ``lufjax``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Dotted names below ``lufjax`` that a file imports, inside functions too; those for type checking only do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("lufjax.") for name in names if name == "lufjax" or name.startswith("lufjax.")}


def part_of(name: str) -> str | None:
    """The part of :data:`LAYERS` that a module, or a name in one, belongs to."""
    return next((part for names in LAYERS for part in names if f"{name}.".startswith(f"{part}.")), None)


def layer_of(name: str) -> int | None:
    """Layer of a module."""
    return next((level for level, names in enumerate(LAYERS) if part_of(name) in names), None)


def test_every_layer_exists() -> None:
    assert {name for names in LAYERS for name in names} <= set(modules())


def test_every_backend_has_a_layer() -> None:
    assert [name for name in modules() if name.startswith("backends.") and layer_of(name) is None] == []


@pytest.mark.parametrize("name", [name for name in modules() if layer_of(name) is not None])
def test_imports_go_down(name: str) -> None:
    own = layer_of(name)
    assert own is not None
    known = {module for module in modules() if module and module != "backends"}
    used_modules = {".".join(used.split(".")[:length]) for used in imports_of(modules()[name]) for length in (1, 2)} & known
    for used in {used for used in used_modules if part_of(used) != part_of(name)}:
        below = layer_of(used)
        assert below is not None, f"{name} imports {used}, which stands above it"
        assert below < own, f"{name} imports {used}, which is not below it"


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] == "workloads"])
def test_workloads_know_no_policy_and_no_engine(name: str) -> None:
    assert {used.split(".")[0] for used in imports_of(modules()[name])} <= WORKLOAD_MAY


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "oracle").glob("*.py")), ids=lambda path: path.stem)
def test_the_oracle_does_not_import_the_package(path: Path) -> None:
    if not path.stem.startswith("test_"):
        assert not imports_of(path)


@pytest.mark.parametrize("module", ["lufjax", "lufjax.engine", "lufjax.cli"])
def test_importing_touches_no_device(module: str) -> None:
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
