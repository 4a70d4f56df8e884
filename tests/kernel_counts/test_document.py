"""docs/KERNEL_COUNTS.md: its commands are accepted, and a few of its lines are what the model says today."""

from __future__ import annotations

import shlex

import pytest

from experiments.kernel_counts import table
from lufjax.config import load_run_config
from lufjax.policy import FlushPolicy
from lufjax.presets import load_policy


def test_the_linux_preset_is_the_default_record() -> None:
    assert load_policy("linux") == FlushPolicy()


def test_the_commands_are_accepted() -> None:
    commands = [line for line in table.DOCUMENT.read_text().splitlines() if line.startswith("lufjax run ")]
    assert len(commands) >= 3
    for command in commands:
        assert load_run_config(shlex.split(command)[2:]).num_lanes == 1


@pytest.mark.parametrize(("mode", "placement", "k"), [("munmap", (1, 3, 0), 34), ("munmap_ft", (1, 0, 3), 8)])
def test_a_line_of_the_calls_table_is_up_to_date(mode: str, placement: tuple[int, int, int], k: int) -> None:
    point, runs = next(
        (point, runs)
        for point, runs in table.measured().items()
        if (point.mode, point.vcpus, point.k) == (mode, 4, k) and (point.actors, point.busy, point.sleepers) == placement
    )
    assert table.row_text(table.mapping_line(point, runs)) in table.DOCUMENT.read_text().splitlines()


def test_every_measured_point_has_a_line() -> None:
    lines = table.DOCUMENT.read_text().splitlines()
    for point in table.measured():
        head = [point.mode, point.vcpus, f"{point.actors} + {point.busy} + {point.sleepers}"]
        rest = [point.mem_mib, point.file_percent] if table.is_reclaim(point) else [point.k]
        start = "| " + " | ".join(map(str, [*head, *rest])) + " |"
        assert sum(line.startswith(start) for line in lines) == 1, start
