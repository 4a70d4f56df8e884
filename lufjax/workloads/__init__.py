"""Workloads: (name, options, CPUs, seed, length) -> a trace. They never see a policy or how much memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lufjax.trace import Trace
from lufjax.workloads import churn, kernel_counts, kv, llm, random_read, replay, table_cache
from lufjax.workloads.draws import Draws
from lufjax.workloads.layout import Workload
from lufjax.workloads.options import parse

WORKLOADS: dict[str, Workload] = {
    "llm": llm.WORKLOAD,
    "random_read": random_read.WORKLOAD,
    "kv": kv.WORKLOAD,
    "churn": churn.WORKLOAD,
    "table_cache": table_cache.WORKLOAD,
    **kernel_counts.MODES,
    "replay": replay.WORKLOAD,
}

MAX_CPUS = 256


def build(name: str, options: Mapping[str, Any], *, num_cpus: int, seed: int, num_events: int) -> Trace:
    """Build the trace of a workload.

    The trace depends on these arguments only; the random numbers on ``name``, ``num_cpus`` and ``seed``.

    Args:
        name: a key of ``WORKLOADS``.
        options: options that differ from their defaults (``conf/workload/<name>.yaml`` lists them, without ``name``).
        num_cpus: CPUs of the machine.
        seed: any non-negative integer; 0 is a seed.
        num_events: rows of the trace.

    Returns:
        A trace with the attributes ``workload``, ``num_cpus``, ``seed``, ``rmap_slots``, ``gather_slots`` and one ``option_<name>`` each.
    """
    if name not in WORKLOADS:
        raise ValueError(f"workload.name={name!r}: allowed are {', '.join(WORKLOADS)}")
    limits = (("num_cpus", num_cpus, 1, MAX_CPUS), ("seed", seed, 0, 2**63 - 1), ("num_events", num_events, 1, 2**30))
    for field, value, low, high in limits:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{field}={value!r}: allowed are integers {low} .. {high}")
    workload = WORKLOADS[name]
    checked = parse(name, options, workload.options)
    trace = workload.build(checked, num_cpus, Draws(name, num_cpus, seed), num_events)
    record = {"workload": name, "num_cpus": num_cpus, "seed": seed, "num_events": num_events}
    return replace(trace, attrs=record | trace.attrs | {f"option_{key}": value for key, value in checked.items()})
