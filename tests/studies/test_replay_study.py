"""The replay study: one contrast by hand, a small grid, and the published figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from study_scripts import study

from moesim.trace import Trace

contrast = study("replay", "contrast")
page = study("replay", "replay_page")
replay = study("replay", "replay")


def test_a_batch_that_always_wants_the_same_is_missed_one_by_one_only() -> None:
    # Two requests want {0, 1} and {2, 3} at each step, and there are three slots.
    ids = np.concatenate([np.tile([[[1, 0]]], (40, 1, 1)), np.tile([[[3, 2]]], (40, 1, 1))])
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[40, 40], num_experts=64)
    found = contrast.contrast(trace, "lru", [3, 4], 2)
    assert [each.mean for each in found.misses["atomic"]] == [25, 0]
    assert [each.mean for each in found.misses["ascending"]] == [100, 0]
    assert found.inflation["ascending"][0].mean == 75
    fixed = contrast.contrast(trace, "static", [3], 2)
    assert {name: each[0].mean for name, each in fixed.misses.items()} == {
        "atomic": 25, "random": 25, "ascending": 25
    }  # fmt: skip


def test_published_figures_are_those_of_the_shared_numbers(shared: Path) -> None:
    rows = json.loads((shared / "reference/published_numbers.json").read_text())
    names = {"LRU": "lru", "LFRU": "lfru", "LFU": "lfu", "Belady": "min", "static": "static"}
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        config = row["config"]
        if row["system"] == "moe-cache-eval" and "replay" in config and config["batch"] == 8:
            found.setdefault(names[config["policy"]], {})[config["replay"]] = row["value"]
    assert {
        policy: (values["sequential"], values["event-atomic"]) for policy, values in found.items()
    } == page.PUBLISHED


def test_a_small_grid_is_printed_and_written(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = contrast.Grid(
        tasks=("intent",), task="intent", batches=(1, 2), capacities=(16, 26), slow=("lfru",),
        slow_capacities=(26,), layers=(1,),
    )  # fmt: skip
    results = replay.measure(grid, shared / "data/routing/esft_deepseek_v2_lite")
    replay.print_table(results, 2)
    assert len(capsys.readouterr().out.splitlines()) == 5
    page.write_page(results, tmp_path)
    text = (tmp_path / "replay.md").read_text(encoding="utf-8")
    assert "| lru | 24.59 % | 19.30 % | +5.29 |" in text
    assert {file.name for file in tmp_path.iterdir()} == {
        "replay.md", "policies.png", "inflation.png"
    }  # fmt: skip


def test_a_batch_without_enough_requests_is_left_out(shared: Path) -> None:
    grid = replace(contrast.Grid(), tasks=("summary",), task="summary", batches=(16,), layers=(1,))
    assert not replay.measure(grid, shared / "data/routing/esft_deepseek_v2_lite").by_setting


def cells(text: str) -> list[list[int]]:
    """Return the number of cells of each row, by table."""
    tables: list[list[int]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append(line.count("|"))
        before = line
    return tables


def test_the_committed_page_has_whole_tables_and_its_pictures() -> None:
    folder = ROOT / "reports/replay"
    text = (folder / "replay.md").read_text(encoding="utf-8")
    assert len(cells(text)) == 3
    assert all(len(set(table)) == 1 for table in cells(text))
    for name in ("policies", "inflation"):
        assert f"]({name}.png)" in text
        assert (folder / f"{name}.png").is_file()
