"""Machine code kept from one process to the next: in ``$LUFJAX_CACHE_DIR``, else ``lufjax`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.

An entry is named by a hash of everything that the code depends on: what is compiled, the modules of this package, the versions of JAX and of the
compiler, and the CPU. ``LUFJAX_CACHE_DIR=off`` keeps nothing; nor does a folder that cannot be written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import llvmlite.binding as llvm

from lufjax.provenance import code_digest, installed_version

MOST = 400
"""Entries that are kept, the ones used last."""
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
        entries = sorted((path for path in place.iterdir() if len(path.name) == 2 * DIGEST), key=lambda path: path.stat().st_mtime)
        for path in entries[:-MOST]:
            path.unlink(missing_ok=True)
