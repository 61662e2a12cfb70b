"""The studies of Read-ME's published figures do what their documents say, in small."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_scripts import study

from moesim.errors import UsageError
from moesim.hardware import BatchShape, CostModel, load_hardware, named_shape
from moesim.simulate import prepare, result_of
from moesim.trace import DecoupledKnobs, synthesize_decoupled

table8, unique, prefetch = (
    study("readme", name) for name in ("table8", "unique_experts", "prefetch")
)
accuracy = study("readme", "accuracy")
routers = study("readme", "routers")
COST = CostModel(load_hardware("a100-80gb"), named_shape("readme-llama-2-7b"))


def wants(num_experts: int, batch: int) -> list[tuple[int, ...]]:
    """All that a batch of independent tokens may want, equally likely."""
    return list(product(range(num_experts), repeat=batch))


@pytest.mark.parametrize("texts", [["arxiv"], ["arxiv="], ["a=.", "a=.."]])
def test_accuracy_takes_domains_as_the_command_line_does(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A domain without a folder is not whatever the working folder holds."""
    options = [part for text in texts for part in ("--text", text)]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", str(tmp_path / "out"), *options])
    monkeypatch.setattr(accuracy, "records_of", lambda *_: pytest.fail("long work began"))
    with pytest.raises(UsageError, match=r"expected DOMAIN=PATH|named twice"):
        accuracy.main()


def test_routers_are_compared_on_the_same_requests(tmp_path: Path) -> None:
    knobs = DecoupledKnobs(requests=3, prompt_tokens=4, output_tokens=3, num_layers=2)
    synthesize_decoupled(knobs).save(tmp_path / routers.LAYERWISE)
    synthesize_decoupled(knobs).save(tmp_path / routers.DECOUPLED)
    routers.check_pair(tmp_path)
    longer = synthesize_decoupled(replace(knobs, output_tokens=4))
    longer.save(tmp_path / routers.DECOUPLED, force=True)
    with pytest.raises(UsageError, match="differ in output_tokens"):
        routers.check_pair(tmp_path)


# Table 8


def test_the_parts_of_table_8_sum_to_the_published_sums() -> None:
    sums = {"TR": (42.31, 44.67, 45.23, 51.69), "AR": (40.55, 41.27, 41.96, 48.59)}
    for kind, published in sums.items():
        for batch, total in zip(table8.BATCHES, published, strict=True):
            assert sum(table8.published(kind, batch).values()) == pytest.approx(total, abs=0.025)


@pytest.mark.parametrize("form", ["fitted_to_batch", "fitted_to_unique", "roofline"])
def test_no_form_sees_the_batch_that_is_held_out(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = getattr(table8, form)
    before = {kind: fit(kind)(20) for kind in table8.PUBLISHED}
    held_out = table8.BATCHES.index(table8.HELD_OUT)
    changed = {
        kind: {
            part: tuple(1000.0 if place == held_out else time for place, time in enumerate(times))
            for part, times in parts.items()
        }
        for kind, parts in table8.PUBLISHED.items()
    }
    monkeypatch.setattr(table8, "PUBLISHED", changed)
    assert {kind: fit(kind)(20) for kind in changed} == before


def test_form_a_is_the_least_squares_line() -> None:
    slope, start = np.polyfit((5, 10, 30), (21.75, 22.53, 28.31), 1)
    found = table8.fitted_to_batch("AR")(20)
    assert found["experts"] == pytest.approx(start + 20 * slope)
    assert found["router"] == pytest.approx(0.61)


def test_unique_and_crowded_experts_are_what_enumeration_says() -> None:
    batches = wants(3, 5)
    distinct = np.mean([len(set(batch)) for batch in batches])
    assert table8.unique_experts(5, num_experts=3) == pytest.approx(distinct)
    batches = wants(7, 4)
    crowded = np.mean([sum(batch.count(e) > 2 for e in range(7)) for batch in batches])
    assert table8.crowded(4, 2) == pytest.approx(crowded)


def test_form_c_charges_what_the_simulator_does() -> None:
    found = table8.roofline("AR")(1)
    shape = BatchShape(1, table8.CONTEXT, table8.CONTEXT, 1, 1)
    assert found["experts"] == pytest.approx(32 * COST.experts_ns((1,)) / 1e6)
    assert found["attention"] == pytest.approx(32 * COST.front_ns(0, shape) / 1e6)
    assert found["router"] == pytest.approx(COST.router_ns(shape) / 1e6)


def test_what_fewer_experts_save_is_the_slope_of_form_b() -> None:
    seen = [(table8.unique_experts(batch), time) for batch, time in ((5, 21.75), (10, 22.53))]
    unique_B, times_B = zip(*seen, (table8.unique_experts(30), 28.31), strict=True)
    slope = np.polyfit(unique_B, times_B, 1)[0]
    step = sum(table8.fitted_to_unique("AR")(8).values())  # eight tokens want 4.96 of seven
    assert table8.saved_by_fewer("AR") == pytest.approx(slope * 1.57 / step)


def test_table_8_prints_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    table8.main()
    printed = capsys.readouterr().out
    for form in "ABC":
        for kind in ("TR", "AR"):
            assert f"| {form} | {kind} | sum of these |" in printed


# Unique experts per batch

SMALL = unique.Setting(rate_per_s=100.0, cap=8, skew=0.0, requests=12, output_tokens=24)


def test_the_calibration_runs_the_baselines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(setting: Any, policy: str, seed: int) -> Any:
        asked.append((policy, seed))
        return unique.Seen(6.0 if policy == "decode_first" else 4.0, *[0.0] * 6)

    monkeypatch.setattr(unique, "run", fake)
    assert unique.baselines(SMALL) == (6.0, 4.0)
    assert set(asked) == set(product(unique.BASELINES, unique.CALIBRATION_SEEDS))


def test_the_fit_is_least_squares_to_the_two_baselines() -> None:
    near, far, further = (replace(SMALL, skew=skew) for skew in (0.0, 0.5, 1.0))
    uniques = {far: (5.3, 5.0), near: (5.1, 5.1), further: (2.0, 2.0)}
    assert unique.fitted(uniques) == near
    assert [unique.is_near(uniques[point]) for point in (near, far)] == [True, False]
    assert unique.loss((5.08, 5.21)) == 0


def test_gains_are_paired_by_seed() -> None:
    def seen(mean_ms: float, p95_ms: float) -> Any:
        return unique.Seen(1.0, mean_ms, p95_ms, 0, 0.0, 0, 0.0)

    found = {
        "decode_first": [seen(10, 20), seen(100, 100)],
        "expert_aware": [seen(9, 22), seen(90, 110)],
    }
    mean, p95 = unique.gains(found, "decode_first")
    assert (mean.mean, mean.half) == pytest.approx((-0.1, 0.0))
    assert (p95.mean, p95.half) == pytest.approx((0.1, 0.0))


def test_a_gap_to_a_published_range_is_counted_from_its_nearer_end() -> None:
    assert [unique.outside(x, (-6.0, -5.0)) for x in (-8.0, -5.5, 1.0)] == [-2.0, 0.0, 6.0]


def test_where_more_wait_than_fit_expert_aware_batches_want_fewer_experts() -> None:
    found = {policy: unique.run(SMALL, policy, 0) for policy in unique.PAPER}
    for policy in unique.BASELINES:
        assert found["expert_aware"].unique < found[policy].unique
    assert all(1 <= seen.unique <= 7 for seen in found.values())


def test_all_experts_are_there_from_the_start() -> None:
    knobs = DecoupledKnobs(requests=2, num_layers=32)
    summary = result_of(prepare(SMALL.scenario("fcfs", 0), synthesize_decoupled(knobs))).summary
    assert summary["misses"] == summary["h2d_bytes"] == 0
    few = replace(SMALL, slots=2).scenario("fcfs", 0)
    assert result_of(prepare(few, synthesize_decoupled(knobs))).summary["misses"] > 0


def test_the_study_of_unique_experts_prints_all_its_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unique, "RATES", (100.0,))
    monkeypatch.setattr(unique, "CAPS", (8,))
    monkeypatch.setattr(unique, "SKEWS", (0.0,))
    monkeypatch.setattr(sys, "argv", ["unique_experts.py", "--seeds", "2", "--requests", "2"])
    unique.main()
    printed = capsys.readouterr().out
    for title in ("Calibration", "Prediction", "All rates", "Sensitivity", "Cap 2: longest"):
        assert f"### {title}" in printed
    assert "3.51" in printed


