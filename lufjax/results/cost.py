"""What shootdowns cost in time: counters of a run priced by a cost model; re-pricing needs no simulation.

A cost model is a file of ``conf/cost/``: nanoseconds per counted thing, each with its source. Three parties lose time:

* *initiator*: builds the request, sends the interrupts and waits for the last responder. Its local flush runs meanwhile and is not added.
* *responder*: enters and leaves the interrupt, flushes (unless the interrupt was needless), and executes lazy sweeps.
* *refill*: walks for entries that would still have been there without flushes.

Rule: ``initiator = base * S + (same * (1 - x) + cross * x) * R`` with S = ``nr_tlb_remote_flush``, R =
``nr_tlb_remote_flush_received`` and x the share of CPU pairs on different sockets; with broadcast ``(base + op) * S`` and no responder. The
rule is affine in the number of targets, so totals price exactly what single shootdowns would, targets being spread evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from lufjax.presets import load_preset, preset_names
from lufjax.results.analysis import DIMS, RECEIVED, require

CONTROL = "never"
"""The policy that never flushes: walks beyond its own are refills."""
WORDS: dict[str, tuple[str, ...]] = {"transport": ("policy", "interrupt", "broadcast"), "refill": ("measured", "assumed")}
"""Field -> words allowed."""
RANGES: dict[str, tuple[int, int]] = {"sockets": (1, 64), "cpus_per_socket": (1, 4096), "refill_entries": (0, 1_000_000)}
"""Integer field -> smallest and largest value allowed; every field in nanoseconds goes from 0 to :data:`MAX_NS`."""
MAX_NS = 1_000_000


@dataclass(frozen=True)
class CostModel:
    """One file of ``conf/cost/``; fields end in ``_ns`` where they are nanoseconds.

    Attributes:
        name: file name without suffix.
        transport: ``policy`` prices each policy by its own transport, ``interrupt`` or ``broadcast`` all of them by that.
        sockets: sockets of the machine; filled one after the other.
        cpus_per_socket: CPUs (hardware threads) of one socket.
        initiator_base_ns: per shootdown, whatever the number of targets.
        initiator_same_socket_ns: per target on the initiator's socket.
        initiator_cross_socket_ns: per target on another socket.
        responder_ns: entry and exit of the interrupt.
        responder_flush_ns: flush work of an interrupt that was not needless.
        sweep_ns: one lazy sweep at a tick or context switch.
        refill: ``measured`` (walks beyond those of the policy ``never`` at the same coordinates) or ``assumed`` (``refill_entries`` each).
        refill_entries: entries touched again after one remote flush, for ``assumed``; never more than the walks that were counted.
        walk_ns: one page walk.
        broadcast_base_ns: per broadcast shootdown, with its completion.
        broadcast_op_ns: per broadcast instruction.
    """

    name: str
    transport: str
    sockets: int
    cpus_per_socket: int
    initiator_base_ns: float
    initiator_same_socket_ns: float
    initiator_cross_socket_ns: float
    responder_ns: float
    responder_flush_ns: float
    sweep_ns: float
    refill: str
    refill_entries: int
    walk_ns: float
    broadcast_base_ns: float
    broadcast_op_ns: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))


def _check(field: str, value: Any) -> None:
    if field == "name":
        return
    if field in WORDS:
        if value not in WORDS[field]:
            raise ValueError(f"cost.{field}={value}: allowed are {', '.join(WORDS[field])}")
    elif field in RANGES:
        low, high = RANGES[field]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"cost.{field}={value}: allowed are integers from {low} to {high}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_NS:
        raise ValueError(f"cost.{field}={value}: allowed are numbers from 0 to {MAX_NS} (nanoseconds)")


def load_cost(name: str, overrides: Mapping[str, Any] | None = None) -> CostModel:
    """Read a cost model by name, or by the path of a YAML file; ``overrides`` replace single fields.

    Raises:
        ValueError: one line naming the field, its value and what is allowed.
    """
    if not name.endswith((".yaml", ".yml")):
        return cost_from_fields(name, {**load_preset("cost", name), **(overrides or {})})
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"cost={name}: no such file; allowed are {', '.join(preset_names('cost'))}, or the path of a YAML file")
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"cost={name}: the file holds no fields; allowed is one line 'field: value' per field")
    return cost_from_fields(path.stem, {**values, **(overrides or {})})


def cost_from_fields(name: str, values: Mapping[str, Any]) -> CostModel:
    """Build a cost model from a plain mapping; every field must be given and no other."""
    known = [field.name for field in fields(CostModel) if field.name != "name"]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"cost.{unknown[0]}={values[unknown[0]]}: no such field; allowed are {', '.join(known)}")
    missing = [field for field in known if field not in values]
    if missing:
        raise ValueError(f"cost.{missing[0]}: missing; a cost model names every field")
    return CostModel(name=name, **values)


def cross_share(num_cpus: int, cost: CostModel) -> float:
    """Share of ordered CPU pairs on different sockets when sockets are filled one after the other.

    Raises:
        ValueError: the machine of the cost model has fewer CPUs.
    """
    capacity = cost.sockets * cost.cpus_per_socket
    if num_cpus > capacity:
        raise ValueError(
            f"cost.sockets={cost.sockets}: with cost.cpus_per_socket={cost.cpus_per_socket} that is {capacity} CPUs; this run "
            f"needs at least {num_cpus}"
        )
    if num_cpus < 2:
        return 0.0
    sizes = np.diff(np.append(np.arange(0, num_cpus, cost.cpus_per_socket), num_cpus))
    return float((sizes * (num_cpus - sizes)).sum() / (num_cpus * (num_cpus - 1)))


def price(ds: xr.Dataset, cost: CostModel, transport: Mapping[str, str]) -> xr.Dataset:
    """Estimated time lost to shootdowns.

    Args:
        ds: results with all dimensions of ``analysis.DIMS``.
        cost: prices.
        transport: ``interrupt`` or ``broadcast`` by policy name (used where ``cost.transport`` is ``policy``).

    Returns:
        ``initiator``, ``responder``, ``refill`` and their sum ``lost``, in ns per access: the loss of all CPUs over the accesses of all,
        that is, what an average CPU loses per access of its own; the same number is us per 1,000 accesses. ``refill`` is missing (and
        not in ``lost``) with ``refill=measured`` where the run has no policy ``never``.
    """
    require(ds, "accesses", "nr_tlb_remote_flush", RECEIVED, "needless", "sweeps", "dtlb_load_misses", "dtlb_store_misses")
    sent, received, needless, sweeps = (ds[name].astype(np.float64) for name in ("nr_tlb_remote_flush", RECEIVED, "needless", "sweeps"))
    share = xr.DataArray([cross_share(int(c), cost) for c in ds["num_cpus"].values], dims="num_cpus", coords={"num_cpus": ds["num_cpus"]})
    target = cost.initiator_same_socket_ns * (1 - share) + cost.initiator_cross_socket_ns * share
    by_interrupt = cost.initiator_base_ns * sent + target * received
    by_broadcast = (cost.broadcast_base_ns + cost.broadcast_op_ns) * sent
    broadcast = _is_broadcast(ds, cost, transport)
    served = cost.responder_ns * received + cost.responder_flush_ns * (received - needless)
    parts = {
        "initiator": xr.where(broadcast, by_broadcast, by_interrupt),
        "responder": xr.where(broadcast, 0.0, served) + cost.sweep_ns * sweeps,
        "refill": cost.walk_ns * refills(ds, cost),
    }
    accesses = ds["accesses"].astype(np.float64)
    priced = xr.Dataset({name: (part / accesses.where(accesses > 0)).transpose(*DIMS) for name, part in parts.items()})
    priced["lost"] = priced["initiator"] + priced["responder"] + priced["refill"].fillna(0.0)
    for name, var in priced.data_vars.items():
        var.attrs = {"units": "ns", "long_name": f"estimated time per access, {name}"}
    return priced


def refills(ds: xr.Dataset, cost: CostModel) -> xr.DataArray:
    """Walks caused by flushes, per lane (see :class:`CostModel`, ``refill``); 0 at 1 CPU, where no flush is a shootdown."""
    misses = ds["dtlb_load_misses"].astype(np.float64) + ds["dtlb_store_misses"].astype(np.float64)
    if cost.refill == "assumed":
        effective = (ds[RECEIVED] - ds["needless"]).astype(np.float64)
        assumed = cost.refill_entries * effective
        extra = assumed.where(assumed < misses, misses)
    elif CONTROL in ds["policy"].values:
        extra = misses - misses.sel(policy=CONTROL, drop=True)
    else:
        extra = xr.full_like(misses, np.nan)
    return extra.where(ds["num_cpus"] > 1, 0.0 * extra)


def _is_broadcast(ds: xr.Dataset, cost: CostModel, transport: Mapping[str, str]) -> xr.DataArray:
    names = [str(p) for p in ds["policy"].values]
    if cost.transport != "policy":
        flags = [cost.transport == "broadcast"] * len(names)
    else:
        missing = [name for name in names if transport.get(name) not in ("interrupt", "broadcast")]
        if missing:
            raise ValueError(f"policy.transport={transport.get(missing[0])} of policy {missing[0]}: allowed are interrupt, broadcast")
        flags = [transport[name] == "broadcast" for name in names]
    return xr.DataArray(flags, dims="policy", coords={"policy": ds["policy"]})
