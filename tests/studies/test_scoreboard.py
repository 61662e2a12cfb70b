"""The scores of `docs/measured.md`: committed, shown as they are, and made again from the rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measured_rows import row
from paths import ROOT
from study_scripts import study

from moesim.measured.answers import answer_rows
from moesim.measured.rows import Measured, read_measured
from moesim.measured.simulated import Simulated
from moesim.report.tabular import with_tables

scoreboard = study("measured", "scoreboard")

REPORT = ROOT / "reports/measured/scores.json"


def committed() -> Any:
    return json.loads(REPORT.read_text(encoding="utf-8"))


def test_the_document_has_the_tables_of_the_committed_scores() -> None:
    text = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    tables = scoreboard.tables_of(committed())
    assert len(tables) > 10
    for name, content in tables.items():
        assert with_tables(text, {name: content}) == text, name


def test_a_table_without_a_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="no mark for the table scores"):
        with_tables("# A document\n", {"scores": "| a |"})


@pytest.mark.parametrize(
    ("fields", "half"),
    [
        ({"gpu": "A100-SXM4-80GB"}, "forming"),
        ({"gpu": "RTX 3090"}, "forming"),
        ({"gpu": "RTX 3090 Ti 24GB"}, "exam"),
        ({"gpu": "RTX 4090"}, "exam"),
        ({"gpu": "none", "cpu": "EPYC 7773X, 64 cores"}, "forming"),
        ({"gpu": "none", "cpu": "2x Xeon Gold 6138"}, "exam"),
        ({"gpu": "Radeon 8060S (unified)", "source": "kyuz0/a"}, "forming"),
        ({"gpu": "Radeon 8060S (unified)", "source": "lhl/a"}, "exam"),
    ],
)
def test_each_machine_is_in_one_half(fields: dict[str, str], half: str) -> None:
    assert scoreboard.half_of(row(**fields)) == half


def test_the_scores_are_of_the_half_alone() -> None:
    rows = [
        Measured(row(gpu="RTX 3090", setting="resident", model="OLMoE-1B-7B", index=0), 1.0),
        Measured(row(gpu="RTX 4090", setting="resident", model="OLMoE-1B-7B", index=1), 2.0),
    ]
    answered = answer_rows(rows, Simulated().predict)
    for half in scoreboard.HALVES:
        assert scoreboard.half_summary(answered, half)["rows"] == 1


def test_the_errors_by_kind_are_of_both_halves_and_of_the_exam_half() -> None:
    rows = [
        Measured(
            row(gpu="RTX 3090", setting="resident", model="OLMoE-1B-7B", cpu="", index=0), 1.0
        ),
        Measured(
            row(gpu="RTX 4090", setting="resident", model="OLMoE-1B-7B", cpu="", index=1), 2.0
        ),
        Measured(
            row(gpu="RTX 4090", setting="resident", model="OLMoE-1B-7B", cpu="", index=2), None
        ),
    ]
    answered = answer_rows(rows, Simulated().predict)
    errors = [each.error_pct or 0.0 for each in answered[:2]]
    any_engine, own = scoreboard.scores_by_kind(answered)
    assert (any_engine["engine"], own["engine"], own["backend"]) == ("", "llama.cpp", "CUDA")
    for kind in (any_engine, own):
        assert (kind["exam"]["rows"], kind["all"]["rows"], kind["all"]["machines"]) == (1, 2, 2)
        assert kind["exam"]["median_abs_error_pct"] == round(errors[1], 1)
        assert kind["all"]["median_abs_error_pct"] == round(sum(errors) / 2, 1)


@pytest.mark.slow
def test_the_committed_scores_are_made_again_and_no_prediction_needs_a_value(shared: Path) -> None:
    rows = read_measured(shared / "data/measured/throughput.json")
    answered = answer_rows(rows, Simulated().predict)
    for half in scoreboard.HALVES:
        made = scoreboard.rounded(scoreboard.half_summary(answered, half))
        assert made == committed()["summaries"]["none"][half]
    by_kind = json.loads(scoreboard.BY_KIND.read_text(encoding="utf-8"))
    assert scoreboard.scores_by_kind(answered) == by_kind["kinds"]
    assert by_kind["command"] == scoreboard.COMMAND
    some = [replace(each, value=None) for each in rows[::25]]
    for before, after in zip(answered[::25], answer_rows(some, Simulated().predict), strict=True):
        assert after.answer == before.answer
