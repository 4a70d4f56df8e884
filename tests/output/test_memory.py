"""The memory that a run announces before it starts is what it takes: never less, and at most three tenths more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import re, sys
from lufjax.cli import main
assert main(["run", *sys.argv[1:]]) == 0
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""
"""Not ``ru_maxrss``, which the process that starts another one leaves to it."""
STATUS = Path("/proc/self/status")
MORE = 1.3


@pytest.mark.skipif(not STATUS.exists() or "VmHWM" not in STATUS.read_text(), reason="the system does not say what a process took")
@pytest.mark.parametrize(
    "words",
    [
        ("num_cpus=4", "num_events=2000", "machine=scaled"),
        ("num_cpus=4", "num_events=40000", "axes.seed=64", "machine=scaled"),
        ("num_cpus=16", "num_events=4000", "axes.seed=8", "machine=big", "workload.file_pages=262016", "workload.num_processes=4"),
    ],
    ids=["nothing much", "traces", "states"],
)
def test_the_announced_peak_is_the_measured_one(words: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *words, "figures=false", "engine.num_devices=2", f"outputs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"}, check=True)
    announced = int(re.findall(r"peak host memory (\d+) MiB", done.stderr)[0])
    measured = int(done.stdout.split()[-1])
    assert measured <= announced <= MORE * measured
