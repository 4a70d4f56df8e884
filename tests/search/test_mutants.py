"""Faults that are planted are found, by the class and after the events that they are known for, and nothing is found without them."""

from __future__ import annotations

import pytest

from tests.search.mutants import DOCUMENT, INEXPRESSIBLE, MUTANTS, Mutant, row_of, with_fault, without_fault


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_found_and_nothing_else(mutant: Mutant) -> None:
    found = with_fault(mutant)
    assert (found.findings[0].kind, len(found.findings[0].entries)) == (mutant.kind, mutant.length)
    clean = without_fault(mutant.machine, mutant.base, mutant.levels)
    assert not clean.findings
    assert clean.coverage.levels >= mutant.length
    assert row_of(mutant, found) in DOCUMENT.read_text(), "out of date: python -m tests.search.mutants"


def test_the_document_says_what_cannot_be_planted() -> None:
    text = DOCUMENT.read_text()
    assert all(f"| {what} | {state} |" in text for what, state in INEXPRESSIBLE.items())
