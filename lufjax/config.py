"""The edge to Hydra: from the arguments of ``lufjax run`` to a validated :class:`lufjax.settings.RunConfig`.

A sweep never becomes jobs. Overrides that name an axis are rewritten before Hydra sees them, so one config is composed
whatever the number of points:

=====================================  ==================================================
``-m num_cpus=2,4``, ``num_cpus=[2,4]``  ``axes.num_cpus=[2,4]``
``num_cpus=4``                           ``num_cpus=4``, and no axis of an experiment over it
``-m policy.flush_ceiling=1,33``         ``axes.policy_rule.flush_ceiling=[1,33]``
``policy.flush_ceiling=1``               ``override_policy.flush_ceiling=1``: every policy of the run
=====================================  ==================================================
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lufjax.presets import config_dir, preset_names
from lufjax.resolve import AXES, FIELD_AXES, resolve
from lufjax.settings import RunConfig

PRINTS_ONLY = ("help", "hydra_help", "cfg", "info", "shell_completion")
"""Hydra flags that print something and run nothing."""


@dataclass(frozen=True)
class RunArguments:
    """``lufjax run`` arguments taken apart.

    Attributes:
        overrides: as typed.
        flags: Hydra's own options.
    """

    overrides: tuple[str, ...]
    flags: argparse.Namespace

    @property
    def directories(self) -> tuple[Path, ...]:
        """Directories with presets beside the shipped ones (``--config-dir``)."""
        return (Path(self.flags.config_dir).resolve(),) if self.flags.config_dir else ()

    @property
    def prints_only(self) -> bool:
        """Whether Hydra is asked to print instead of to run."""
        return any(getattr(self.flags, flag) for flag in PRINTS_ONLY)


def parse_arguments(argv: Sequence[str]) -> RunArguments:
    """Split Hydra's flags from overrides, wherever they stand."""
    parser = get_args_parser()
    parser.prog = "lufjax run"
    parser.error = _one_line_error
    flags = parser.parse_intermixed_args(list(argv))
    return RunArguments(tuple(flags.overrides), flags)


def _one_line_error(message: str) -> Any:
    raise ValueError(message)


def load_run_config(argv: Sequence[str]) -> RunConfig:
    """Compose and validate the config that the arguments of ``lufjax run`` describe.

    Raises:
        ValueError: one line naming the field, its value and what is allowed.
    """
    arguments = parse_arguments(argv)
    values, choices = compose_config(arguments, show=False)
    return resolve(values, choices, arguments.directories)


