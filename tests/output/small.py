"""A run small enough to simulate with a fake engine many times over."""

from __future__ import annotations

from lufjax.config import load_run_config
from lufjax.settings import RunConfig

SMALL = (
    "machine=tiny",
    "workload=llm",
    "workload.file_pages=256",
    "workload.layer_pages=16",
    "workload.num_processes=1",
    "num_events=1200",
    "figures=false",
    "engine.chunk_lanes=8",
)


def small_config(*overrides: str) -> RunConfig:
    """Compose a small config; later overrides win."""
    return load_run_config([*SMALL, *overrides])
