"""A wrong config is one clear line, exit code 2, and nothing is written."""

from __future__ import annotations

import pytest

from lufjax import provenance
from lufjax.cli import main

SMALL = ["workload=llm", "workload.file_pages=256", "workload.layer_pages=16", "num_events=3000", "machine.reclaim_batch=8"]
BAD = [
    (["num_cpu=3"], "num_cpu=3", "num_cpus"),
    (["policy=nope"], "policy=nope", "luf_v10"),
    (["-m", "policy=linux,nope"], "policy=nope", "luf_v10"),
    (["policy.nope=1"], "policy.nope=1", "munmap_debt_rule"),
    (["policy.munmap_debt_rule=sometimes"], "policy.munmap_debt_rule=sometimes", "pte_marker"),
    (["policy.flush_ceiling=100000"], "policy.flush_ceiling=100000", "512"),
    (["policy=linux+absorb"], "linux+absorb", "preset+field:value"),
    (["policy=linux+nope:1"], "nope", "flush_ceiling"),
    (["experiment=nope"], "experiment=nope", "scaling"),
    (["machine=nope"], "machine=nope", "default"),
    (["machine/tlb=nope"], "machine/tlb=nope", "skylake"),
    (["machine.l1.foo=1"], "machine.l1.foo=1", "ways"),
    (["+machine.l1.foo=1"], "machine.l1.foo=1", "ways"),
    (["machine.l1.ways=0"], "machine.l1.ways=0", "1 to 1024"),
    (["machine.l1.ways=2.5"], "machine.l1.ways=2.5", "integer"),
    (["machine.l1=3"], "machine.l1=3", "sets"),
    (["machine.l2.sets=12", "machine.l2.index=xor"], "machine.l2.sets=12", "powers of two"),
    (["machine.l2.replacement=ring12"], "machine.l2.ways=4", "12"),
    (["machine.drive=both"], "machine.drive=both", "scripted"),
    (["machine.reclaim_batch=null"], "machine.reclaim_batch", "integer"),
    (["machine.kswapd_cpu=8"], "machine.kswapd_cpu=8", "0 to 7"),
    (["machine.rmap_slots=1"], "machine.rmap_slots=1", "2"),
    (["-m", "num_cpus=1,4", "machine.kswapd_cpu=1"], "machine.kswapd_cpu=1", "0 to 0"),
    (["num_cpus=two"], "num_cpus=two", "integers from 1"),
    (["num_cpus=0"], "num_cpus=0", "integers from 1"),
    (["num_cpus=1.5"], "num_cpus=1.5", "integers from 1"),
    (["num_cpus=2,4"], "num_cpus=2,4", "-m"),
    (["num_cpus=[2,2]"], "axes.num_cpus", "twice"),
    (["num_cpus=64", "pressure=4"], "pressure=4", "allowed are pressures up to"),
    (["num_cpus=128"], "cost.sockets=1", "at least 128"),
    (["pressure=0"], "pressure=0", "0.01"),
    (["pressure=high"], "pressure=high", "numbers"),
    (["seed=-1"], "seed=-1", "0 to"),
    (["num_events=1e6"], "num_events=1000000.0", "integers"),
    (["num_samples=0"], "num_samples=0", "1 to 1000"),
    (["num_samples=1000", "num_events=500"], "num_samples=1000", "500"),
    (["warmup_divisor=1"], "warmup_divisor=1", "2 or more"),
    (["axes.foo=1"], "axes.foo=1", "pressure"),
    (["+axes.foo=1"], "axes.foo=1", "pressure"),
    (["axes.policy=linux"], "axes.policy=linux", "list"),
    (["axes.policy=[linux,linux]"], "axes.policy", "twice"),
    (["axes.num_cpus=[]"], "axes.num_cpus=[]", "at least one"),
    (["-m", "machine=big,tiny"], "machine=big,tiny", "allowed are workload"),
    (["engine.chunk_lanes=0"], "engine.chunk_lanes=0", "1 to"),
    (["engine.cpu_groups=[4]"], "engine.cpu_groups=[4]", "num_cpus=8"),
    (["engine.memory_percent=101"], "engine.memory_percent=101", "100"),
    (["engine.split_workloads=maybe"], "engine.split_workloads=maybe", "true or false"),
    (["cost=nope"], "cost=nope", "xeon_1s"),
    (["cost.responder_ns=-1"], "cost.responder_ns=-1", "from 0"),
    (["workload=nope"], "workload=nope", "llm"),
    (["workload.nope=1"], "workload.nope=1", "file_pages"),
    (["workload.hot_pages=many"], "workload.hot_pages", "int"),
    (["resume=maybe"], "resume=maybe", "never"),
    (["figures=3"], "figures=3", "true"),
    (["name=a/b"], "name=a/b", "letters"),
    (["hydra.run.dir=elsewhere"], "hydra.run.dir=elsewhere", "run_dir"),
    (["num_cpus=[2"], "num_cpus=[2", "key=value"),
    (["--nope"], "--nope", ""),
    (["--config-dir", "nowhere"], "nowhere", "director"),
]


@pytest.mark.parametrize(("arguments", "field", "allowed"), BAD, ids=[" ".join(row[0]) for row in BAD])
def test_wrong_config(tmp_path, monkeypatch, capsys, arguments, field, allowed):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *SMALL, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert field in printed.err
    assert allowed in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["policy", "diff", "linux"],
        ["policy", "show", "nope"],
        ["plot"],
        ["plot", "nowhere"],
        ["plot", "nowhere", "price=1"],
        ["compare", "nowhere", "nowhere"],
        ["report", "nowhere"],
        ["scenario"],
        ["scenario", "nowhere.yaml"],
        ["scenario", "nowhere.yaml", "policy.absorb=on"],
        ["import-trace", "one"],
        ["bench", "oops"],
    ],
)
def test_wrong_command(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == (1 if arguments else 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
@pytest.mark.parametrize("command", [["run"], ["bench"], ["scenario", "x.yaml"]])
def test_the_broken_jax_is_refused_at_start(tmp_path, monkeypatch, capsys, package, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "version", lambda name: "0.10.2" if name == package else "0.10.1")
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"{package}=0.10.2" in printed
    assert list(tmp_path.iterdir()) == []


def test_interrupt_is_130(monkeypatch, capsys):
    from lufjax import cli

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "policy", interrupted)
    assert main(["policy", "list"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
