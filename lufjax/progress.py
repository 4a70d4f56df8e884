"""How far a run is, on stderr: a bar with an estimate on a terminal, one line per tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Counts events of all lanes; what a resumed run finds done is not part of its speed.

    Args:
        total: events of all lanes.
        done: events that earlier runs did.
    """

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._total, self._done, self._start_done, self._began = total, done, done, time.monotonic()
        self._tenths = self._tenth()
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(total=total, initial=done, unit=" events", unit_scale=True, file=self._stream, dynamic_ncols=True)

    def at(self, done: int) -> None:
        """Say that ``done`` events of all lanes are simulated."""
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.update(step)
        elif self._tenth() > self._tenths:
            self._tenths = self._tenth()
            print(f"lufjax: {10 * self._tenths} % of {self._total:.3g} events, {self._remaining()}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _tenth(self) -> int:
        return 10 * self._done // max(1, self._total)

    def _remaining(self) -> str:
        elapsed = time.monotonic() - self._began
        fresh = self._done - self._start_done
        left = elapsed * (self._total - self._done) / fresh if fresh else 0.0
        return f"{elapsed:.0f} s elapsed, about {left:.0f} s left"
