"""The fits to published tables of Read-ME are what docs/read-me.md says."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from paths import ROOT

TABLE4 = ROOT / "studies/readme/table4.py"


@pytest.fixture(scope="module")
def table4() -> Any:
    spec = importlib.util.spec_from_file_location("table4", TABLE4)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_4_is_met_in_every_cell_by_the_stated_process(table4: Any) -> None:
    found = table4.measure(0, 20_000)
    for policy, cells in table4.PUBLISHED.items():
        for capacity, paper in cells.items():
            assert abs(found[policy][capacity] - paper) <= table4.WITHIN[policy], (policy, capacity)


def test_independent_uniform_references_hit_what_they_must(table4: Any) -> None:
    found = table4.measure(1, 20_000)
    for capacity in (2, 3, 4, 5):
        for policy in ("random", "lru"):
            assert found[policy][capacity] == pytest.approx(100 * capacity / 6, abs=1.5)
        assert found["belady"][capacity] <= found["min"][capacity]


def test_seven_experts_would_not_do(table4: Any) -> None:
    found = table4.measure(0, 20_000, experts=7)
    assert abs(found["lru"][5] - table4.PUBLISHED["lru"][5]) > table4.WITHIN["lru"]
