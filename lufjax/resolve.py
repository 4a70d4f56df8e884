"""From a composed config (plain dicts) to a validated :class:`RunConfig`, and back to the self-contained ``config.yaml`` of a run.

A saved config names every rule of every policy and every option of every workload, so it computes the same after a preset changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from lufjax.presets import load_preset, normal_words, split_entry
from lufjax.results.cost import cost_from_fields, cross_share
from lufjax.settings import MAX_CPUS, MAX_EVENTS, EngineConfig, MachineConfig, RunConfig, build, number, number_list, word

AXES = ("workload", "policy", "num_cpus", "pressure", "seed")
FIELD_AXES = {"policy": "policy_rule", "workload": "workload_option"}
"""Preset group -> the axes over its single fields."""
SCALARS = ("name", "outputs", "run_dir", "resume", "figures", "num_events", "warmup_divisor", "num_samples")
TOP = (*SCALARS, *AXES, "axes", "override_policy", "override_workload", "machine", "cost", "engine")


def resolve(values: Mapping[str, Any], choices: Mapping[str, str], more: Sequence[Path] = ()) -> RunConfig:
    """Validate a composed or saved config.

    Args:
        values: the config as plain dicts and lists.
        choices: preset chosen per group, for the labels of ``policy``, ``workload`` and ``cost``.
        more: directories with presets beside the shipped ones.

    Raises:
        ValueError: one line naming the field, its value and what is allowed.
    """
    _known(values, TOP, "")
    axes = dict(values.get("axes") or {})
    _known(axes, (*AXES, *FIELD_AXES.values()), "axes.")
    machine = build(MachineConfig, values.get("machine"), "machine")
    engine = build(EngineConfig, values.get("engine"), "engine")
    policies = {label: normal_words(words) for label, words in _presets("policy", values, axes, choices, more).items()}
    config = RunConfig(
        policies=policies,
        workloads=_presets("workload", values, axes, choices, more),
        num_cpus=_numbers("num_cpus", values, axes, 1, MAX_CPUS),
        pressures=_numbers("pressure", values, axes, 0.01, 1000, whole=False),
        seeds=_seeds(values, axes),
        machine=machine,
        engine=engine,
        cost=_cost(values, choices),
        **{key: _scalar(key, values.get(key)) for key in SCALARS},
    )
    _check_together(config)
    return config


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The self-contained form that a run saves as ``config.yaml``; :func:`resolve` reads it back."""
    axes = {
        "workload": config.workloads,
        "policy": config.policies,
        "num_cpus": list(config.num_cpus),
        "pressure": list(config.pressures),
        "seed": list(config.seeds),
    }
    parts = {"machine": asdict(config.machine), "engine": asdict(config.engine), "cost": config.cost}
    parts["engine"]["cpu_groups"] = list(config.engine.cpu_groups)
    return {**{key: getattr(config, key) for key in SCALARS}, "axes": axes, **parts}


def identity(config: RunConfig) -> dict[str, Any]:
    """The part of a config that decides the numbers and how they are stored, for telling whether a run can go on."""
    mapping = to_mapping(config)
    for key in ("outputs", "run_dir", "resume", "figures", "cost"):
        del mapping[key]
    for key in ("backend", "block_lanes", "num_devices", "memory_percent", "trace_cache_mib"):
        del mapping["engine"][key]
    return mapping


