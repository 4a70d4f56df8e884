"""Settings of ``lufjax explore``, with what is allowed and one line of help each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lufjax.backends import BACKENDS

if TYPE_CHECKING:
    from lufjax.search.alphabet import Alphabet


@dataclass(frozen=True)
class Options:
    """Of one search; each is a line of :data:`KEYS`."""

    mode: str = "exhaustive"
    symmetry: bool = True
    states: int = 1_000_000
    levels: int = 1000
    seconds: float = float("inf")
    until: str = "limit"
    events: int = 10_000_000
    seed: int = 0
    prefix: tuple[int, ...] = ()
    backend: str = "native"
    outputs: Path = Path("outputs/explore")


def _word(*allowed: str) -> tuple[Callable[[Any], Any], str]:
    def read(value: Any) -> str:
        word = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if word not in allowed:
            raise ValueError
        return str(word)

    return read, ", ".join(allowed)


def _number(low: int, high: int) -> tuple[Callable[[Any], Any], str]:
    def read(value: Any) -> int:
        value = int(value) if isinstance(value, float) and value == int(value) else value
        value = int(float(value)) if isinstance(value, str) else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return read, f"integers from {low} to {high:.3g}"


def _path() -> tuple[Callable[[Any], Any], str]:
    return lambda value: Path(str(value)), "a path"


KEYS: dict[str, tuple[tuple[Callable[[Any], Any], str], str]] = {
    "mode": (_word("exhaustive", "random"), "every state, level by level, or random sequences"),
    "symmetry": (_word("on", "off"), "exhaustive: count states that differ in names only once"),
    "states": (_number(1, 2**31 - 1), "exhaustive: stop after the level in which so many are known (1000000)"),
    "levels": (_number(1, 2000), "exhaustive: longest sequence (1000)"),
    "seconds": (_number(1, 10**9), "stop after so many: exhaustive at the end of a level, random at once"),
    "until": (_word("limit", "violation"), "exhaustive: violation stops after the level that shows the first"),
    "events": (_number(1, 10**12), "random: stop after so many enabled events (10000000)"),
    "seed": (_number(0, 2**31 - 1), "random: sequences depend on it alone"),
    "prefix": (_path(), "random: a file of events that every sequence starts with (form of a scenario)"),
    "backend": (_word(*BACKENDS), "what events run on, auto as for a run; none finds anything else (native)"),
    "outputs": (_path(), "directory to write to (outputs/explore)"),
}
"""Key -> how it is read and what is allowed, and its line of help."""


def read(chosen: Mapping[str, Any], alphabet: Alphabet) -> Options:
    """Options from ``key=value`` arguments.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for key, ((reader, allowed), _) in KEYS.items():
        if key in chosen:
            try:
                values[key] = reader(chosen[key])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key}={chosen[key]}: allowed are {allowed}") from error
    if "symmetry" in values:
        values["symmetry"] = values["symmetry"] == "on"
    if "prefix" in values:
        values["prefix"] = alphabet.prefix(values["prefix"])
    return Options(**values)


def usage() -> str:
    """The keys, a line each."""
    width = max(map(len, KEYS)) + 1
    lines = [f"  {'machine':{width}} a file, or one of conf/explore: sizes, mappings, and the events to order (tiny)"]
    return "\n".join(["keys:", *lines, *(f"  {key:{width}} {text}; {allowed}" for key, ((_, allowed), text) in KEYS.items())])
