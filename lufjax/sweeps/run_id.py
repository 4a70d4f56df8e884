"""Where a run goes: a directory of its own, or that of an unfinished run with the same digest; locked while it is written."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from lufjax.provenance import now
from lufjax.results.store import Store
from lufjax.settings import RunConfig

STORE, RESULTS, CONFIG = "store.zarr", "results.nc", "config.yaml"


def choose_directory(config: RunConfig, digest: str) -> Path:
    """The directory to write to; nothing is made yet.

    Raises:
        ValueError: ``run_dir`` holds something else.
    """
    if config.run_dir is not None:
        path = Path(config.run_dir)
        attrs = Store.read_attrs(path / STORE)
        if attrs is None and path.exists() and (not path.is_dir() or any(p.name not in (CONFIG, f"{STORE}.draft") for p in path.iterdir())):
            raise ValueError(f"run_dir={path}: there is something else; allowed are a new directory and one of a run of this config")
        if attrs is not None and attrs.get("digest") != digest:
            raise ValueError(f"run_dir={path}: holds a run of another config, trace, code or jax version; allowed is a new directory")
        return path
    parent = Path(config.outputs) / config.name
    if config.resume == "auto" and parent.is_dir():
        for path in sorted(parent.iterdir(), reverse=True):
            attrs = Store.read_attrs(path / STORE)
            if attrs is not None and attrs.get("digest") == digest and not (path / RESULTS).exists() and not is_locked(path):
                return path
    return parent / f"{now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def is_locked(path: Path) -> bool:
    """Whether a living process writes there."""
    try:
        with locked(path):
            return False
    except ValueError:
        return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a directory for one process; the system lets go when the process ends, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"run_dir={path}: another process is writing there") from error
        yield
    finally:
        os.close(handle)


def write_config(path: Path, mapping: dict) -> None:
    """Write ``config.yaml``, complete or not at all."""
    draft = path / f"{CONFIG}.draft"
    head = "# Saved by lufjax run. Run it again: lufjax run -cp <this directory> -cn config\n"
    draft.write_text(head + yaml.safe_dump(mapping, sort_keys=False, width=140))
    os.replace(draft, path / CONFIG)
