"""Options of a workload: what they are called, what they may be, and one clear line when they are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        default: value where the option is not given; its type is the type of the option (bool, int or str).
        low, high: allowed range of an int, both included.
        choices: allowed words of a str; empty for free text.
        about: one line, with the unit.
    """

    default: Any
    about: str
    low: int = 0
    high: int = 2**20
    choices: tuple[str, ...] = ()


TICK_PERIOD = Option(2000, "events between two timer ticks of a CPU; 0 for none", 0, 2**30)
REPEAT = Option(1, "accesses of one visit to a page", 1, 2**15)
SKEW = Option(8, "rows by which one CPU may run ahead of another", 1, 4096)


def parse(workload: str, options: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Return a value for every known option; ``ValueError`` names the field, the value and what is allowed."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"workload.{unknown[0]}: workload {workload!r} has no such option; it has {', '.join(known)}")
    return {name: _checked(name, options.get(name, option.default), option) for name, option in known.items()}


def _checked(name: str, value: Any, option: Option) -> Any:
    expected = type(option.default)
    if type(value) is not expected:
        raise ValueError(f"workload.{name}={value!r}: expected {expected.__name__}")
    if expected is int and not option.low <= value <= option.high:
        raise ValueError(f"workload.{name}={value}: allowed are {option.low} .. {option.high}")
    if option.choices and value not in option.choices:
        raise ValueError(f"workload.{name}={value!r}: allowed are {', '.join(option.choices)}")
    return value
