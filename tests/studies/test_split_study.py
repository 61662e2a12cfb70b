"""The study of divisions measures what `moesim split` would, and its report says what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_scripts import study

from moesim.scenario.sweep import with_values
from moesim.simulate import prepare, result_of
from moesim.simulate.split import popular_uses
from moesim.sweep.division import room_of

split, report = (study("split", name) for name in ("split", "split_report"))
NOWHERE = Path("nowhere")


def setting(values: list[float], auto: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return a setting of divisions with these throughputs, each with two equal seeds."""

    def seeds(value: float) -> list[dict[str, float]]:
        return [dict.fromkeys(split.KEYS, value)] * 2

    rows = [
        {
            "slots": place,
            "share": 0.9 - 0.1 * place,
            "kv_tokens": 90 - 10 * place,
            "seeds": seeds(v),
        }
        for place, v in enumerate(values)
    ]
    auto_row = {"share": 0.5, "seeds": seeds(auto)}
    facts = {"case": "M, 4 bits, card", "context": 512, "clients": 2, "useful_tokens": 90}
    return {**facts, "experts": 64, "rows": rows, "auto": auto_row, **changes}


def test_the_flat_part_is_the_connected_one_within_two_percent_of_the_best() -> None:
    one = setting([100, 90, 99, 100, 98.5, 97, 100])
    assert [row["slots"] for row in report.flat_rows(one)] == [0]
    assert [row["slots"] for row in report.flat_rows(setting([97, 99, 100, 98.5, 97]))] == [1, 2, 3]


def test_a_division_of_the_study_is_a_run_of_its_scenario() -> None:
    case = split.CASES[0]
    trace = case.load(NOWHERE)
    found = split.divisions(case, trace, 96, 3, [0], NOWHERE)
    scenario = case.scenario(96, 3, 0, NOWHERE)
    room = room_of(scenario, trace)
    assert [row["slots"] for row in found["rows"]] == [room.least]  # there is memory for all
    summary = result_of(prepare(with_values(scenario, room.values(room.least)), trace)).summary
    assert {key: summary[key] for key in split.KEYS}.items() <= found["rows"][0]["seeds"][0].items()
    assert found["useful_tokens"] == found["rows"][0]["kv_tokens"]


def test_static_hits_of_the_rows_that_were_learnt_are_their_uses() -> None:
    rng = np.random.default_rng(0)
    learnt, used = rng.integers(0, 6, (40, 2)), rng.integers(0, 6, (30, 2))
    assert split.static_hits(learnt, learnt, 6).tolist() == popular_uses(learnt, 6).tolist()
    best = sorted(range(6), key=lambda expert: (-(learnt == expert).sum(), expert))
    expected = [int(np.isin(used, best[:slots]).sum()) for slots in range(7)]
    assert split.static_hits(learnt, used, 6).tolist() == expected


def test_the_report_names_losses_and_foreign_sizes(tmp_path: Path) -> None:
    settings = [setting([90, 100, 80], auto=95), setting([60, 61], context=2048)]
    replayed = [
        {"task": task, "slots": 8, "split": name, "least": 1, "most": 9, "lru": hits, "static": 0.5}
        for task in ("law", "intent")
        for name, hits in (("uniform", 0.5), (report.LRU_NEED, 0.48 if task == "law" else 0.53))
    ]
    simulated = [
        {"slots": 4, "prefetch": "none", "split": name, "first": 4, "least": 4, "most": 4,
         "seeds": [dict.fromkeys(split.KEYS, value)] * 2}
        for name, value in (("uniform", 1.0), ("demand", 1.1), ("adapmoe", 0.9))
    ]  # fmt: skip
    report.write_report(tmp_path, settings, replayed, simulated)
    text = (tmp_path / "split.md").read_text()
    assert "In 1 of 2 settings there is next to nothing to divide" in text
    assert "more than 2 % behind in 1, by 5% at most" in text
    assert "by -2.0 to +3.0 points (1 of 2 cases lose)" in text
    assert "1 of 2 splits are more than 2 % slower than the uniform one (1 adapmoe)" in text
    assert "FOREIGN SIZES" in text
    assert "| 512, 2 | 80.0 | 80.0 to 80.0 | 89 | 1 of 64 | 100.0 ± 0.0 | 5.3 ± 0.0 |" in text
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3


@pytest.mark.slow
def test_splits_over_layers_are_simulated_at_their_size() -> None:
    rows = list(split.simulated_splits([2], [0]))
    assert [row["split"] for row in rows] == ["uniform", "demand", "adapmoe"] * 2
    assert all(row["first"] == row["least"] == row["most"] == 2 for row in rows[::3])
