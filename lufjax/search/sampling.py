"""Random search: many long sequences of entries, on machines that are too large to search exhaustively."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lufjax.events import Violation
from lufjax.policy import FlushPolicy
from lufjax.search.alphabet import Alphabet
from lufjax.search.findings import Finding
from lufjax.search.shrink import shrink
from lufjax.search.successors import Machine

LENGTH = 2048
"""Entries of one sequence."""
LANES = 256
"""Sequences that are drawn together."""
SHRUNK = 4
"""Violating sequences of a class that are shrunk, the shortest first."""


@dataclass
class Sampled:
    """What was covered.

    Attributes:
        events: enabled events up to the first violation of their sequence. sequences: how many were played. violating: of these, how many violated.
        used: ``int64[entries]``, how often each entry was drawn.
        findings: of each class the shortest sequence found, after shrinking.
    """

    events: int = 0
    sequences: int = 0
    violating: int = 0
    seconds: float = 0.0
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    findings: list[Finding] = field(default_factory=list)


def sample(
    alphabet: Alphabet, policy: FlushPolicy, *, events: int, seconds: float, seed: int, prefix: tuple[int, ...] = (), backend: str = "native",
    report: Callable[[Sampled, float], None] | None = None,
) -> Sampled:  # fmt: skip
    """Play random sequences until ``events`` enabled events were played or ``seconds`` are over.

    Sequence ``i`` depends on the seed and ``i`` only. Every entry is drawn with the same probability, enabled or not.

    Args:
        prefix: entries that every sequence starts with. backend: what plays them; what is found does not depend on it.

    Raises:
        ValueError: the machine is too small for an event, or there is no such device; one line.
    """
    began, result = time.monotonic(), Sampled(used=np.zeros(len(alphabet.rows), np.int64))
    machine = Machine(alphabet, policy, 1, symmetry=False, backend=backend)
    group = max(1, machine.sequences(len(prefix) + LENGTH) // LANES)
    head = np.tile(np.array(prefix, np.int64), (LANES, 1))
    best: dict[str, list[tuple[int, ...]]] = {}

    def play(batches: range) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        drawn = [np.random.default_rng([seed, batch]).integers(0, len(alphabet.rows), (LANES, LENGTH), np.int64) for batch in batches]
        entries = np.concatenate([np.concatenate([head, own], axis=1) for own in drawn])
        return list(zip(*(np.split(values, len(batches)) for values in (entries, *machine.play(entries))), strict=True))

    with ThreadPoolExecutor(machine.workers) as pool:
        batch, ahead = 0, []
        while True:
            while len(ahead) < 2 * machine.workers:
                ahead.append(pool.submit(play, range(batch, batch + group)))
                batch += group
            for played in ahead.pop(0).result():
                if result.events < events:
                    _count(result, best, *played)
            result.seconds = time.monotonic() - began
            if report is not None:
                report(result, max(result.events / events, result.seconds / seconds))
            if result.events >= events or result.seconds >= seconds:
                break
    for kind, sequences in best.items():
        shrunk = [shrink(machine.native, kind, sequence) for sequence in sequences]
        result.findings.append(Finding(kind, min(shrunk, key=len)))
    result.findings.sort(key=lambda finding: len(finding.entries))
    result.seconds = time.monotonic() - began
    return result


def _count(result: Sampled, best: dict[str, list[tuple[int, ...]]], entries: np.ndarray, enabled: np.ndarray, first: np.ndarray) -> None:
    """Add a batch. enabled: ``int64[n]`` events before the first violation; first: ``int64[n, classes]`` entry of each class, -1 for none."""
    result.sequences += len(entries)
    result.events += int(enabled.sum())
    result.violating += int((first >= 0).any(1).sum())
    result.used += np.bincount(entries.ravel(), minlength=len(result.used))
    for kind in Violation:
        for lane in np.flatnonzero(first[:, kind] >= 0):
            own = best.setdefault(kind.name, [])
            own.append(tuple(int(e) for e in entries[lane, : first[lane, kind] + 1]))
            own.sort(key=len)
            del own[SHRUNK:]
