"""Where numbers come from: code, versions, device, command. Facts that change from run to run stay out of anything that is hashed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lufjax import __version__

PACKAGE = Path(__file__).resolve().parent
BROKEN_JAX = "0.10.2"


def refuse_broken_jax() -> None:
    """Refuse jax or jaxlib 0.10.2, which compute wrong numbers on CPU without a word (jax issue 39103).

    Raises:
        ValueError: one line that says what to install.
    """
    for package in ("jax", "jaxlib"):
        if installed_version(package) == BROKEN_JAX:
            raise ValueError(f"{package}={BROKEN_JAX}: gives wrong numbers on CPU; allowed are 0.9 to 0.10.1, 0.11 and later")


def installed_version(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_digest() -> str:
    """A hash of the modules of this package: other code may compute other numbers."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(str(path.relative_to(PACKAGE)).encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def run_digest(identity: Mapping[str, Any], traces: list[str]) -> str:
    """A hash of everything that decides the numbers of a run and how they are stored: config, traces, code, jax."""
    versions = [installed_version("jax"), installed_version("jaxlib")]
    facts = {"config": identity, "traces": traces, "code": code_digest(), "jax": versions}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has changes; ``unknown`` for an installed package."""
    if not (PACKAGE.parent / ".git").exists():
        return {"git_commit": "unknown", "git_dirty": None}
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"git_commit": commit or "unknown", "git_dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe(config: Mapping[str, Any], run_id: str, overrides: list[str], began: datetime, wall_s: float) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a run, JSON-serialisable."""
    import jax

    devices = jax.devices()
    packages = ("jax", "jaxlib", "numpy", "xarray", "zarr", "h5netcdf", "hydra-core")
    return {
        "run_id": run_id,
        "config": dict(config),
        "overrides": overrides,
        "command": Path(sys.argv[0]).name + " " + " ".join(sys.argv[1:]),
        "seeds": config["axes"]["seed"],
        **git_state(),
        "code_sha256": code_digest(),
        "versions": {"lufjax": __version__, "python": platform.python_version()} | {name: installed_version(name) for name in packages},
        "device": devices[0].device_kind,
        "backend": devices[0].platform,
        "num_devices": len(devices),
        "num_cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "began": began.isoformat(timespec="seconds"),
        "ended": now().isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),
    }


def environment() -> dict[str, Any]:
    """Code, versions and device of a command that is no sweep, JSON-serialisable."""
    import jax

    packages = ("jax", "jaxlib", "numpy", "llvmlite")
    return {
        "command": Path(sys.argv[0]).name + " " + " ".join(sys.argv[1:]), **git_state(), "code_sha256": code_digest(),
        "versions": {"lufjax": __version__, "python": platform.python_version()} | {name: installed_version(name) for name in packages},
        "device": jax.devices()[0].device_kind, "num_cores": os.cpu_count(), "ended": now().isoformat(timespec="seconds"),
    }  # fmt: skip


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)
