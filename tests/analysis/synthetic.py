"""Made-up results with the schema of a real run: deterministic, plausible in size, cheap at any extent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xarray as xr
import yaml

from lufjax.counters import HISTOGRAMS, NUM_BUCKETS, SCALARS
from lufjax.presets import load_preset
from lufjax.results.analysis import CLASSES, DIMS

POLICIES = ("never", "eager", "linux", "luf_naive", "luf_vma_flag", "luf_v10", "fpr", "latr")
# per policy: shootdowns relative to linux, share of each payer (reclaim, mapping, fault, alloc), stale accesses, unsafe
CHARACTER = {
    "never": (0.0, (0, 0, 0, 0), 9.0, True),
    "eager": (14.0, (0.93, 0.05, 0.02, 0), 0.0, False),
    "linux": (1.0, (0.88, 0.1, 0.02, 0), 0.02, False),
    "linux_6_15": (0.8, (0.86, 0.12, 0.02, 0), 0.02, False),
    "luf_naive": (0.05, (0.3, 0.1, 0.1, 0.5), 3.0, True),
    "luf_vma_flag": (0.08, (0.25, 0.25, 0.1, 0.4), 2.9, False),
    "luf_pte_marker": (0.06, (0.3, 0.2, 0.1, 0.4), 2.9, False),
    "luf_v10": (0.12, (0.2, 0.4, 0.15, 0.25), 2.5, False),
    "fpr": (0.2, (0.1, 0.2, 0.1, 0.6), 1.8, False),
    "latr": (0.75, (0.96, 0.02, 0.02, 0), 0.6, True),
}


def results(
    workloads: tuple[str, ...] = ("llm",),
    policies: tuple[str, ...] = ("never", "linux", "luf_v10"),
    num_cpus: tuple[int, ...] = (1, 4, 16),
    pressure: tuple[float, ...] = (1.25, 2.0),
    seeds: int = 4,
    num_samples: int = 12,
    accesses: int = 70_000,
) -> xr.Dataset:
    """Build a dataset as a run writes it; the same arguments give the same integers."""
    shape = (len(workloads), len(policies), len(num_cpus), len(pressure), seeds)
    max_cpus = max(num_cpus)
    scalars = {name: np.zeros(shape, np.int64) for name in SCALARS}
    hists = {name: np.zeros((*shape, NUM_BUCKETS), np.int64) for name in HISTOGRAMS}
    violations = np.zeros((*shape, len(CLASSES), 2), np.int64)
    received = np.full((*shape, max_cpus), -1, np.int64)
    pending = np.zeros((*shape, num_samples), np.int64)
    over_time = np.zeros((*shape, num_samples), np.int64)
    for lane in np.ndindex(*shape):
        w, p, c, m, s = lane
        counts = _lane(
            policies[p], num_cpus[c], pressure[m], w, np.random.default_rng([w, num_cpus[c], int(100 * pressure[m]), s]), accesses
        )
        for name, value in counts.pop("scalars").items():
            scalars[name][lane] = value
        for name in HISTOGRAMS:
            hists[name][lane] = counts[name]
        violations[lane] = counts["violations"]
        total = scalars["nr_tlb_remote_flush_received"][lane]
        received[lane][: num_cpus[c]] = np.diff(np.linspace(0, total, num_cpus[c] + 1).astype(np.int64))
        ramp = np.linspace(0, 1, num_samples)
        wave = 1 - np.exp(-4 * ramp) + 0.08 * np.sin(9 * ramp + s)
        pending[lane] = np.round(counts["pending"] * np.maximum(wave, 0)).astype(np.int64)
        over_time[lane] = np.round(total * ramp).astype(np.int64)
    return _dataset(locals(), workloads, policies, num_cpus, pressure, seeds, num_samples, accesses)


def _lane(policy: str, cpus: int, pressure: float, w: int, rng: np.random.Generator, accesses: int) -> dict:
    scale, payers, stale, unsafe = CHARACTER[policy]
    noise = rng.lognormal(0, 0.12)
    steal = int(accesses * 0.02 * (pressure - 1) * noise * (1 + 0.5 * w))
    batches = steal / 28
    base = batches * (cpus - 1) * 0.8
    got = int(base * scale * (1 + 0.05 * rng.standard_normal()))
    split = np.floor(np.array(payers) * got).astype(np.int64)
    if split.sum():
        split[int(np.argmax(payers))] += got - split.sum()
    stale_uses = int(stale * accesses / 1000 * noise * (cpus > 1)) if scale < 10 else 0
    bad = int(stale_uses * (0.6 if policy == "never" else 0.004)) if unsafe else 0
    violations = np.zeros((len(CLASSES), 2), np.int64)
    violations[1] = bad, bad // 9
    violations[0] = bad // 3, 0
    violations[3, 1] = bad // 5 if policy == "never" else 0
    deferred = steal if policy.startswith("luf") or policy in ("fpr", "latr") else 0
    misses = int(accesses * 0.06 * noise + min(got, accesses) * 0.5)
    scalars = {
        "accesses": accesses, "loads": accesses * 9 // 10, "stores": accesses - accesses * 9 // 10, "events": accesses * 100 // 70,
        "pgfault": steal, "pgmajfault": steal, "dtlb_load_misses": misses, "dtlb_store_misses": misses // 10, "walk_completed": misses,
        "stlb_hit": misses * 2, "pgsteal_kswapd": steal, "pgscan": steal * 2, "deferred_unmaps": deferred, "tolerated": stale_uses - bad,
        "tolerated_epoch": (stale_uses - bad) // 50, "nr_tlb_remote_flush_received": got,
        "nr_tlb_remote_flush": got // max(cpus - 1, 1) if cpus > 1 else 0,
        "ipi_reclaim": split[0], "ipi_mapping": split[1], "ipi_fault": split[2], "ipi_alloc": split[3], "needless": got // 20,
        "discharges": deferred // 30, "absorbed": deferred // 2, "nr_gathers": 40,
        "sweeps": deferred // 8 if policy == "latr" and cpus > 1 else 0,
    }  # fmt: skip
    age = np.floor(stale_uses * _bell(9 if policy != "latr" else 5, 2.2)).astype(np.int64)
    allocs = np.zeros(NUM_BUCKETS, np.int64)
    top = int(np.log2(max(cpus - 1, 1))) + 1
    busy = int(split[3] / max(cpus - 1, 1) * 1.5)
    allocs[0] = max(steal - busy, 0)
    if cpus > 1 and busy:
        for k in range(1, top + 1):
            allocs[k] = int(busy * 2.0 ** (k - top))
    return {
        "scalars": scalars, "violations": violations, "ipis_per_alloc": allocs, "age_at_use": age,
        "age_at_discharge": np.floor(deferred // 30 * (0.3 + scale) * _bell(8 + 2 * scale, 1.7)).astype(np.int64),
        "pending": deferred * 0.02 * (1 + len(policy) / 9),
    }  # fmt: skip


def _bell(centre: float, width: float) -> np.ndarray:
    weight = np.exp(-(((np.arange(NUM_BUCKETS) - centre) / width) ** 2) / 2)
    weight[0] = 0
    return weight / weight.sum()


def _dataset(parts, workloads, policies, num_cpus, pressure, seeds, num_samples, accesses) -> xr.Dataset:
    data = {name: (DIMS, values, {"units": SCALARS[name][0], "long_name": SCALARS[name][1]}) for name, values in parts["scalars"].items()}
    data |= {name: ((*DIMS, "bucket"), values, {"units": HISTOGRAMS[name][0]}) for name, values in parts["hists"].items()}
    data["violations"] = ((*DIMS, "violation_class", "access"), parts["violations"])
    data["received"] = ((*DIMS, "cpu"), parts["received"])
    data["nr_pending"] = ((*DIMS, "sample"), parts["pending"])
    data["nr_tlb_remote_flush_received_over_time"] = ((*DIMS, "sample"), parts["over_time"])
    events = accesses * 150 // 70
    coords = {
        "workload": list(workloads), "policy": list(policies), "num_cpus": list(num_cpus),
        "pressure": list(pressure), "seed": list(range(seeds)),
        "bucket": np.arange(NUM_BUCKETS), "violation_class": list(CLASSES), "access": ["load", "store"], "cpu": np.arange(max(num_cpus)),
        "event": ("sample", np.linspace(0, events, num_samples + 1).astype(np.int64)[1:]),
    }  # fmt: skip
    provenance = {
        "run_id": "synthetic",
        "git_commit": "0" * 40,
        "git_dirty": False,
        "versions": {"lufjax": "0.1.0", "jax": "0.10.1"},
        "device": "cpu",
        "wall_s": 1.5,
    }
    attrs = {"title": "synthetic", "provenance_json": json.dumps(provenance), "warmup_events": events // 3, "num_events": events}
    return xr.Dataset(data, coords, attrs)


def config_of(ds: xr.Dataset, **changes) -> dict:
    """A saved config with the keys that figures and reports read."""
    axes = {
        "workload": {str(w): {} for w in ds["workload"].values},
        "policy": {str(p): {"transport": "interrupt", "flush_ceiling": 33} for p in ds["policy"].values},
        "num_cpus": ds["num_cpus"].values.tolist(), "pressure": ds["pressure"].values.tolist(), "seed": ds["seed"].values.tolist(),
    }  # fmt: skip
    config = {
        "name": "synthetic",
        "num_events": 150_000,
        "warmup_divisor": 3,
        "axes": axes,
        "machine": {"l1": {"sets": 16, "ways": 4}, "num_frames": 512},
    }
    return {**config, "cost": {"name": "xeon_1s", **load_preset("cost", "xeon_1s")}, **changes}


def write_run(directory: Path, ds: xr.Dataset, config: dict | None = None) -> Path:
    """Write a run directory with ``results.nc`` and ``config.yaml``."""
    directory.mkdir(parents=True, exist_ok=True)
    encoding = {str(name): {"_FillValue": -1} for name in ds.data_vars}
    ds.to_netcdf(directory / "results.nc", engine="h5netcdf", encoding=encoding)
    (directory / "config.yaml").write_text(yaml.safe_dump(config or config_of(ds)))
    return directory
