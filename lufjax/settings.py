"""The validated form of a config: plain dataclasses, and one clear line for every key, type or range that is wrong."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from lufjax.backends import BACKENDS

MAX_CPUS = 256
MAX_EVENTS = 2**30


def ranged(low: float, high: float) -> Any:
    """A dataclass field whose number, or whose every number, lies in ``low .. high``, both included."""
    return field(metadata={"range": (low, high)})


def chosen(*words: str) -> Any:
    """A dataclass field that holds one of ``words``."""
    return field(metadata={"words": words})


@dataclass(frozen=True)
class TlbConfig:
    """One TLB level; see :class:`lufjax.params.TlbGeometry`."""

    sets: int = ranged(1, 65536)
    ways: int = ranged(1, 1024)
    index: str = chosen("linear", "xor")
    replacement: str = chosen("lru", "plru", "ring12")


@dataclass(frozen=True)
class MachineConfig:
    """``conf/machine/*.yaml``, which says what each field means."""

    l1: TlbConfig
    l2: TlbConfig
    drive: str = chosen("load", "scripted")
    num_processes: int = ranged(1, 1024)
    num_vpns: int = ranged(1, 2**26)
    num_frames: int = ranged(1, 2**26)
    slow_percent: int = ranged(0, 99)
    reclaim_batch: int = ranged(1, 512)
    kswapd_cpu: int = ranged(0, MAX_CPUS - 1)
    min_free_frames: int | None = ranged(1, 2**26)
    watermark_scale_factor: int = ranged(0, 3000)
    pcp_batch: int = ranged(1, 512)
    pcp_high_batches: int = ranged(1, 64)
    pcp_share: int = ranged(2, 1024)
    rmap_slots: int | None = ranged(1, 1024)
    gather_slots: int | None = ranged(1, 65536)
    num_anon: int | None = ranged(1, 2**26)

    @property
    def tlb_reach(self) -> int:
        """Pages that one CPU's TLB can translate: the larger level."""
        return max(self.l1.sets * self.l1.ways, self.l2.sets * self.l2.ways)


@dataclass(frozen=True)
class EngineConfig:
    """``conf/engine/*.yaml``, which says what each field means."""

    split_workloads: bool
    strip: bool
    chunk_lanes: int = ranged(1, 65536)
    backend: str = chosen(*BACKENDS)
    block_lanes: int | None = ranged(1, 65536)
    num_devices: int | None = ranged(1, 4096)
    cpu_groups: tuple[int, ...] = ranged(1, MAX_CPUS)
    memory_percent: int = ranged(1, 100)
    trace_cache_mib: int = ranged(0, 2**20)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes, and where it puts it.

    Attributes:
        policies: label -> every rule by word.
        workloads: label -> options.
        pressures: pages the workload touches per frame of memory.
        cost: name and fields of the cost model that the figures use.
    """

    name: str
    policies: dict[str, dict[str, Any]]
    workloads: dict[str, dict[str, Any]]
    num_cpus: tuple[int, ...]
    pressures: tuple[float, ...]
    seeds: tuple[int, ...]
    num_events: int
    warmup_divisor: int
    num_samples: int
    machine: MachineConfig
    engine: EngineConfig
    cost: dict[str, Any]
    outputs: str
    run_dir: str | None
    resume: str
    figures: bool

    @property
    def warmup_events(self) -> int:
        """Events before counting starts."""
        return self.num_events // self.warmup_divisor if self.warmup_divisor else 0

    @property
    def sample_points(self) -> tuple[int, ...]:
        """Event counts at which counters are read: ``num_samples`` even steps, and the end of the warm-up."""
        steps = {self.num_events * i // self.num_samples for i in range(1, self.num_samples + 1)}
        return tuple(sorted((steps | {self.warmup_events}) - {0}))

    @property
    def num_lanes(self) -> int:
        """Points times seeds."""
        return len(self.workloads) * len(self.policies) * len(self.num_cpus) * len(self.pressures) * len(self.seeds)


def build(cls: type, values: Any, where: str) -> Any:
    """Make the dataclass ``cls`` from a plain mapping that gives every field and no other.

    Raises:
        ValueError: one line naming the field, its value and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}={values}: expected the fields {', '.join(f.name for f in fields(cls))}")
    names = [f.name for f in fields(cls)]
    unknown = [str(key) for key in values if key not in names]
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}={values[unknown[0]]}: no such key; allowed are {', '.join(names)}")
    hints = typing.get_type_hints(cls)
    parts = {}
    for spec in fields(cls):
        if spec.name in values:
            parts[spec.name] = checked(values[spec.name], hints[spec.name], spec, f"{where}.{spec.name}")
        elif spec.default is MISSING:
            raise ValueError(f"{where}.{spec.name}: missing")
    return cls(**parts)


def checked(value: Any, hint: Any, spec: Field, where: str) -> Any:
    """One value against its annotation and the range or words of its field."""
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, where)
    optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
    if value is None and optional:
        return None
    base: Any = next(t for t in typing.get_args(hint) if t is not type(None)) if optional else hint  # int of int | None
    if typing.get_origin(base) is tuple:
        return number_list(value, where, *spec.metadata["range"])
    if type(value) is not base:
        raise ValueError(f"{where}={value}: expected {_kind(base)}{' or null' if optional else ''}{_allowed(spec, base)}")
    if base is bool:
        return value
    if "range" in spec.metadata:
        return number(value, where, *spec.metadata["range"])
    if "words" in spec.metadata and value not in spec.metadata["words"]:
        raise ValueError(f"{where}={value}: allowed are {', '.join(spec.metadata['words'])}")
    return value


def number(value: Any, where: str, low: float, high: float, *, whole: bool = True) -> Any:
    """An integer (or, with ``whole`` false, a float) within ``low .. high``."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ValueError(f"{where}={value}: allowed are {'integers' if whole else 'numbers'} from {low} to {high}")
    return value if whole else float(value)


def number_list(value: Any, where: str, low: float, high: float, *, whole: bool = True) -> tuple:
    """A list of different numbers within ``low .. high``."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}={value}: expected a list, as in {where}=[1,2]")
    numbers = tuple(number(item, where, low, high, whole=whole) for item in value)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{where}={list(value)}: a value stands there twice; allowed are different values")
    return numbers


def word(value: Any, where: str, words: tuple[str, ...]) -> str:
    """One of ``words``."""
    if value not in words:
        raise ValueError(f"{where}={value}: allowed are {', '.join(words)}")
    return value


def _kind(base: type) -> str:
    return {int: "an integer", float: "a number", str: "a word", bool: "true or false"}[base]


def _allowed(spec: Field, base: type) -> str:
    if base is bool:
        return ""
    if "range" in spec.metadata:
        return " from {} to {}".format(*spec.metadata["range"])
    return f", one of {', '.join(spec.metadata['words'])}"
