"""``lufjax bench``: how fast the engine is here, beside a plain C program of the same machine on the same lanes.

Medians and extremes are reported; nothing is unless both counted the same. ``docs/PERFORMANCE.md`` says what limits the numbers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from lufjax import engine
from lufjax.benchmark import bench_lanes
from lufjax.benchmark.facts import c_facts, load_reference, versions
from lufjax.benchmark.options import parse
from lufjax.benchmark.turns import Disagreement, measure_all

FAILED = 1


def main(options: Mapping[str, Any]) -> int:
    """Measure and print. ``options``: words of the command line, and ``json``. Returns the exit code."""
    given = dict(options)
    as_json = bool(given.pop("json", False))
    chosen = parse(given)
    os.environ |= {"LUFJAX_CACHE_DIR": "off", "CUDA_CACHE_DISABLE": "1"}  # compile times are measured, not read
    backend = choose_device(chosen.device, chosen.backend)
    reference, missing = load_reference(), None
    with tempfile.TemporaryDirectory() as folder:
        try:
            binary = reference.compile_reference(reference.find_compiler(), Path(folder))
        except reference.ReferenceUnavailable as error:
            binary, missing = None, str(error)
            print(f"lufjax bench: {error}; no ratios", file=sys.stderr)
        try:
            report = measure_all(chosen, backend, reference, binary)
        except Disagreement as error:
            print(f"lufjax bench: {error}; nothing is reported", file=sys.stderr)
            return FAILED
    report |= {"c_program": {"missing": missing} if missing else c_facts(reference), "versions": versions(), "options": asdict(chosen)}
    folder = bench_lanes.write(report, Path(chosen.outputs) / "bench")
    print(json.dumps(report | {"results": str(folder)}) if as_json else f"{as_text(report)}\n{folder}")
    return 0


def choose_device(device: str | None, backend: str) -> str:
    """Make JAX use a kind of device. Returns the backend, resolved.

    Raises:
        ValueError: there is none.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    engine.use_all_cores()
    chosen = engine.resolve_backend(backend)
    found = engine.device_facts(chosen)["platform"]
    if device is not None and found != device:
        hint = "; a CUDA device needs CuPy (pip install 'lufjax[gpu]')" if device == "gpu" else ""
        raise ValueError(f"device={device}: no such device found for backend={backend}; allowed is {found}{hint}")
    return chosen


def as_text(report: Mapping[str, Any]) -> str:
    """A short table for people."""
    device = report["device"]
    lines = [f"{device['cpu_model']}, {device['num_cores']} cores; device {device['kind']}; backend {report['backend']}"]
    lines.append(", ".join(f"{name} {value}" for name, value in report["versions"].items() if value))
    for name, case in report["cases"].items():
        spread = f"{case['steady_s_min']:.2f} to {case['steady_s_max']:.2f}"
        lines.append(f"{name}: {case['events_per_s'] / 1e6:.2f} M events/s ({case['lanes']} lanes x {case['events']}, {spread} s)")
        lines.append(f"  compile {case['compile_s']:.2f} s, first {case['first_s']:.2f} s, {case['bytes_per_lane']} bytes per lane")
        if "ratio_to_c" in case:
            spread = f"{case['ratio_to_c_min']:.3f} to {case['ratio_to_c_max']:.3f}"
            lines.append(f"  C {case['c_events_per_s'] / 1e6:.2f} M events/s, ratio {case['ratio_to_c']:.3f} ({spread}), counters equal")
            one_core = f"{case['c_one_core_events_per_s'] / 1e6:.2f} M events/s, ratio {case['ratio_to_c_one_core']:.3f}"
            lines.append(f"  C on one core {one_core}")
    low, high = report["mixed_over_most_expensive_min"], report["mixed_over_most_expensive_max"]
    lines.append(
        f"8 policies mixed / {report['most_expensive_policy']} alone: {report['mixed_over_most_expensive']:.3f} ({low:.3f} to {high:.3f})"
    )
    return "\n".join(lines)
