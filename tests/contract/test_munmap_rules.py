"""``experiment=munmap_rules``: its policies differ in one rule, it runs, and the hole that it is about can be seen."""

from __future__ import annotations

import xarray as xr

from lufjax.config import load_run_config
from lufjax.policy import FlushPolicy
from lufjax.presets import load_policy
from lufjax.sweeps import sweep

SAME_BASE = ("luf_vma_flag", "luf_pte_marker", "luf_pte_marker+marker_fault:flush", "luf_naive+munmap_debt_rule:pending", "luf_always")


def test_proposals_differ_from_the_base_in_the_munmap_rule_only():
    config = load_run_config(["experiment=munmap_rules"])
    base = config.policies["luf_naive"]
    for name in SAME_BASE:
        changed = {rule for rule, value in config.policies[name].items() if value != base[rule]}
        assert "munmap_debt_rule" in changed
        assert changed <= {"munmap_debt_rule", "marker_fault"}
    assert len({load_policy(name) for name in (*SAME_BASE, "luf_naive")}) == len(SAME_BASE) + 1
    assert set(SAME_BASE) | {"never", "eager", "linux", "luf_naive", "luf_v10"} == set(config.policies)
    assert set(config.policies["luf_naive"]) == set(FlushPolicy._fields)


def test_a_tiny_version_runs_and_only_the_base_falls_into_the_hole(tmp_path):
    """Few files, so that they stay in the TLB: a stale entry survives until its address is mapped again."""
    arguments = [
        "experiment=munmap_rules", "workload=table_cache", "workload.num_mapped=16", "axes.workload_option.table_pages=[4]",
        "axes.workload_option.pageout_lead=[1]", "num_cpus=4", "pressure=1.25", "axes.seed=2", f"run_dir={tmp_path / 'run'}",
        "num_events=24000",
    ]  # fmt: skip
    run_dir = sweep.run(load_run_config(arguments), arguments)
    with xr.open_dataset(run_dir / "results.nc", engine="h5netcdf") as stored:
        ds = stored.load().squeeze(("workload", "num_cpus", "pressure"))
    wrong = ds["violations"].sum(["seed", "access"])
    assert wrong.sel(violation_class="MAPPING", policy=["never", "luf_naive"]).values.all()
    assert not wrong.drop_sel(policy=["never", "luf_naive"]).values.any()
    assert not ds["segv"].values.any()
    received = ds["nr_tlb_remote_flush_received"].sum("seed")
    rising = received.sel(policy=["luf_naive", "luf_pte_marker", "luf_vma_flag", "linux"]).values
    assert (rising[1:] > rising[:-1]).all()
    report = (run_dir / "report.md").read_text()
    assert "### Beyond `luf_naive`: table_cache" in report
    assert list((run_dir / "figures").glob("rule_cost-table_cache*.png"))
