"""The search on devices: what XLA and the emulated GPU make of states is what native code makes of them, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lufjax.backends.gpu import device as gpu
from lufjax.backends.runners import use_all_cores
from lufjax.cli import main
from lufjax.presets import load_policy
from lufjax.search import exhaustive, on_cuda, sampling, successors
from lufjax.search.exhaustive import Limits, Result, explore
from lufjax.search.expander import Batch
from lufjax.search.storage import Storage
from lufjax.search.successors import Machine, Strayed
from tests.gpu.emulated import EmulatedDevice, emulate
from tests.search.states import LENGTH, alphabet_of, random_states

ON_XLA = "lists"
"""The machine that XLA runs: few ops, because it compiles long, and a renaming."""
POLICIES = {
    "tiny": "luf_naive", "pair": "luf_v10", "migrate": "luf_v12", "wrap": "luf_v10+buddy_merge:newest+gen_bits:2", ON_XLA: "luf_v10+buddy_tag:lost"
}  # fmt: skip
CASES = [("cuda", "tiny", 6), ("cuda", "pair", 7), ("cuda", "migrate", 6), ("cuda", "wrap", 5), ("xla", ON_XLA, 9)]
"""And events. ``pair``: renamings; ``migrate``: tiers; ``wrap``: generations of two bits, entries of several events."""
CLEAN = ("migrate", "wrap")
"""In which so few events violate nothing."""


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    """A GPU, and a device of JAX for each core."""
    use_all_cores()
    return emulate(monkeypatch)


def pair_of(backend: str, name: str) -> tuple[Machine, Machine]:
    """A machine on a device, and the same natively."""
    alphabet, policy = alphabet_of(name), load_policy(POLICIES.get(name, "luf_naive"))
    return tuple(Machine(alphabet, policy, LENGTH + 2, symmetry=True, backend=each) for each in (backend, "native"))  # type: ignore[return-value]


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for field in ("pairs", "outcomes", "kept", "keys", "rows"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours.findings == theirs.findings
    facts = [{**exhaustive._as_facts(result.coverage), "seconds": 0} for result in (ours, theirs)]
    assert facts[0] == facts[1]
    np.testing.assert_array_equal(ours.samples, theirs.samples)


@pytest.mark.parametrize(("backend", "name", "levels"), CASES)
def test_states_and_searches_are_the_same(backend: str, name: str, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has short keys from early on, which have to be made wider again."""
    device, native = pair_of(backend, name)
    rng, n = np.random.default_rng(1), len(native.alphabet.rows)
    met = np.concatenate(list(random_states(native, 1)))
    short = native.with_varying(native.arrays_of((met != native.start).any(0)))
    for every in (True, False):
        for ours, theirs, rows in ((device, native, met), (device.with_varying(short.varies), short, short.rows_of(met))):
            which, entries = rng.integers(0, len(rows), 2000), rng.integers(0, n, 2000)
            last = rng.integers(-1, n, len(rows))
            found = theirs.after(rows, which, entries, last=last, every=every)
            assert_equal(ours.after(rows, which, entries, last=last, every=every), found)
    fewer = short.varies.copy()
    fewer[native.column("frame")] = False
    with pytest.raises(Strayed):
        device.with_varying(fewer).after(device.with_varying(fewer).start, np.zeros(n), np.arange(n))
    monkeypatch.setattr(exhaustive, "SPECIALISE", 100)
    ours, theirs = (explore(machine.alphabet, load_policy(POLICIES[name]), Limits(levels=levels), machine=machine) for machine in (device, native))
    assert_same(ours, theirs)
    assert theirs.coverage.states > 50
    assert bool(theirs.findings) is (name not in CLEAN)


