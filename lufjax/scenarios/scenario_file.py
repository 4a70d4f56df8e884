"""A scenario file (YAML, written by hand) as sizes, initial mappings, event rows and expectations. Format: docs/SCENARIOS.md.

Every size is rounded up to that of ``SMALLEST`` or the next power of two, so that scenarios share one compiled program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lufjax.events import IDLE, Violation
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.presets import policy_words, split_entry
from lufjax.scenarios.scenario_events import MAPPING_FIELDS, EventList
from lufjax.trace import Trace
from lufjax.workloads.expand import GATHER_SLOTS

DEFAULT = "default"
FIELDS = ("title", "source", "machine", "maps", "events", "expect")
SIZES = {
    "num_cpus": (4, 1024), "num_processes": (1, 64), "num_vpns": (8, 4096), "num_frames": (16, 65536), "num_file_pages": (8, 65536),
    "num_anon": (64, 65536),
}  # fmt: skip
"""Field of ``machine`` -> default and largest value; the smallest is 1."""
PARAMS = {
    "reclaim_batch": (16, 1, 1024), "pcp_batch": (2, 1, 512), "pcp_high": (8, 0, 4096), "wmark_min": (1, 0, 65536),
    "wmark_low": (2, 0, 65536), "wmark_high": (3, 0, 65536), "kswapd_cpu": (0, 0, 1023),
}  # fmt: skip
"""Field of ``machine`` -> default, smallest and largest value."""
SMALLEST = MachineShape(
    num_cpus=4, num_processes=2, num_vpns=16, num_frames=16, num_vmas=16, num_file_pages=8, num_anon=64, rmap_slots=8, gather_slots=16,
    batch_slots=16, pcp_slots=16, quarantine_slots=1024,
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """One scenario file, read and checked.

    Attributes:
        name: the name of the file without its suffix.
        shape: compiled sizes, those of the file rounded up.
        sizes: those of the file: ``num_cpus`` and the others of ``SIZES``.
        params: numbers of :class:`MachineParams`, without the policy.
        words: what each event row does.
        entries: the entry of the file that each event row comes from, from 1.
        expect: policy entry or ``default`` -> names of the violation classes that it must show.
    """

    path: Path
    name: str
    title: str
    source: str
    shape: MachineShape
    sizes: dict[str, int]
    params: dict[str, int]
    trace: Trace
    words: tuple[str, ...]
    entries: tuple[int, ...]
    expect: dict[str, tuple[str, ...]]

    def machine_params(self, policy: FlushPolicy) -> MachineParams:
        """The numbers of the machine with a policy."""
        return MachineParams(**self.params, policy=policy)

    def expected(self, policy: str) -> tuple[str, ...]:
        """Classes expected of a policy: those of its own entry, of its preset, or the default.

        Raises:
            ValueError: the file expects nothing of it.
        """
        for entry in (policy, policy.partition("+")[0], DEFAULT):
            if entry in self.expect:
                return self.expect[entry]
        raise ValueError(f"{self.path}: expect: has no entry for policy={policy}; allowed are {', '.join(self.expect)}, or add a {DEFAULT}")


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario file.

    Raises:
        ValueError: one line naming the file, the entry and what is allowed there.
    """
    path = Path(path)
    try:
        return _scenario(path, yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _scenario(path: Path, content: Any) -> Scenario:
    fields = _mapping("a scenario", content, FIELDS, required=("title", "source", "events", "expect"))
    machine = _mapping("machine", fields.get("machine") or {}, (*SIZES, *PARAMS, "fast_frames", "drive", "loaded", "l1", "l2"))
    sizes = {name: _integer(f"machine.{name}", machine.get(name, start), 1, last) for name, (start, last) in SIZES.items()}
    events = EventList(sizes["num_processes"], sizes["num_vpns"], sizes["num_file_pages"], _loaded(machine, sizes))
    loaded = np.array(events.loaded, np.int32)
    for number, entry in enumerate(_list("maps", fields.get("maps") or []), start=1):
        _explain(f"maps entry {number}", _add_map, events, entry)
    page_vma, page_backing = events.page_vma.copy(), events.page_backing.copy()
    for number, entry in enumerate(_list("events", fields["events"]), start=1):
        _explain(f"events entry {number} ({_shown(entry)})", _add_event, events, number, entry, sizes["num_cpus"])
    if not events.rows:
        raise ValueError("events: empty; allowed is a list of 'cpuN: event'")
    params = _params(machine, sizes)
    shape = _shape(machine, sizes, params, events)
    trace = Trace(
        events=np.array(events.rows, np.int32), vmas=np.array(events.vmas or [0], np.int32), page_vma=page_vma, page_backing=page_backing,
        loaded=loaded, num_file_pages=shape.num_file_pages, num_anon=shape.num_anon, attrs={"name": path.stem},
    )  # fmt: skip
    return Scenario(
        path=path, name=path.stem, title=_text(fields, "title"), source=_text(fields, "source"), shape=shape, sizes=sizes,
        params=params, trace=trace, words=tuple(events.words), entries=tuple(events.entries),
        expect=_expect(fields["expect"]),
    )  # fmt: skip


def _loaded(machine: dict[str, Any], sizes: dict[str, int]) -> list[int]:
    """The process of each CPU at the start; process 0 on all if not given."""
    given = machine.get("loaded", [0] * sizes["num_cpus"])
    if not isinstance(given, list) or len(given) != sizes["num_cpus"]:
        raise ValueError(f"machine.loaded={given}: allowed is a list of {sizes['num_cpus']}, a process or idle for each CPU")
    last = sizes["num_processes"] - 1
    return [IDLE if value == "idle" else _integer("machine.loaded", value, 0, last, "idle or ") for value in given]


def _add_map(events: EventList, entry: Any) -> None:
    fields = _mapping("it", entry, ("process", "pages", *MAPPING_FIELDS), required=("pages",))
    process = _integer("process", fields.get("process", 0), 0, events.num_processes - 1)
    before = events.page_vma[process].copy()
    first, count, _, _ = events.map_pages(process, fields["pages"], fields)
    if (before[first : first + count] >= 0).any():
        raise ValueError(f"pages={fields['pages']}: a page of process {process} is mapped twice")


def _add_event(events: EventList, number: int, entry: Any, num_cpus: int) -> None:
    cpu, text = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", None)
    match = re.fullmatch(r"cpu(\d+)", str(cpu))
    if not match or int(match[1]) >= num_cpus or not isinstance(text, str):
        raise ValueError(f"allowed is 'cpuN: event', N from 0 to {num_cpus - 1}")
    events.add(number, int(match[1]), text)


def _shape(machine: dict[str, Any], sizes: dict[str, int], params: dict[str, int], events: EventList) -> MachineShape:
    mappers = sizes["num_processes"] * sizes["num_vpns"] if events.has_fork else max([1, *map(len, events.mappers.values())])
    need = {**sizes, "num_vmas": len(events.vmas), "rmap_slots": mappers}
    need |= {"gather_slots": min(sizes["num_vpns"], GATHER_SLOTS), "batch_slots": params["reclaim_batch"]}
    need["pcp_slots"] = max(params["pcp_high"] + 1, params["pcp_batch"])
    rounded = {name: max(getattr(SMALLEST, name), 1 << (value - 1).bit_length()) for name, value in need.items()}
    roomy = {"sets": rounded["num_vpns"], "ways": rounded["num_processes"]}
    l1, l2 = (_tlb(f"machine.{level}", machine.get(level, roomy)) for level in ("l1", "l2"))
    return replace(SMALLEST, **rounded, l1=l1, l2=l2)


def _tlb(name: str, given: Any) -> TlbGeometry:
    fields = _mapping(name, given, ("sets", "ways"), required=("sets", "ways"))
    return TlbGeometry(_integer(f"{name}.sets", fields["sets"], 1, 65536), _integer(f"{name}.ways", fields["ways"], 1, 1024))


def _params(machine: dict[str, Any], sizes: dict[str, int]) -> dict[str, int]:
    params = {name: _integer(f"machine.{name}", machine.get(name, start), first, last) for name, (start, first, last) in PARAMS.items()}
    if params["kswapd_cpu"] >= sizes["num_cpus"]:
        raise ValueError(f"machine.kswapd_cpu={params['kswapd_cpu']}: allowed are 0 to {sizes['num_cpus'] - 1}")
    drive = machine.get("drive", "scripted")
    if drive not in ("scripted", "load"):
        raise ValueError(f"machine.drive={drive}: allowed are scripted, load")
    frames = sizes["num_frames"]
    fast = _integer("machine.fast_frames", machine.get("fast_frames", frames), 1, frames)
    return {"frames_in_use": frames, **params, "load_mode": int(drive == "load"), "fast_frames": fast}


def _expect(given: Any) -> dict[str, tuple[str, ...]]:
    classes = [kind.name for kind in Violation]
    found = {}
    for entry, kinds in _mapping("expect", given).items():
        if not isinstance(kinds, list) or any(kind not in classes for kind in kinds):
            raise ValueError(f"expect.{entry}={kinds}: allowed is a list of {', '.join(classes)}; [] is clean")
        name = DEFAULT if entry == DEFAULT else _explain(f"expect.{entry}", lambda text: entry_of(text, policy_words(text)), str(entry))
        if name in found:
            raise ValueError(f"expect.{entry}: the same policy twice")
        found[name] = tuple(kind for kind in classes if kind in kinds)
    return found


def entry_of(policy: str, words: Mapping[str, Any]) -> str:
    """The policy entry that names the rules in which ``words`` differ from the preset: ``luf_v10+munmap_debt_rule:none``."""
    name, _ = split_entry(policy)
    preset = policy_words(name)
    return "+".join([name, *(f"{rule}:{words[rule]}" for rule in preset if words[rule] != preset[rule])])


def _explain(where: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _mapping(where: str, given: Any, allowed: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: allowed are lines 'field: value'; fields are {', '.join(allowed) or 'policies'}")
    wrong = [key for key in given if allowed and key not in allowed]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]}: no such field; allowed are {', '.join(allowed)}")
    missing = [key for key in required if key not in given]
    if missing:
        raise ValueError(f"{where}: {missing[0]}: missing; needed are {', '.join(required)}")
    return dict(given)


def _list(where: str, given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(f"{where}: allowed is a list of lines '- ...'")
    return given


def _integer(name: str, value: Any, first: int, last: int, more: str = "") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not first <= value <= last:
        raise ValueError(f"{name}={value}: allowed are {more}integers from {first} to {last}")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value}: allowed is a line of text")
    return " ".join(value.split())


def _shown(entry: Any) -> str:
    return ", ".join(f"{key}: {value}" for key, value in entry.items()) if isinstance(entry, dict) else str(entry)
