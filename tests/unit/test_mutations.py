"""The table of mutations fits the code that it mutates."""

from __future__ import annotations

import pytest
from mutations import Mutation, read_table
from paths import ROOT

MUTATIONS = read_table()


def test_there_are_forty_and_no_two_are_the_same() -> None:
    assert len(set(MUTATIONS)) == len(MUTATIONS) >= 40


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_changes_one_line_that_occurs_once(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    pairs = list(zip(mutation.old.splitlines(), mutation.new.splitlines(), strict=True))
    assert sum(old != new for old, new in pairs) == 1
    assert all((ROOT / test).is_file() for test in mutation.tests)
