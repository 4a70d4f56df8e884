"""What a run directory says about itself beside its numbers: config, provenance, cost model, transport of each policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from lufjax.results.cost import CostModel, cost_from_fields


def read_config(run_dir: Path | str) -> dict[str, Any]:
    """``config.yaml`` of a run as plain data.

    Raises:
        ValueError: there is none, or it holds no mapping.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"run={run_dir}: no config.yaml there; allowed are directories that a run wrote")
    config = yaml.safe_load(path.read_text())
    if not isinstance(config, dict):
        raise ValueError(f"run={run_dir}: config.yaml holds no fields; allowed are directories that a run wrote")
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists stay values."""
    if isinstance(config, dict) and config:
        return {k: v for key, value in config.items() for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: config}


def provenance(ds: xr.Dataset) -> dict[str, Any]:
    """The facts about the run that produced a dataset (attribute ``provenance_json``); empty if it has none."""
    return json.loads(ds.attrs.get("provenance_json", "{}"))


def run_cost(run_dir: Path | str) -> CostModel:
    """The cost model that the run's config names with all its fields (``cost``)."""
    chosen = read_config(run_dir).get("cost")
    if not isinstance(chosen, dict):
        raise ValueError(f"cost={chosen}: config.yaml of {run_dir} has no cost model; allowed is to name one, as in cost=xeon_1s")
    return cost_from_fields(str(chosen.get("name", "unnamed")), {key: value for key, value in chosen.items() if key != "name"})


def transports(run_dir: Path | str, policies: Sequence[str]) -> dict[str, str]:
    """Transport of each policy (``interrupt`` or ``broadcast``), from the rules that the run's config saved (``axes.policy``)."""
    rules = (read_config(run_dir).get("axes") or {}).get("policy") or {}
    missing = [p for p in policies if not (isinstance(rules, dict) and "transport" in (rules.get(p) or {}))]
    if missing:
        raise ValueError(
            f"axes.policy.{missing[0]}: config.yaml of {run_dir} does not give its transport; allowed are interrupt, broadcast"
        )
    return {p: str(rules[p]["transport"]) for p in policies}
