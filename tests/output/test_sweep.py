"""From config to ``results.nc`` with a fake engine: what is written, that chunking changes nothing, and what a wrong run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from lufjax import cli
from lufjax import config as config_module
from lufjax.counters import HISTOGRAMS, SCALARS
from lufjax.faults import EngineFault, Fault
from lufjax.results import dataset
from lufjax.sweeps import capacity, run_id, sweep
from lufjax.sweeps.grid import DIMS
from tests.output.fake_engine import FakeEngine
from tests.output.small import SMALL, small_config

AXES = ("-m", "policy=linux,luf_v10,never", "num_cpus=1,2,4", "pressure=1.5,2", "seed=0,1")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    engine = FakeEngine()
    monkeypatch.setattr(sweep, "engine", engine)
    monkeypatch.chdir(tmp_path)
    return engine


def opened(run_dir):
    with xr.open_dataset(run_dir / "results.nc", engine="h5netcdf") as ds:
        return ds.load()


def test_results_have_the_documented_schema(fake):
    config = small_config(*AXES)
    ds = opened(sweep.run(config, list(AXES)))
    sizes = {"workload": 1, "policy": 3, "num_cpus": 3, "pressure": 2, "seed": 2, "sample": 12, "bucket": 16, "violation_class": 6}
    assert {name: ds.sizes[name] for name in sizes} == sizes
    assert set(SCALARS) <= set(ds.data_vars)
    for name in SCALARS:
        assert ds[name].dims == DIMS
        assert ds[name].dtype == np.int64
        assert ds[name].attrs["units"]
        assert ds[name].attrs["long_name"]
    assert all(ds[name].dims == (*DIMS, "bucket") for name in HISTOGRAMS)
    assert ds["violations"].dims == (*DIMS, "violation_class", "access")
    assert ds["first_violation"].dims == (*DIMS, "violation_class", "field")
    assert ds["nr_pending"].dims == (*DIMS, "sample")
    assert ds["received"].dims == (*DIMS, "cpu")
    assert all(ds[name].attrs.get("long_name") for name in ds.coords)
    assert ds.attrs["Conventions"].startswith("CF-")
    facts = json.loads(ds.attrs["provenance_json"])
    assert {"config", "overrides", "git_commit", "git_dirty", "versions", "device", "run_id", "seeds"} <= set(facts)
    assert facts["overrides"] == list(AXES)


def test_schema_page_names_every_variable(fake):
    page = (ROOT / "docs" / "RESULTS.md").read_text()
    ds = opened(sweep.run(small_config()))
    own = set(ds.data_vars) - set(SCALARS) - set(HISTOGRAMS)
    assert [name for name in (*own, *ds.coords) if f"`{name}`" not in page] == []


def test_counters_are_counted_after_the_warmup_and_violations_always(fake):
    config = small_config("num_cpus=2")
    ds = opened(sweep.run(config)).squeeze(DIMS)
    per_event = int(ds["accesses"]) // (1200 - 400)
    assert int(ds["accesses"]) == per_event * (1200 - 400)
    series = ds["nr_tlb_remote_flush_received_over_time"].values
    assert (series == (per_event + list(SCALARS).index("nr_tlb_remote_flush_received")) * ds["event"].values).all()
    assert int(ds["violations"].sel(violation_class="REUSE", access="store")) % 1200 == 0


def test_without_warmup_everything_is_counted(fake):
    ds = opened(sweep.run(small_config("warmup_divisor=0"))).squeeze(DIMS)
    assert int(ds["accesses"]) % 1200 == 0


def test_cpus_that_a_machine_lacks_are_missing(fake):
    ds = opened(sweep.run(small_config("-m", "num_cpus=1,4"))).squeeze(drop=True)
    assert ds["received"].notnull().sum("cpu").values.tolist() == [1, 4]


def test_time_series_end_with_the_run(fake):
    ds = opened(sweep.run(small_config("num_samples=7")))
    assert ds["event"].values[-1] == 1200
    assert 400 in ds["event"].values


@pytest.mark.parametrize("change", ["engine.chunk_lanes=3", "engine.chunk_lanes=4096", "engine.cpu_groups=[4]", "engine.trace_cache_mib=0"])
def test_chunks_and_groups_change_no_number(fake, change):
    usual, other = opened(sweep.run(small_config(*AXES))), opened(sweep.run(small_config(*AXES, change)))
    xr.testing.assert_equal(usual, other)


def test_point_order_changes_no_number(fake):
    usual = opened(sweep.run(small_config(*AXES)))
    other = opened(sweep.run(small_config("-m", "policy=never,luf_v10,linux", "num_cpus=4,1,2", "pressure=2,1.5", "seed=1,0")))
    xr.testing.assert_equal(usual, other.sel({dim: usual[dim] for dim in DIMS}))


def test_two_runs_in_the_same_second_have_directories_of_their_own(fake):
    config = small_config("resume=never")
    assert len({sweep.run(config) for _ in range(4)}) == 4


def test_twenty_thousand_points_are_one_batch(fake, monkeypatch):
    """Work that could grow with the number of points, counted: configs, traces, engine calls."""
    composed, built = [], []
    compose, build = config_module.compose, sweep.TraceSource.get
    monkeypatch.setattr(config_module, "compose", lambda *args, **kwargs: composed.append(1) or compose(*args, **kwargs))
    config = small_config(
        *("-m", "policy=glob(*,exclude=[luf_*_as_posted,luf_v11,luf_v12,luf_always])", "num_cpus=1,2,4,8"),
        *("pressure=1,1.1,1.2,1.3,1.4", "seed=range(0,100)", "engine.chunk_lanes=512"),
        *("num_events=300", "num_samples=2"),
    )
    assert config.num_lanes == 20_000
    monkeypatch.setattr(sweep.TraceSource, "get", lambda self, key: built.append(key) or build(self, key))
    began = time.monotonic()
    ds = opened(sweep.run(config))
    assert len(composed) == 1
    assert sum(call["lanes"] for call in fake.calls) == 20_000
    assert len(fake.calls) == 4 * 10
    assert len(set(built)) == 4 * 100
    assert len(built) <= 400 + 40 * 100
    assert int(ds["accesses"].count()) == 20_000
    assert time.monotonic() - began < 60


def test_config_is_saved_and_runs_again_to_the_same_numbers(fake):
    run_dir = sweep.run(small_config(*AXES))
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["axes"]["policy"]["luf_v10"]["munmap_debt_rule"] == "pending"
    again = sweep.run(config_module.load_run_config(["-cp", str(run_dir), "-cn", "config", "resume=never"]))
    xr.testing.assert_equal(opened(run_dir), opened(again))


def test_programs_are_compiled_ahead_of_their_groups_and_only_a_few(fake):
    begun = []
    fake.before = lambda number: begun.append(len(fake.compiled))
    sweep.run(small_config("-m", "num_cpus=1,2,3,4,5,6", "engine.chunk_lanes=4096"))
    assert fake.compiled == [(call["shape"], call["ops"]) for call in fake.calls]
    assert [shape.num_cpus for shape, _ in fake.compiled] == [1, 2, 3, 4, 5, 6]
    assert all(number <= compiled <= number + sweep.COMPILED_AHEAD for number, compiled in enumerate(begun, 1))


def test_what_stops_a_compilation_stops_the_run_that_needs_it(fake):
    def broken(number):
        if number == 1:
            raise RuntimeError("no translation")

    fake.before_compiling = broken
    with pytest.raises(RuntimeError, match="no translation"):
        sweep.run(small_config("-m", "num_cpus=1,2,3"))
    assert {call["shape"].num_cpus for call in fake.calls} == {1}


def test_a_fault_names_the_point_and_writes_no_results(fake, capsys):
    def broken(number):
        if number == 1:
            raise EngineFault(int(Fault.RMAP_FULL), 2, 77)

    fake.before = broken
    assert cli.main(["run", *SMALL, *AXES]) == 1
    printed = capsys.readouterr()
    for text in ("RMAP_FULL", "event 77", "policy=", "num_cpus=", "pressure=", "seed="):
        assert text in printed.err
    (run_dir,) = (Path("outputs") / "run").iterdir()
    assert not (run_dir / "results.nc").exists()


def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(fake, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(capacity, "memory_limit", lambda: 2**30)
    fake.bytes_per_lane = lambda shape: 2**28
    assert cli.main(["run", *SMALL, "-m", "seed=range(0,8)"]) == 2
    assert "engine.chunk_lanes=8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bytes_per_lane_and_progress_are_printed(fake, capsys):
    assert cli.main(["run", *SMALL, "num_cpus=2"]) == 0
    printed = capsys.readouterr()
    assert "2000 bytes per lane" in printed.err
    assert "peak host memory" in printed.err
    assert "100 %" in printed.err
    assert Path(printed.out.strip(), "results.nc").is_file()


def test_run_dir_takes_a_new_directory_and_refuses_a_strange_one(fake, tmp_path, capsys):
    assert cli.main(["run", *SMALL, "run_dir=here"]) == 0
    assert (tmp_path / "here" / "results.nc").is_file()
    assert cli.main(["run", *SMALL, "run_dir=here", "num_cpus=2"]) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    assert cli.main(["run", *SMALL, "run_dir=other"]) == 2
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]


def test_a_finished_run_is_not_simulated_again(fake):
    config = small_config("run_dir=here")
    first = opened(sweep.run(config))
    calls = len(fake.calls)
    xr.testing.assert_equal(first, opened(sweep.run(config)))
    assert len(fake.calls) == calls


def test_a_directory_that_is_being_written_is_left_alone(fake, tmp_path):
    sweep.run(small_config("run_dir=here"))
    with run_id.locked(tmp_path / "here"), pytest.raises(ValueError, match="another process"):
        sweep.run(small_config("run_dir=here"))


KILLED = """
import sys, time
from pathlib import Path
from lufjax.sweeps import sweep
from tests.output.fake_engine import FakeEngine
from tests.output.small import small_config
marker, stop, *overrides = sys.argv[1:]
def before(number):
    Path(marker).write_text(str(number))
    while number == int(stop):
        time.sleep(0.02)