# Prefetch


def test_the_closed_form_is_what_a_layer_ahead_saves() -> None:
    compute, load, layers = 2.0, 5.0, 4
    ahead, demand = compute + load + (layers - 1) * load, layers * (compute + load)
    assert prefetch.saved(compute, load, layers=layers) == pytest.approx(ahead / demand - 1)
    assert prefetch.saved(compute, load, 0.0) == 0
    assert -0.5 < prefetch.saved(1.0, 1.0) < -0.48  # half is the most that overlap can hide


@pytest.mark.parametrize("bandwidth", ["25GB/s", "2000GB/s"])
def test_one_cold_token_saves_what_its_closed_form_says(
    bandwidth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = synthesize_decoupled(
        DecoupledKnobs(requests=1, prompt_tokens=1, output_tokens=1, num_layers=32)
    )
    monkeypatch.setattr(prefetch, "_trace", lambda seed: one)
    setting = {"slots": 2, "cache": "lru", "sequences": 1, "seed": 0, "bandwidth": bandwidth}
    demand, ahead = (prefetch.run(policy, **setting) for policy in ("none", "layer_ahead"))
    hardware = load_hardware("a100-80gb", {"h2d": {"bandwidth": bandwidth}})
    load_ns = CostModel(hardware, COST.shape).copy_ns("h2d", COST.expert_bytes)
    front_ns = COST.front_ns(0, BatchShape(1, 1, 1, 1, 1))
    compute_ns = front_ns + COST.experts_ns((1,))
    # The first layer loads under its own attention, which the closed form leaves out.
    hidden_ns = 31 * min(compute_ns, load_ns) + min(front_ns, load_ns)
    assert (demand.step_ms - ahead.step_ms) * 1e6 == pytest.approx(hidden_ns)
    assert (demand.misses, ahead.misses) == (1, 0)


def test_the_study_of_prefetch_prints_what_is_outside(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = synthesize_decoupled(
        DecoupledKnobs(requests=3, prompt_tokens=4, output_tokens=4, num_layers=32)
    )
    monkeypatch.setattr(prefetch, "_trace", lambda seed: few)
    monkeypatch.setattr(prefetch, "SEQUENCES", (1,))
    monkeypatch.setattr(prefetch, "SLOTS", (2, 5))
    monkeypatch.setattr(prefetch, "BANDWIDTHS", ("25GB/s",))
    monkeypatch.setattr(sys, "argv", ["prefetch.py", "--seeds", "2"])
    prefetch.main()
    printed = capsys.readouterr().out
    for title in ("Mean step latency", "Over links", "Closed form"):
        assert f"### {title}" in printed
    assert printed.count("| lru, 1, ") == 2
