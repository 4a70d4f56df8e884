"""Litmus files: the shipped ones hold on engine and oracle, a weaker checker fails them, and malformed ones are refused by line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lufjax.backends import native
from lufjax.cli import main
from lufjax.events import Violation
from lufjax.params import MachineParams
from lufjax.phases import fetch
from lufjax.presets import litmus_files
from lufjax.scenarios import litmus, litmus_file
from lufjax.scenarios.litmus_file import load_litmus
from tests.differential.pair import engine_record, first_difference, oracle_record, states_of
from tests.scenario.oracle_machine import build_oracle

FILES = [load_litmus(path) for path in litmus_files()]
SHAPE = dataclasses.replace(litmus.shape_for(FILES), num_anon=32)
PARAMS = MachineParams(SHAPE.num_frames, 0, 0, 0, 1, 0, 1, 0, 0, SHAPE.num_frames, litmus.POLICY)


def test_every_shipped_file_holds_in_one_batch() -> None:
    results = litmus.run_litmus(FILES)
    assert not [(result.litmus.name, result.mismatches) for result in results if not result.holds]
    assert {result.verdict for result in results} == {"clean", "REUSE", "MAPPING", "PERMISSION", "LOST_STORE", "OLD_VALUE"}


def test_every_bug_has_its_fix() -> None:
    names = {file.name for file in FILES}
    assert all((name.removesuffix("_fixed") in names) and (name.removesuffix("_fixed") + "_fixed" in names) for name in names)
    assert all(not file.expect for file in FILES if file.name.endswith("_fixed"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_oracle_flags_the_same_steps(file: Any) -> None:
    oracle = build_oracle(SHAPE, PARAMS, litmus.start_of(SHAPE))
    found, before = [], [0] * len(Violation)
    for row in litmus.shifted(file, SHAPE):
        oracle.step(row)
        seen = oracle.violations()
        after = [a + b for a, b in zip(seen["loads"], seen["stores"], strict=True)]
        found.append(tuple(kind.name for kind in Violation if after[kind] > before[kind]))
        before = after
    assert found == [step.classes for step in file.steps]


@pytest.mark.parametrize("kind", [kind for kind in Violation if kind is not Violation.ATOMIC_FLUSH])
def test_a_checker_without_one_rule_fails(kind: Violation, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fetch.classes_of
    monkeypatch.setattr(fetch, "classes_of", lambda facts: whole(facts) & (jnp.arange(len(Violation)) != int(kind)))
    native.compile_program.cache_clear()
    try:
        broken = {result.litmus.name for result in litmus.run_litmus(FILES) if not result.holds}
    finally:
        native.compile_program.cache_clear()
    assert broken == {file.name for file in FILES if kind.name in file.expect} != set()


MAPPED_AGAIN = """\
# the address is mapped again by a call that has not returned
# expect: clean
place file:0 f1
map A.p0 file:0 rw
switch c0 A
store c0 A.p0
place file:1 f2
map A.p0 file:1 rw
copy file:0 f3
fwrite file:0
load c0 A.p0
store c0 A.p0
"""


def test_a_checker_that_takes_a_page_for_backed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mapped_again.litmus"
    path.write_text(MAPPED_AGAIN)
    file = load_litmus(path)
    (result,) = litmus.run_litmus([file])
    assert result.holds, result.mismatches
    whole = fetch.classes_of
    monkeypatch.setattr(fetch, "classes_of", lambda facts: whole(facts._replace(is_backed=jnp.bool_(True))))
    monkeypatch.setattr(native, "compile_program", native.compile_program.__wrapped__)
    (result,) = litmus.run_litmus([file])
    assert result.found[-2:] == (("OLD_VALUE",), ("LOST_STORE",))


def _random_rows(seed: int, length: int) -> list[tuple[int, ...]]:
    """Event rows of well-formed lines in any order: lines that the reader refuses are not used."""
    draw, reader, drafts = random.Random(seed), litmus_file._Reader(), []
    for line in ("place file:0 f1", "place anon:0 f2", "place anon:1 f3", *(f"switch c{c} A" for c in range(3)), "map A.p0 file:0 rw"):
        drafts.append(litmus_file._step(reader, line)[1])
    pools = {
        "OBJECT": ("file:0", "anon:0", "anon:1"), "FRAME": ("f1", "f2", "f3"), "PAGE": ("A.p0", "A.p1", "B.p0"), "CPU": ("c0", "c1", "c2"),
        "SPACE": ("A", "B"), "rw|ro": ("rw", "ro"), "PAGE|SPACE.*|*": ("A.p0", "A.p1", "B.p0", "B.*", "*"), "OWNER": ("slab",),
        "munmap|dontneed|mmap|ro|rw|move": ("munmap", "mmap", "mmap", "ro", "rw", "move", "dontneed"),
    }  # fmt: skip
    while len(drafts) < length:
        grammar = draw.choice([*litmus_file.STEPS.values(), *(litmus_file.STEPS[name] for name in ("load", "store") * 8)])[0]
        words = [draw.choice(pools.get(word, (word,))) for word in grammar.split() if not word.startswith("[")]
        with contextlib.suppress(ValueError):
            drafts.append(litmus_file._step(reader, " ".join(words))[1])
    assert len(reader.anons) + reader.fresh <= SHAPE.num_anon
    shift = [litmus_file._number_row(reader, draft) for draft in drafts]
    return [litmus._shift(row, 1, SHAPE.num_file_pages - 1) for row in shift]


def _agree(seeds: list[int], length: int, backend: str) -> int:
    rows = [_random_rows(seed, length) for seed in seeds]
    traces = [litmus.start_of(SHAPE, own) for own in rows]
    points = [length // 4, length // 2, length * 3 // 4, length]
    states = states_of([PARAMS] * len(seeds), SHAPE, traces, points, backend=backend)
    flagged = 0
    for seed, own, found in zip(seeds, rows, states, strict=True):
        oracle = build_oracle(SHAPE, PARAMS, litmus.start_of(SHAPE))
        for number, row in enumerate(own, start=1):
            oracle.step(row)
            if number in points:
                difference = first_difference(engine_record(SHAPE, found[points.index(number)]), oracle_record(oracle))
                assert not difference, f"seed {seed}, after {number} steps: {difference}"
        flagged += sum(oracle.violations()["loads"]) + sum(oracle.violations()["stores"])
    return flagged


def test_engine_and_oracle_agree_on_random_micro_steps() -> None:
    assert _agree(list(range(64)), 120, "native") > 200


def test_xla_agrees_with_the_oracle_too() -> None:
    assert _agree(list(range(4)), 60, "xla") > 0


GOOD = "# a title\n# expect: clean\nplace file:0 f1\nmap A.p0 file:0 ro\nswitch c0 A\nload c0 A.p0\n"
BAD: list[tuple[Callable[[str], str], int | None, str]] = [
    (lambda text: text + "fly c0 A.p0\n", 7, "steps begin with place"),
    (lambda text: text + "load c0\n", 7, "expected load CPU PAGE"),
    (lambda text: text + "load x0 A.p0\n", 7, "expected a CPU"),
    (lambda text: text + "load c0 A.0\n", 7, "expected a page"),
    (lambda text: text + "load c0 A\n", 7, "expected a page"),
    (lambda text: text + "load c1 A.p0\n", 7, "a switch comes first"),
    (lambda text: text + "place disk:0 f1\n", 7, "file:N or anon:N"),
    (lambda text: text + "snap file:3\n", 7, "placed in a frame before"),
    (lambda text: text + "map A.p0 file:0 rx\n", 7, "expected rw or ro"),
    (lambda text: text + "set A.p0 f9999 rw\n", 7, "numbers up to 1023"),
    (lambda text: text + "set A.p1 f1 rw\n", 7, "a map step comes first"),
    (lambda text: text + "free f1\nmap A.p1 file:0 ro\n", 8, "place it again"),
    (lambda text: text + "ret munmap A.p0\n", 7, "PTE was cleared"),
    (lambda text: text + "wp A.p1\n", 7, "PTE is present"),
    (lambda text: text + "ret brk A.p0\n", 7, "expected munmap, dontneed"),
    (lambda text: text + "ret ro A.p5\n", 7, "has mapped"),
    (lambda text: text + "switch c0 A t1\n", 7, "one TLB tag here"),
    (lambda text: text + "flush c0 A.p0 tag=B\n", 7, "expected tag=A"),
    (lambda text: text + "load c0 A.p0 <-- STALE\n", 7, "expected classes of REUSE"),
    (lambda text: text + "load c0 A.p0 <--\n", 7, "expected classes after it"),
    (lambda text: text + "free f1 <-- REUSE\n", 7, "only a load or a store"),
    (lambda text: text + "load c0 A.p0 <-- REUSE\n", None, "marked REUSE"),
    (lambda text: text.replace("clean", "dirty"), 2, "expected classes of"),
    (lambda text: text.replace("# expect: clean\n", ""), None, "no line '# expect:"),
    (lambda text: "# expect: clean\n", None, "no steps"),
]


@pytest.mark.parametrize(("spoil", "line", "expected"), BAD)
def test_a_malformed_file_is_one_line(
    spoil: Callable[[str], str], line: int | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    path = tmp_path / "bad.litmus"
    path.write_text(spoil(GOOD))
    assert main(["litmus", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert (f"{path}:{line}: " if line else f"{path}: ") in err
    assert expected in err


def test_an_expectation_that_does_not_hold_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.litmus"
    path.write_text(GOOD.replace("clean", "REUSE") + "load c0 A.p0 <-- REUSE\n")
    assert main(["litmus", str(path)]) == 1
    assert "does not hold: line 7 (load c0 A.p0): expected REUSE, found none" in capsys.readouterr().out


def test_an_unmarked_violation_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "unmarked.litmus"
    path.write_text(GOOD + "clear A.p0\nalloc f1 slab\nload c0 A.p0\n")
    assert main(["litmus", str(path), "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)["files"]
    assert result["flagged"] == [{"line": 9, "step": "load c0 A.p0", "classes": ["REUSE"]}]
    assert not result["holds"]


def test_the_command_names_shipped_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["litmus", "K02"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("verdict: PERMISSION")
    assert main(["litmus", "K99"]) == 2
    assert main(["litmus"]) == 2
    assert "allowed are a path, or one of" in capsys.readouterr().err


def test_rows_are_int32() -> None:
    assert litmus.start_of(SHAPE, [(0, 0, 0, 0, 0)]).events.dtype == np.int32
