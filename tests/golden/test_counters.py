"""One tiny run, number by number: a change of any of them has to be meant (``python -m tests.golden.regenerate_counters``)."""

from __future__ import annotations

import json

from tests.golden.regenerate_counters import FILE, dump, tiny_run


def test_the_tiny_run_counts_what_it_did() -> None:
    found, golden = tiny_run(), json.loads(FILE.read_text())
    assert set(found) == set(golden)
    for policy, numbers in golden.items():
        pairs = {name: (numbers.get(name), found[policy].get(name)) for name in {*numbers, *found[policy]}}
        changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        assert not changed, f"{policy}: (golden, now) of {changed}"


def test_the_file_is_what_the_script_writes() -> None:
    assert dump(json.loads(FILE.read_text())) == FILE.read_text()
