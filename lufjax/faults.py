"""Engine faults: a sticky word per lane. A fault says that a static size was too small or an event malformed; it is not a violation."""

from __future__ import annotations

import enum


class Fault(enum.IntFlag):
    """Bits of the sticky fault word."""

    RMAP_FULL = 1
    GATHER_FULL = 2
    ANON_POOL_EMPTY = 4


ADVICE = {
    Fault.RMAP_FULL: "more PTEs map one frame than machine.rmap_slots allows",
    Fault.GATHER_FULL: "one mapping call covers more pages than machine.gather_slots allows",
    Fault.ANON_POOL_EMPTY: "more anonymous pages are mapped than machine.num_anon allows",
}


class EngineFault(RuntimeError):
    """A lane faulted; its results are not written."""

    def __init__(self, word: int, lane: int, event: int) -> None:
        names = [f for f in Fault if word & f]
        what = "; ".join(f"{f.name} ({ADVICE[f]})" for f in names)
        super().__init__(f"lane {lane} stopped at event {event}: {what}")
        self.word, self.lane, self.event = word, lane, event