def test_more_entries_than_the_device_has_lanes_for() -> None:
    device, native = pair_of("cuda", "tiny")
    rows = np.concatenate(list(random_states(native, 2)))
    which, entries = np.arange(1000) * 3, np.arange(1000) % len(native.alphabet.rows)
    assert isinstance(device._device, on_cuda.CudaExpander)
    device._device.lanes = 300
    ours, theirs = device.after(rows, which, entries), native.after(rows, which, entries)
    assert_equal(ours, theirs)
    numbers = np.array([5, 600, 2, 299, 301])
    np.testing.assert_array_equal(ours.take(numbers), theirs.take(numbers))


def test_a_search_goes_on_on_another_backend(tmp_path: Path) -> None:
    alphabet, policy = alphabet_of("tiny"), load_policy("luf_naive")
    whole = explore(alphabet, policy, Limits(levels=6))
    explore(alphabet, policy, Limits(levels=3), storage=Storage(tmp_path))
    assert_same_but_samples(explore(alphabet, policy, Limits(levels=6), storage=Storage(tmp_path), backend="cuda"), whole)


def assert_same_but_samples(ours: Result, theirs: Result) -> None:
    assert_same(replace(ours, samples=theirs.samples), theirs)


@pytest.mark.parametrize(("backend", "name"), [("cuda", "tiny"), ("xla", ON_XLA)])
def test_random_sequences_end_alike(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a device plays many batches at once, of which the last ones are too many."""
    monkeypatch.setattr(sampling, "LENGTH", 32)
    monkeypatch.setattr(sampling, "LANES", 64)
    alphabet, policy = alphabet_of(name), load_policy(POLICIES[name])
    monkeypatch.setattr(successors, "PLAYED_BYTES", 16 * 512 * 32 * alphabet.rows_per_entry)
    device, native = (
        sampling.sample(alphabet, policy, events=6000, seconds=600, seed=5, prefix=(0,), backend=each) for each in (backend, "native")
    )
    assert native.findings
    assert native.sequences % 512
    facts = [vars(sampled) | {"seconds": 0, "used": sampled.used.tolist()} for sampled in (device, native)]
    assert facts[0] == facts[1]


def test_a_phase_that_is_not_compiled_in_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = successors.rollout.program_for
    monkeypatch.setattr(successors.rollout, "program_for", lambda ops, **named: tuple(g for g in real(ops, **named) if g != "fault"))
    device, _ = pair_of("cuda", "server")
    n = len(device.alphabet.rows)
    with pytest.raises(RuntimeError, match="a phase that is not compiled in"):
        device.after(device.start, np.zeros(n), np.arange(n))
    for each in (device, device.native):
        with pytest.raises(RuntimeError, match="a phase that is not compiled in"):
            each.play(np.arange(n)[None])


def test_a_value_that_fits_no_byte_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cuda, "LARGEST", 4)
    device, _ = pair_of("cuda", "files")
    n = len(device.alphabet.rows)
    with pytest.raises(RuntimeError, match="a value of a key is outside"):
        device.after(device.start, np.zeros(n), np.arange(n))


@pytest.fixture
def answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    found = {}
    for backend in ("native", "cuda"):
        assert main(["explore", "policy=luf_naive", "levels=5", f"backend={backend}", f"outputs={tmp_path / backend}", "--json"]) == 1
        found[backend] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_says_what_it_ran_on(answers: dict[str, dict[str, object]]) -> None:
    assert (answers["cuda"]["backend"], answers["cuda"]["device"]) == ("cuda", "emulated")
    assert answers["native"]["backend"] == "native"
    for key in ("states", "transitions", "states_per_level", "op_pairs", "deciding_rules"):
        assert answers["cuda"][key] == answers["native"][key]


def test_a_backend_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("backend=cuda: no CUDA device can be used: none")

    monkeypatch.setattr(gpu, "open_device", refuse)
    for backend, says in (("rust", "backend=rust: allowed are auto, native, cuda, xla"), ("cuda", "backend=cuda: no CUDA device can be used: none")):
        assert main(["explore", "policy=linux", f"outputs={tmp_path / 'none'}", f"backend={backend}"]) == 2
        assert capsys.readouterr().err == f"lufjax: {says}\n"
        assert not (tmp_path / "none").exists()
