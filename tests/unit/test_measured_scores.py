"""Scores of predictions, the answers of rows, and the baseline."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from measured_rows import Affine, reading, row

from moesim.measured.answers import answer_rows, as_plain
from moesim.measured.baseline import decode_tokens_per_s
from moesim.measured.predict import Answer, Declined, Prediction
from moesim.measured.rows import Measured
from moesim.measured.score import FITTED, depth_range, error_pct, summary


def near(value: float) -> Prediction:
    return Prediction(value, value / 2, value * 2)


def decode(answers: list[Answer], values: list[float | None], **fields: Any) -> dict[str, Any]:
    readings = [reading(**fields)] * len(answers)
    scores: dict[str, Any] = summary(readings, answers, values)["groups"]["decode"]
    return scores


def test_an_error_is_in_per_cent_of_the_measured_value() -> None:
    assert error_pct(150, 100) == pytest.approx(50)
    assert error_pct(50, 100) == pytest.approx(-50)


def test_medians_shares_and_intervals_agree_with_numbers_by_hand() -> None:
    answers: list[Answer] = [near(110), near(70), near(145), near(300), Declined("x")]
    scores = decode(answers, [100, 100, 100, 100, 100])
    # Errors: +10, -30, +45 and +200 per cent; the last value is outside of its interval.
    assert scores["median_abs_error_pct"] == pytest.approx(37.5)
    assert scores["median_error_pct"] == pytest.approx(27.5)
    assert (scores["within_25_pct"], scores["within_40_pct"]) == (0.25, 0.5)
    assert (scores["inside"], scores["width"]) == (0.75, 4)
    assert (scores["counted"], scores["predicted"], scores["compared"]) == (5, 4, 4)
    assert scores["coverage"] == 0.8


@pytest.mark.parametrize(("value", "inside"), [(49, 0), (50, 1), (200, 1), (201, 0)])
def test_an_interval_includes_its_ends(value: float, inside: float) -> None:
    assert decode([Prediction(100, 50, 200)], [value])["inside"] == inside


def test_a_limit_includes_an_error_that_equals_it() -> None:
    scores = decode([near(125), near(140)], [100, 100])
    assert scores["within_25_pct"] == np.mean([abs(error_pct(125, 100)) <= 25, False])
    assert scores["within_40_pct"] >= 0.5


def test_rows_without_a_value_count_for_coverage_only() -> None:
    scores = decode([near(1), near(2)], [None, None])
    assert (scores["coverage"], scores["compared"]) == (1, 0)
    assert scores["median_abs_error_pct"] is scores["inside"] is None
    assert scores["width"] == 4


def test_no_rows_have_no_scores() -> None:
    scores = decode([], [])
    assert (scores["counted"], scores["coverage"], scores["width"]) == (0, None, None)
    assert scores["by"]["engine"] == {}


def test_kinds_that_are_not_counted_and_fitted_rows_lower_no_coverage() -> None:
    several = decode([Declined("several-gpus: x")], [1], gpu="2x RTX 3090")
    assert several["counted"] == 0
    assert decode([Declined(FITTED), near(1)], [1, 1])["counted"] == 1
    assert decode([Declined("unknown model"), near(1)], [1, 1])["coverage"] == 0.5


def test_groups_are_apart_and_split_by_what_a_row_says() -> None:
    readings = [
        reading(),
        reading(gpu="Arc B580", depth=9000),
        reading(metric="prefill_tok_s", prompt=8),
        reading(metric="prefill_tok_s", prompt=512, model="N"),
    ]
    found = summary(readings, [near(1)] * 4, [1.0] * 4)
    groups = found["groups"]
    counted = {name: group["counted"] for name, group in groups.items()}
    assert counted == {"decode": 2, "prefill": 1, "small_batch": 1}
    by = groups["decode"]["by"]
    assert list(by["engine"]) == ["llama.cpp CUDA", "llama.cpp SYCL"]
    assert list(by["gpu"]) == ["Arc B580", "RTX 3090"]
    assert list(by["depth"]) == ["0", "4096-16383"]
    assert list(by["placement"]) == ["offload"]
    assert list(groups["prefill"]["by"]["model"]) == ["N"]


def test_reasons_are_counted_by_their_first_words() -> None:
    answers: list[Answer] = [Declined("a: 1"), Declined("a: 2"), Declined("b")]
    found = summary([reading()] * 3, answers, [1.0] * 3)
    assert found["declined"] == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("depth", "name"),
    [(None, "unknown"), (0, "0"), (1, "1-4095"), (4096, "4096-16383"), (10**9, "65536 and more")],
)
def test_a_depth_is_in_one_range(depth: int | None, name: str) -> None:
    assert depth_range(depth) == name


ROWS = [
    Measured(row(index=0), 100.0),
    Measured(row(index=1, setting="ncmoe=10"), None),
    Measured(row(index=2, gpu="2x RTX 3090"), 5.0),
    Measured(row(index=3, model="unknown"), 5.0),
    Measured(row(index=4, setting="ncmoe=x"), 5.0),
]


def test_each_row_is_answered_once_in_order_with_the_keys_of_the_contract() -> None:
    plain = as_plain(answer_rows(ROWS, Affine().predict))
    assert [sorted(row) for row in plain["rows"]] == [
        ["error_pct", "high", "index", "low", "predicted", "reason"]
    ] * 5
    assert [row["index"] for row in plain["rows"]] == [0, 1, 2, 3, 4]
    first, bare, *declined = plain["rows"]
    assert first["error_pct"] == pytest.approx(100 * (first["predicted"] / 100 - 1))
    assert (bare["error_pct"], bare["reason"]) == (None, None)
    for answer in declined:
        assert answer["predicted"] is answer["low"] is answer["high"] is answer["error_pct"] is None
        assert answer["reason"]
    assert declined[1]["reason"] == "model: not known"
    json.dumps(plain, allow_nan=False)


def test_declined_rows_do_not_reach_the_predictor_which_sees_no_value() -> None:
    model = Affine()
    marked = [replace(measured, value=123.456) for measured in ROWS]
    answer_rows(marked, model.predict)
    assert [call.row.index for call in model.calls] == [0, 1, 3]
    assert "123.456" not in repr(model.calls)


def test_without_values_only_errors_change() -> None:
    blank = [replace(measured, value=None) for measured in ROWS]
    with_values, without = (
        as_plain(answer_rows(rows, Affine().predict))["rows"] for rows in (ROWS, blank)
    )
    for row_ in (*with_values, *without):
        del row_["error_pct"]
    assert with_values == without


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_answered() -> None:
    rows = [
        Measured(row(index=index, setting=f"ncmoe={index % 90}"), 1.0) for index in range(100_000)
    ]
    answered = answer_rows(rows, lambda reading: near(1))
    assert as_plain(answered)["summary"]["groups"]["decode"]["compared"] == 100_000


def test_the_baseline_reads_bytes_at_three_quarters_and_adds_layers() -> None:
    speed = decode_tokens_per_s(
        gpu_nbytes=7.5e9, cpu_nbytes=0, gpu_bytes_per_s=1e12, cpu_bytes_per_s=math.nan,
        gpu_layers=40, cpu_layers=0,
    )  # fmt: skip
    assert speed == pytest.approx(1 / (0.01 + 0.001))
    both = decode_tokens_per_s(
        gpu_nbytes=7.5e9, cpu_nbytes=0.75e9, gpu_bytes_per_s=1e12, cpu_bytes_per_s=1e11,
        gpu_layers=40, cpu_layers=20,
    )  # fmt: skip
    assert both == pytest.approx(1 / (0.011 + 0.01 + 0.0012))


def test_each_reason_and_note_is_listed_once_with_its_rows() -> None:
    rows = [
        Measured(row(index=0, gpu="2x RTX 3090"), None),
        Measured(row(index=1, engine="llama.cpp"), None),
        Measured(row(index=2, engine="llama.cpp"), None),
    ]
    notes = as_plain(answer_rows(rows, Affine().predict))["summary"]["notes"]
    assert notes["several-gpus: several GPUs share the model; the simulated machine has one"] == [0]
    assert [numbers for text, numbers in notes.items() if "names no backend" in text] == [[0, 1, 2]]
