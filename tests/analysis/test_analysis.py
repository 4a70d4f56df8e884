"""Rates, paired reductions, intervals and tails against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lufjax.results import analysis

from .synthetic import results, write_run


def hand_made(received: dict[str, list[list[int]]], accesses: int = 1000) -> xr.Dataset:
    """One workload, one pressure; received[policy][num_cpus][seed] with CPU counts 1 and 2."""
    counts = np.array([received[p] for p in received], np.int64)[None, :, :, None, :]
    coords = {"workload": ["w"], "policy": list(received), "num_cpus": [1, 2], "pressure": [2.0], "seed": np.arange(counts.shape[-1])}
    return xr.Dataset({analysis.RECEIVED: (analysis.DIMS, counts), "accesses": (analysis.DIMS, np.full(counts.shape, accesses))}, coords)


def test_reduction_is_paired_per_seed_and_missing_at_one_cpu():
    ds = hand_made({"linux": [[0, 0, 0], [100, 200, 400]], "luf_v10": [[0, 0, 0], [10, 40, 120]]})
    values = analysis.reduction(ds).sel(policy="luf_v10").squeeze()
    assert np.isnan(values.sel(num_cpus=1)).all()
    np.testing.assert_allclose(values.sel(num_cpus=2), [0.9, 0.8, 0.7])


def test_reduction_is_missing_where_the_baseline_received_nothing():
    ds = hand_made({"linux": [[0, 0], [0, 50]], "luf_v10": [[0, 0], [0, 5]]})
    values = analysis.reduction(ds).sel(policy="luf_v10", num_cpus=2).squeeze()
    assert np.isnan(values[0])
    assert float(values[1]) == pytest.approx(0.9)
    assert int(analysis.interval(values)["n"]) == 1


def test_a_count_at_one_cpu_still_gives_no_reduction():
    ds = hand_made({"linux": [[7, 7], [50, 50]], "luf_v10": [[0, 0], [5, 5]]})
    assert np.isnan(analysis.reduction(ds).sel(num_cpus=1)).all()


def test_interval_of_a_hand_example():
    stats = analysis.interval(xr.DataArray([0.9, 0.8, 0.7], dims="seed"))
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # t(0.975, 2 degrees of freedom), standard deviation 0.1
    assert float(stats["mean"]) == pytest.approx(0.8)
    assert float(stats["low"]) == pytest.approx(0.8 - half)
    assert float(stats["high"]) == pytest.approx(0.8 + half)


def test_pairing_cancels_what_seeds_have_in_common():
    rng = np.random.default_rng(0)
    baseline = rng.integers(1000, 9000, 8)
    ds = hand_made({"linux": [[0] * 8, baseline.tolist()], "luf_v10": [[0] * 8, (baseline // 10).tolist()]})
    stats = analysis.interval(analysis.reduction(ds).sel(policy="luf_v10", num_cpus=2).squeeze())
    assert float(stats["high"] - stats["low"]) < 0.001


def test_interval_with_few_values():
    one = analysis.interval(xr.DataArray([0.5, np.nan], dims="seed"))
    none = analysis.interval(xr.DataArray([np.nan, np.nan], dims="seed"))
    assert float(one["mean"]) == 0.5
    assert np.isnan(one["low"])
    assert np.isnan(one["high"])
    assert np.isnan(none["mean"])


def test_band_leaves_missing_seeds_out():
    stats = analysis.band(xr.DataArray([[1.0, 2.0, 3.0, np.nan], [np.nan] * 4], dims=("x", "seed")))
    assert stats["median"].values.tolist()[0] == 2.0
    assert np.isnan(stats["median"].values[1])
    assert stats["n"].values.tolist() == [3, 0]


def test_tail_of_a_log2_histogram():
    histogram = xr.DataArray([[6, 2, 1, 1]], dims=("seed", "bucket"))
    tail = analysis.tail(histogram)
    assert tail["at_least"].values.tolist() == [0, 1, 2, 4]
    np.testing.assert_allclose(tail.values, [1.0, 0.4, 0.2, 0.1])
    assert analysis.quantile_range(histogram.values[0], 0.5) == (0, 0)
    assert analysis.quantile_range(histogram.values[0], 0.85) == (2, 3)
    assert analysis.quantile_range(histogram.values[0], 1.0) == (4, 4)
    assert analysis.quantile_range(np.zeros(4), 0.5) is None


def test_unsafe_policies_and_stale_uses():
    ds = results(policies=("never", "linux", "luf_v10"))
    assert analysis.unsafe_policies(ds) == ("never",)
    uses = analysis.stale_uses(ds).squeeze()
    assert uses["use"].values.tolist() == ["tolerated", *analysis.CLASSES]
    assert float(uses.sel(policy="never", use="MAPPING")) == float(ds["violations"].sel(policy="never", violation_class="MAPPING").sum())


def test_drift_of_a_steady_and_of_a_growing_run():
    ds = results(num_samples=12)
    name = f"{analysis.RECEIVED}_over_time"
    steady = analysis.drift(ds).sel(policy="linux", num_cpus=16)
    np.testing.assert_allclose(steady, 1.0, atol=0.05)
    grown = ds.assign({name: ds[name] * np.arange(1, 13)})
    assert (analysis.drift(grown).sel(policy="linux", num_cpus=16) > 1.3).all()


def test_dropped_dimensions_come_back(tmp_path):
    ds = results(workloads=("llm",), policies=("linux",), num_cpus=(4,), pressure=(2.0,), seeds=1)
    small = ds.squeeze(["workload", "policy", "num_cpus", "pressure", "seed"])
    loaded = analysis.load_results(write_run(tmp_path / "run", small.assign_coords(small.coords), config={"name": "x"}))
    assert loaded[analysis.RECEIVED].dims == analysis.DIMS
    assert loaded["num_cpus"].values.tolist() == [4]
    assert str(loaded["policy"].values[0]) == "linux"
    xr.testing.assert_equal(analysis.rate(loaded, analysis.RECEIVED), analysis.rate(ds, analysis.RECEIVED))


def test_lines_that_name_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"^run=.*: no results\.nc there; allowed are directories that a finished run wrote$"):
        analysis.load_results(tmp_path)
    with pytest.raises(analysis.MissingVariable, match=r"^results\.nc: variable needless is missing$"):
        analysis.rate(results().drop_vars("needless"), "needless")
    with pytest.raises(analysis.MissingBaseline, match=r"^policy linux is not in this run \(it has luf_v10\)$"):
        analysis.reduction(results(policies=("luf_v10",)))


def test_dimensions_are_those_of_the_grid():
    grid = pytest.importorskip("lufjax.sweeps.grid")
    assert analysis.DIMS == grid.DIMS
