"""Machine code kept from one process to the next: in ``$LUFJAX_CACHE_DIR``, else ``lufjax`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.

An entry is named by a hash of everything that the code depends on: what is compiled, the modules of this package, the versions of JAX and of the
compiler, and the CPU. ``LUFJAX_CACHE_DIR=off`` keeps nothing; nor does a folder that cannot be written to. Programs that XLA compiled are
in a folder for this CPU below it, where JAX keeps them by its own rules: its names of programs say nothing about the CPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import jax
import llvmlite.binding as llvm
from jax.experimental.compilation_cache import compilation_cache

from lufjax.provenance import code_digest, installed_version

MOST = 400
"""Entries that are kept, the ones used last."""
MOST_XLA = 40
"""Programs of XLA that are kept, the newest ones: one takes megabytes."""
DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where the code is, None if nothing is kept."""
    chosen = os.environ.get("LUFJAX_CACHE_DIR", "")
    if chosen == "off":
        return None
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lufjax"


@lru_cache(maxsize=1)
def _surroundings() -> str:
    features = sorted(llvm.get_host_cpu_features().items())
    versions = [installed_version(name) for name in ("jax", "jaxlib", "numpy", "llvmlite")]
    return repr((code_digest(), versions, llvm.get_host_cpu_name(), features))


def name_of(what: str) -> str:
    """Name of the entry for what is compiled."""
    return hashlib.sha256((_surroundings() + what).encode()).hexdigest()


def load(name: str) -> bytes | None:
    """Code that was kept, or None; an entry that is damaged counts as none."""
    place = folder()
    if place is None:
        return None
    try:
        data = (place / name).read_bytes()
        os.utime(place / name)
    except OSError:
        return None
    return data[DIGEST:] if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST] else None


def save(name: str, code: bytes) -> None:
    """Keep code."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".", delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, place / name)
        _forget([path for path in place.iterdir() if len(path.name) == 2 * DIGEST], MOST)


def keep_xla_programs() -> None:
    """Make JAX keep what XLA compiles from now on, unless it was told another place already (``JAX_COMPILATION_CACHE_DIR``)."""
    place = folder()
    if place is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    cpu = repr((llvm.get_host_cpu_name(), sorted(llvm.get_host_cpu_features().items())))
    place = place / f"xla-{hashlib.sha256(cpu.encode()).hexdigest()[:16]}"
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            return
        _forget(list(place.glob("*-cache")), MOST_XLA)
        jax.config.update("jax_compilation_cache_dir", str(place))
        compilation_cache.reset_cache()  # JAX decides at its first compilation whether there is a cache


def _forget(entries: list[Path], most: int) -> None:
    """Delete all but the newest."""
    for path in sorted(entries, key=lambda path: path.stat().st_mtime)[:-most]:
        path.unlink(missing_ok=True)