def _known(values: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = [str(key) for key in values if key not in allowed]
    if unknown:
        raise ValueError(f"{where}{unknown[0]}={values[unknown[0]]}: no such key; allowed are {', '.join(allowed)}")


def _presets(
    group: str, values: Mapping[str, Any], axes: Mapping[str, Any], choices: Mapping[str, str], more: Sequence[Path]
) -> dict[str, dict]:
    """Label -> fields of every policy or workload of the sweep, single-field axes crossed in."""
    axis, single = axes.get(group), values.get(group)
    overrides = dict(values.get(f"override_{group}") or {})
    if axis is None:
        if not isinstance(single, Mapping):
            raise ValueError(f"{group}={single}: expected a preset")
        found = {choices.get(group, group): dict(single)}
    elif isinstance(axis, Mapping):
        found = {str(label): dict(fields) for label, fields in axis.items()}
    elif isinstance(axis, (list, tuple)) and axis:
        _refuse_lost_changes(group, single, choices, more)
        found = {str(entry): load_preset(group, split_entry(entry)[0], more) for entry in axis}
        if len(found) != len(axis):
            raise ValueError(f"axes.{group}={list(axis)}: a preset stands there twice; allowed are different ones")
    else:
        raise ValueError(f"axes.{group}={axis}: expected a list of presets, as in axes.{group}=[{choices.get(group, 'linux')}]")
    unused = [key for key in overrides if not any(key in fields for fields in found.values())]
    if unused:
        known = sorted({key for fields in found.values() for key in fields})
        raise ValueError(f"{group}.{unused[0]}={overrides[unused[0]]}: no {group} of this run has it; allowed are {', '.join(known)}")
    for label, fields in found.items():
        changes = {} if isinstance(axis, Mapping) else _entry_changes(group, label, fields)
        found[label] = fields | {key: value for key, value in overrides.items() if key in fields} | changes
    return _cross(group, found, axes.get(FIELD_AXES[group]) or {})


def _entry_changes(group: str, entry: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    changes = split_entry(entry)[1]
    unknown = [key for key in changes if key not in fields]
    if unknown:
        raise ValueError(f"{group}={entry}: {unknown[0]} is not in that preset; allowed are {', '.join(fields)}")
    return changes


def _refuse_lost_changes(group: str, single: Any, choices: Mapping[str, str], more: Sequence[Path]) -> None:
    """With an axis, fields set under ``policy:`` or ``workload:`` would be lost without a word."""
    if group not in choices or not isinstance(single, Mapping):
        return
    preset = load_preset(group, choices[group], more)
    changed = [key for key in single if single[key] != preset.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(f"{group}.{key}={single[key]}: axes.{group} is a list; allowed is override_{group}.{key}, which reaches all of it")


def _cross(group: str, found: dict[str, dict], field_axes: Mapping[str, Any]) -> dict[str, dict]:
    """Cross labels with axes over single fields: ``linux`` x flush_ceiling=[1, 33] -> ``linux+flush_ceiling:1``, ``linux``."""
    for key, options in field_axes.items():
        if not isinstance(options, (list, tuple)) or not options:
            raise ValueError(f"axes.{FIELD_AXES[group]}.{key}={options}: expected a list, as in axes.{FIELD_AXES[group]}.{key}=[1,2]")
        having = [label for label, fields in found.items() if key in fields]
        if not having:
            known = ", ".join(sorted({name for fields in found.values() for name in fields}))
            raise ValueError(f"axes.{FIELD_AXES[group]}.{key}={list(options)}: no {group} of this run has it; allowed are {known}")
        crossed = {}
        for (label, fields), value in product(found.items(), options):
            changed = key in fields and _spelt(fields[key]) != _spelt(value)
            crossed[f"{label}+{key}:{_spelt(value)}" if changed else label] = fields | ({key: value} if key in fields else {})
        found = crossed
    return found


def _spelt(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _numbers(key: str, values: Mapping[str, Any], axes: Mapping[str, Any], low: float, high: float, whole: bool = True) -> tuple:
    axis = axes.get(key)
    if axis is None:
        return (number(values.get(key), key, low, high, whole=whole),)
    found = number_list(axis, f"axes.{key}", low, high, whole=whole)
    if not found:
        raise ValueError(f"axes.{key}=[]: expected at least one value")
    return found


def _seeds(values: Mapping[str, Any], axes: Mapping[str, Any]) -> tuple[int, ...]:
    axis = axes.get("seed")
    if isinstance(axis, int) and not isinstance(axis, bool):
        return tuple(range(number(axis, "axes.seed", 1, 2**20)))
    return _numbers("seed", values, axes, 0, 2**31 - 1)


def _cost(values: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    cost = values.get("cost")
    if not isinstance(cost, Mapping):
        raise ValueError(f"cost={cost}: expected a cost model")
    return {"name": choices.get("cost", "unnamed"), **cost}


def _scalar(key: str, value: Any) -> Any:
    ranges = {"num_events": (1, MAX_EVENTS), "warmup_divisor": (0, 1000), "num_samples": (1, 1000)}
    if key in ranges:
        return number(value, key, *ranges[key])
    if key == "resume":
        return word(value, key, ("auto", "never"))
    if key == "figures":
        if not isinstance(value, bool):
            raise ValueError(f"figures={value}: allowed are true, false")
        return value
    if key == "run_dir" and value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}={value}: expected {'a name' if key == 'name' else 'a directory'}")
    if key == "name" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(f"name={value}: allowed are letters, digits, '.', '_' and '-'")
    return value


def _check_together(config: RunConfig) -> None:
    """Combinations that no machine can run."""
    machine, few = config.machine, min(config.num_cpus)
    if machine.kswapd_cpu >= few:
        raise ValueError(f"machine.kswapd_cpu={machine.kswapd_cpu}: with num_cpus={few} allowed are 0 to {few - 1}")
    if config.warmup_divisor == 1:
        raise ValueError("warmup_divisor=1: all events would be warm-up; allowed are 0 (no warm-up) and 2 or more")
    if config.num_samples > config.num_events:
        raise ValueError(f"num_samples={config.num_samples}: allowed are at most num_events={config.num_events}")
    for level in ("l1", "l2"):
        tlb = getattr(machine, level)
        if tlb.index == "xor" and tlb.sets & (tlb.sets - 1):
            raise ValueError(f"machine.{level}.sets={tlb.sets}: with index=xor allowed are powers of two")
        if tlb.replacement == "plru" and tlb.ways & (tlb.ways - 1):
            raise ValueError(f"machine.{level}.ways={tlb.ways}: with replacement=plru allowed are powers of two")
        if tlb.replacement == "ring12" and tlb.ways != 12:
            raise ValueError(f"machine.{level}.ways={tlb.ways}: with replacement=ring12 allowed is 12")
    prices = {key: value for key, value in config.cost.items() if key != "name"}
    cross_share(max(config.num_cpus), cost_from_fields(config.cost["name"], prices))
    groups = config.engine.cpu_groups
    if groups and max(groups) < max(config.num_cpus):
        most = max(config.num_cpus)
        raise ValueError(f"engine.cpu_groups={list(groups)}: allowed are lists that reach num_cpus={most}, and [] (one per CPU count)")