def compose_config(arguments: RunArguments, *, show: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose once; returns the config as plain dicts and the preset chosen per group."""
    flags = arguments.flags
    directory = Path(flags.config_path or config_dir()).resolve()
    for path in (directory, *arguments.directories):
        if not path.is_dir():
            raise ValueError(f"{path}: no such directory; allowed are directories with configs")
    beside = [*([config_dir()] if directory != config_dir() else []), *arguments.directories]
    extra = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in beside)}]"] if beside else []
    name = flags.config_name or "config"
    overrides = translate(arguments.overrides, multirun=bool(flags.multirun), show=show)
    with initialize_config_dir(str(directory), version_base="1.3", job_name="lufjax"):
        try:
            composed = compose(name, overrides=[*extra, *overrides], return_hydra_config=True)
            choices = {str(key): str(value) for key, value in composed.hydra.runtime.choices.items()}
            plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            return cast(dict, OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)), choices
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(_one_line(error, overrides)) from error


def translate(overrides: Sequence[str], *, multirun: bool, show: bool) -> list[str]:
    """Rewrite overrides that name an axis (see the module).

    Args:
        multirun: whether ``-m`` was given; ``a=1,2`` needs it.
        show: keep ``policy.RULE=...`` beside its rewritten form, so that ``--cfg job`` shows it in both places.
    """
    parser = OverridesParser.create()
    result: list[str] = []
    for text in overrides:
        try:
            item = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{text}: not an override ({reason}); expected key=value, as in num_cpus=4") from error
        result += _translated(text, item, multirun, show)
    return result


def _translated(text: str, item: Override, multirun: bool, show: bool) -> list[str]:
    key, plain = item.key_or_group, not item.is_add() and not item.is_delete()
    group, _, field = key.partition(".")
    if key.startswith(("hydra.", "hydra/")) and not show:
        raise ValueError(f"{text}: a run makes its own directory and no jobs; allowed are run_dir, outputs, name and --config-dir")
    if item.is_sweep_override():
        if not multirun:
            raise ValueError(f"{text}: several values need -m, as in lufjax run -m {text}")
        values = ",".join(_sweep_values(item))
        if key in AXES:
            return [f"axes.{key}=[{values}]"]
        if group in FIELD_AXES and field:
            return [f"++axes.{FIELD_AXES[group]}.{field}=[{values}]"]
        raise ValueError(f"{text}: cannot be swept; allowed are {', '.join(AXES)}, policy.RULE and workload.OPTION")
    if not plain:
        return [text]
    if key in AXES:
        value = item.value()
        if isinstance(value, list):
            return [f"axes.{key}={item.get_value_element_as_str()}"]
        if key in FIELD_AXES and "+" in str(value):
            return [f"{key}={str(value).split('+')[0]}", f"axes.{key}=[{value}]"]
        return [text, f"axes.{key}=null"]
    if group in FIELD_AXES and field:
        rewritten = f"++override_{group}.{field}={item.get_value_element_as_str()}"
        return [text, rewritten] if show else [rewritten]
    return [text]


def _sweep_values(item: Override) -> list[str]:
    value = item.value()
    if isinstance(value, Glob):
        names = [name for name in preset_names(item.key_or_group) if any(fnmatch(name, pattern) for pattern in value.include)]
        found = [name for name in names if not any(fnmatch(name, pattern) for pattern in value.exclude)]
        if not found:
            raise ValueError(f"{item.input_line}: no preset matches; allowed are {', '.join(preset_names(item.key_or_group))}")
        return found
    return list(item.sweep_string_iterator())


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's messages, several lines long, as one line that names the field, the value and what is allowed."""
    text = str(error)
    option = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if option and "Available options" in text:
        listed = text.split("Available options", 1)[1].split("Config search path")[0]
        return f"{option[1]}={option[2]}: allowed are {', '.join(listed.split()[2:])}"
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        given = next((text for text in overrides if text.lstrip("+~").startswith(f"{key[1]}=")), key[1])
        try:
            return f"{given}: no such key in the config; allowed are {_siblings(key[1], overrides)}"
        except HydraException:
            return f"{given}: no such key in the config, and not the only one; see lufjax run --cfg job"
    return " ".join(text.split())


def _siblings(key: str, overrides: Sequence[str]) -> str:
    """Keys that stand where ``key`` was looked for."""
    rest = [text for text in overrides if not text.lstrip("+~").startswith(key)]
    node: Any = compose("config", overrides=rest)
    *parents, _ = key.split(".")
    for parent in parents:
        deeper = node.get(parent)
        if not isinstance(deeper, DictConfig):
            break
        node = deeper
    return ", ".join(str(name) for name in node)


def hydra_arguments(arguments: RunArguments) -> list[str]:
    """The arguments as Hydra itself is to see them: flags that print, and overrides with axes rewritten."""
    flags = arguments.flags
    shown = []
    for name in ("help", "hydra_help", "shell_completion", "resolve", "cfg", "info", "package", "config_path", "config_name", "config_dir"):
        value, flag = getattr(flags, name), f"--{name.replace('_', '-')}"
        if name in ("config_path", "config_dir") and value:
            value = str(Path(value).resolve())
        shown += [flag] if value is True else [flag, str(value)] if value else []
    return [*shown, *translate(arguments.overrides, multirun=bool(flags.multirun), show=True)]
