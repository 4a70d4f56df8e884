"""Where the YAML presets are, and reading one: plain files, no Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lufjax.policy import FlushPolicy, from_words, to_words


@cache
def config_dir() -> Path:
    """The directory of presets: that of the source tree when run from it, else the one inside the installed package."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "conf"
    if (beside / "config.yaml").is_file() and (package.parent / "pyproject.toml").is_file():
        return beside
    return package / "conf"


def preset_names(group: str, more: Sequence[Path] = ()) -> tuple[str, ...]:
    """Names of the presets of a group (``policy``, ``workload``, ...), those of the directories ``more`` among them."""
    return tuple(sorted(_preset_files(group, more)))


def _preset_files(group: str, more: Sequence[Path]) -> dict[str, Path]:
    """Preset -> file; the shipped directory first, as in Hydra's search path."""
    found: dict[str, Path] = {}
    for directory in (config_dir(), *more):
        for path in (directory / group).glob("*.yaml"):
            found.setdefault(path.stem, path)
    return found


def load_preset(group: str, name: str, more: Sequence[Path] = ()) -> dict[str, Any]:
    """Read one preset, from the shipped directory or from one of ``more``.

    Raises:
        ValueError: no such preset, or its file is not a mapping.
    """
    files = _preset_files(group, more)
    if name not in files:
        raise ValueError(f"{group}={name}: allowed are {', '.join(sorted(files))}")
    path = files[name]
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{group}={name}: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{group}={name}: {path} holds no fields; allowed is one line 'field: value' per field")
    return values


def about_preset(group: str, name: str) -> str:
    """The first comment of a preset."""
    lines = (config_dir() / group / f"{name}.yaml").read_text().splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


def split_entry(entry: str) -> tuple[str, dict[str, Any]]:
    """``luf_v10+absorb:off+flush_ceiling:5`` -> (``luf_v10``, ``{"absorb": "off", "flush_ceiling": 5}``)."""
    name, *parts = str(entry).split("+")
    changes = {}
    for part in parts:
        key, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"{entry}: expected a preset, or preset+field:value, as in luf_v10+absorb:off")
        changes[key] = yaml.safe_load(value)
    return name, changes


def policy_words(entry: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every rule of a policy preset by word, checked, with the rules of the entry and of ``overrides`` replaced."""
    name, changes = split_entry(entry)
    return normal_words({**load_preset("policy", name), **(overrides or {}), **changes})


def normal_words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Check a full record of rules and spell every rule the one way (YAML reads ``on`` as true)."""
    return to_words(from_words(dict(words)))


def load_policy(entry: str, overrides: Mapping[str, Any] | None = None) -> FlushPolicy:
    """The record of integers of a policy preset."""
    return from_words(policy_words(entry, overrides))


def find_config(group: str, file: str) -> Path:
    """A file by its path, or by its name among the presets of a group (``munmap_remap``, ``conf/scenario/munmap_remap.yaml``).

    Raises:
        ValueError: there is none.
    """
    path = Path(file)
    if path.is_file():
        return path
    shipped = config_dir() / group / f"{path.stem}.yaml"
    if shipped.is_file() and path.parent.as_posix() in (".", group, f"conf/{group}"):
        return shipped
    raise ValueError(f"{group}={file}: no such file; allowed are a path, or one of {', '.join(preset_names(group))}")


def litmus_files() -> list[Path]:
    """The shipped litmus files."""
    return sorted((config_dir() / "litmus").glob("*.litmus"))


def find_litmus(file: str) -> Path:
    """A litmus file by its path, or a shipped one by its name.

    Raises:
        ValueError: there is none.
    """
    path = Path(file)
    if path.is_file():
        return path
    shipped = {known.stem: known for known in litmus_files()}
    if path.name != file or path.stem not in shipped:
        raise ValueError(f"{file}: no such litmus file; allowed are a path, or one of {', '.join(shipped)}")
    return shipped[path.stem]
