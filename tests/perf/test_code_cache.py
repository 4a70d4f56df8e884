"""Machine code that is kept: it runs as the code that was compiled, and nothing but equal facts finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lufjax.backends import code_cache, native
from lufjax.presets import config_dir, load_policy
from lufjax.search import compiled
from lufjax.search.alphabet import load_alphabet
from lufjax.search.successors import Machine


def rows_after(policy: str) -> tuple[bytes, bytes]:
    """Rows and keys after every entry, by code that this process has not compiled before."""
    machine = Machine(load_alphabet(config_dir() / "explore" / "server.yaml"), load_policy(policy), 3, symmetry=True)
    n = len(machine.alphabet.rows)
    batch = machine.after(machine.start, np.zeros(n), np.arange(n))
    return batch.rows.tobytes(), batch.keys.tobytes()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUFJAX_CACHE_DIR", str(tmp_path / "code"))
    monkeypatch.setattr("lufjax.search.successors.compile_search", compiled.compile_search.__wrapped__)
    return tmp_path / "code"


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(native, "build_ir", refuse)
    monkeypatch.setattr(compiled, "_form_module", refuse)


def test_kept_code_does_what_compiled_code_does(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows_after("luf_v10")
    assert len(list(kept.iterdir())) == 2
    forbid_compiling(monkeypatch)
    assert rows_after("luf_v10") == first


def test_other_code_or_another_compiler_finds_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {code_cache.name_of("program")}
    for function, value in (("code_digest", "other"), ("installed_version", "0.0")):
        with monkeypatch.context() as patch:
            code_cache._surroundings.cache_clear()
            patch.setattr(code_cache, function, lambda *_, value=value: value)
            names.add(code_cache.name_of("program"))
        code_cache._surroundings.cache_clear()
    assert len(names | {code_cache.name_of("another program")}) == 4


def test_damaged_code_is_compiled_again(kept: Path) -> None:
    first = rows_after("linux")
    for path in kept.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert rows_after("linux") == first
    assert all(code_cache.load(path.name) for path in kept.iterdir())


def test_it_keeps_the_entries_used_last(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "MOST", 2)
    names = [code_cache.name_of(str(number)) for number in range(3)]
    for age, name in enumerate(names[:2]):
        code_cache.save(name, b"code")
        os.utime(kept / name, (age, age))
    assert code_cache.load(names[0]) == b"code"
    code_cache.save(names[2], b"code")
    assert sorted(path.name for path in kept.iterdir()) == sorted([names[0], names[2]])


@pytest.fixture
def jax_cache() -> Iterator[None]:
    """JAX keeps what compiles in no time, and nothing when the test is over."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def xla_programs(place: Path) -> list[Path]:
    return sorted(place.glob("xla-*/*-cache"))


def test_programs_of_xla_are_kept_in_the_same_folder_the_newest_ones(kept: Path, jax_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.jit(lambda x: x + 1)(np.int32(1))  # JAX has found no cache by now
    code_cache.keep_xla_programs()
    jax.jit(lambda x: 3 * x)(np.int32(2))
    jax.jit(lambda x: 5 * x)(np.int32(2))
    first, *more = xla_programs(kept)
    assert more
    os.utime(first, (1, 1))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(code_cache, "MOST_XLA", len(more))
    code_cache.keep_xla_programs()
    assert xla_programs(kept) == more


def test_a_folder_that_jax_was_given_stays_and_off_means_off(tmp_path: Path, jax_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUFJAX_CACHE_DIR", "off")
    code_cache.keep_xla_programs()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("LUFJAX_CACHE_DIR", str(tmp_path / "code"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    code_cache.keep_xla_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not (tmp_path / "code").exists()


def test_off_and_a_folder_that_cannot_be_made_keep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in ("off", str(tmp_path / "file" / "below")):
        monkeypatch.setenv("LUFJAX_CACHE_DIR", place)
        code_cache.save("name", b"code")
        assert code_cache.load("name") is None