engine = FakeEngine(before=before)
sweep.engine = engine
print(sweep.run(small_config(*overrides)), len(engine.calls))
"""


def test_kill_and_start_again_loses_no_finished_chunk(fake, tmp_path):
    overrides = [*AXES, "outputs=kept"]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "marker")]
    environment = {"cwd": tmp_path, "env": {**__import__("os").environ, "PYTHONPATH": str(ROOT)}}
    running = subprocess.Popen([*command, "3", *overrides], stderr=subprocess.DEVNULL, **environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "marker").exists() or (tmp_path / "marker").read_text() != "3":
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.02)
    running.kill()
    running.wait()
    (run_dir,) = (tmp_path / "kept" / "run").iterdir()
    before = {path: path.read_bytes() for path in run_dir.rglob("c/*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in before}
    assert not (run_dir / "results.nc").exists()
    done = subprocess.run([*command, "-1", *overrides], capture_output=True, text=True, check=True, **environment)
    where, calls = done.stdout.split()
    whole = sweep.run(small_config(*overrides, "outputs=fresh"))
    assert (tmp_path / where).resolve() == run_dir
    assert int(calls) == len(fake.calls) - 3
    assert all(path.stat().st_mtime_ns == times[path] and path.read_bytes() == before[path] for path in before)
    xr.testing.assert_equal(opened(run_dir), opened(whole))
    for path in (p for p in (whole / "store.zarr").rglob("c/*") if p.is_file()):
        assert path.read_bytes() == (run_dir / path.relative_to(whole)).read_bytes()


def test_never_run_cells_are_missing(fake, tmp_path):
    """A store with an unfinished chunk gives missing values there, integers elsewhere."""
    from lufjax.results.store import Store
    from lufjax.sweeps.grid import plan
    from lufjax.sweeps.traces import TraceSource

    config = small_config("-m", "num_cpus=2", "policy=linux,never", "seed=range(0,8)")
    source = TraceSource(config.workloads, config.num_events, 2**26)
    groups = plan(config, source)
    store = Store.create(tmp_path / "store.zarr", groups, 8, len(config.sample_points), {"digest": "x"})
    store.write(0, 0, sweep.simulate_lanes(config, groups[0], source, slice(0, 8), lambda share: None))
    numbers = {0: np.asarray(groups[0].params.frames_in_use)}
    dataset.write_netcdf(dataset.assemble(config, store, numbers, {0: groups[0].footprints}), tmp_path / "results.nc")
    ds = opened(tmp_path)
    assert ds["accesses"].sel(policy="linux").notnull().all()
    assert ds["accesses"].sel(policy="never").isnull().all()
    with xr.open_dataset(tmp_path / "results.nc", engine="h5netcdf", mask_and_scale=False) as raw:
        assert raw["accesses"].dtype == np.int64
