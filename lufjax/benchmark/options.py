"""Arguments of ``lufjax bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lufjax import engine
from lufjax.settings import number, word

POLICIES = ("never", "eager", "linux", "linux_6_15", "luf_vma_flag", "luf_v10", "fpr", "latr")
DEVICES = ("cpu", "gpu")


@dataclass(frozen=True)
class BenchOptions:
    """Arguments of ``lufjax bench``.

    Attributes:
        device: ``cpu`` or ``gpu``; None: what JAX finds.
        lanes: lanes of the default shape, a multiple of the number of policies; None: as the backend needs for a second or two.
        events: events of each lane; None: likewise.
        quick: a smoke test of a few seconds; its numbers mean nothing.
        outputs: ``results.nc`` and the figure go to ``<outputs>/bench/<time>``.
    """

    device: str | None = None
    backend: str = "auto"
    lanes: int | None = None
    events: int | None = None
    quick: bool = False
    outputs: str = "outputs"


def parse(given: Mapping[str, Any]) -> BenchOptions:
    """Check the words of the command line.

    Raises:
        ValueError: one line naming the word, its value and what is allowed.
    """
    known = [field.name for field in fields(BenchOptions)]
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{key}={value}: no such key; allowed are {', '.join(known)}")
    chosen = BenchOptions(**given)
    if chosen.device is not None:
        word(chosen.device, "device", DEVICES)
    word(chosen.backend, "backend", engine.BACKENDS)
    if not isinstance(chosen.quick, bool):
        raise ValueError(f"quick={chosen.quick}: allowed are true, false")
    if chosen.lanes is not None and number(chosen.lanes, "lanes", len(POLICIES), 2**20) % len(POLICIES):
        raise ValueError(f"lanes={chosen.lanes}: allowed are multiples of {len(POLICIES)}, the number of policies")
    if chosen.events is not None:
        number(chosen.events, "events", 1000, 2**26)
    return chosen
