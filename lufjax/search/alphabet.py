"""What a search may do next: the entries of an explore file, as event rows for one machine of exactly the file's sizes.

The file has the form of a scenario (docs/SCENARIOS.md); its ``events`` are an alphabet and not an order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lufjax.params import MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy, to_words
from lufjax.scenarios.scenario_file import Scenario, load_scenario
from lufjax.trace import Trace


@dataclass(frozen=True)
class Alphabet:
    """The machine and the entries of an explore file.

    Attributes:
        scenario: the file. shape: its sizes, not rounded up. trace: initial mappings, with the sizes of ``shape``; no events.
        rows: of each entry, its event rows ``int32[num_rows, 5]``. words: of each entry, its rows in words, joined.
    """

    scenario: Scenario
    shape: MachineShape
    trace: Trace
    rows: tuple[np.ndarray, ...]
    words: tuple[str, ...]

    @property
    def rows_per_entry(self) -> int:
        """Rows of the longest entry."""
        return max(map(len, self.rows))

    def prefix(self, path: Path) -> tuple[int, ...]:
        """Entries that a scenario file lists as its events.

        Raises:
            ValueError: names the first event that is not in the alphabet.
        """
        given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        own = [self._shown(entry) for entry in yaml.safe_load(self.scenario.path.read_text(encoding="utf-8"))["events"]]
        if not isinstance(given, dict) or not isinstance(given.get("events"), list):
            raise ValueError(f"prefix={path}: allowed is a file with a list of events")
        for entry in given["events"]:
            if self._shown(entry) not in own:
                raise ValueError(f"prefix={path}: events: {self._shown(entry)}: not an event of {self.scenario.path}")
        return tuple(own.index(self._shown(entry)) for entry in given["events"])

    @staticmethod
    def _shown(entry: Any) -> str:
        return ", ".join(f"{cpu}: {' '.join(str(text).split())}" for cpu, text in entry.items()) if isinstance(entry, dict) else str(entry)


def load_alphabet(path: str | Path) -> Alphabet:
    """Read an explore file.

    Raises:
        ValueError: one line naming the file, the entry and what is allowed there.
    """
    scenario = load_scenario(path)
    entries = np.array(scenario.entries)
    chosen = [np.flatnonzero(entries == e + 1) for e in range(int(entries.max()))]
    rows = tuple(scenario.trace.events[own] for own in chosen)
    words = tuple(f"cpu{own[0, 0]}: " + ", ".join(scenario.words[i] for i in index) for own, index in zip(rows, chosen, strict=True))
    shape = tight_shape(scenario)
    trace = replace(scenario.trace, events=scenario.trace.events[:0], num_file_pages=shape.num_file_pages, num_anon=shape.num_anon)
    return Alphabet(scenario, shape, trace, rows, words)


def tight_shape(scenario: Scenario) -> MachineShape:
    """The sizes of the file, not rounded up; a TLB that never evicts, unless the file gives one."""
    trace, rounded, sizes, params = scenario.trace, scenario.shape, scenario.sizes, scenario.params
    roomy = TlbGeometry(rounded.num_vpns, rounded.num_processes)
    own = TlbGeometry(sizes["num_vpns"], sizes["num_processes"])
    return replace(
        rounded, **sizes, num_vmas=len(trace.vmas), gather_slots=sizes["num_vpns"] + sizes["num_frames"],
        rmap_slots=min(rounded.rmap_slots, sizes["num_vpns"] * sizes["num_processes"]),
        batch_slots=params["reclaim_batch"], quarantine_slots=1, pcp_slots=max(params["pcp_high"] + 1, params["pcp_batch"]),
        l1=own if rounded.l1 == roomy else rounded.l1, l2=own if rounded.l2 == roomy else rounded.l2,
    )  # fmt: skip


def has_room(shape: MachineShape) -> bool:
    """Whether both TLB levels have room for every page of every process, so that nothing is ever evicted and both hold the same."""
    return all(level.sets == shape.num_vpns and level.ways == shape.num_processes and level.index == "linear" for level in (shape.l1, shape.l2))


def check_policy(policy: FlushPolicy, num_events: int) -> None:
    """Refuse policies whose future depends on clocks, which the states of a search do not keep.

    Args:
        num_events: longest sequence, in event rows; a mask trim that is due later is never seen.

    Raises:
        ValueError: names the rule.
    """
    words = to_words(policy)
    if words["gather_flush"] == "ticks":
        raise ValueError("policy.gather_flush=ticks: depends on time, which states of an exhaustive search do not keep; allowed is any other value")
    if words["mask_on_switch"] == "keep" and words["trim_period"] <= num_events:
        raise ValueError(
            f"policy.trim_period={words['trim_period']}: the trim depends on time, which states of an exhaustive search do not keep; "
            f"allowed with mask_on_switch=keep are more than {num_events}, the events of the longest sequence (levels=)"
        )
