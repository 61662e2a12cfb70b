"""The study of Read-ME's unique experts fits what it says it fits, and predicts the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_scripts import study

from moesim.errors import UsageError
from moesim.model.shapes import ModelShape, named_shape
from moesim.report.statistics import Estimate
from moesim.simulate import prepare, result_of

serving, gains, unique, table8, plot = (
    study("readme", name)
    for name in ("closed_serving", "latency_gains", "unique_experts", "table8", "unique_plot")
)
WHOLE = serving.Family("uniform", "geometric", False)
CHUNKED = replace(WHOLE, chunked=True)
SMALL = serving.Setting(CHUNKED, cap=6, clients=12, counted=4)


def seen(value: float = 1.0, **changes: Any) -> Any:
    """Return a run whose latencies are `value` and twice that."""
    fields = {"unique": value, "mean_ms": value, "p95_ms": 2 * value, "slope_ms": 2.65}
    zeros = dict.fromkeys(("wait_steps", "wait_ms", "pause_steps", "pause_ms", "preemptions"), 0)
    return serving.Seen(**{**fields, **zeros, "requests": [[10, 50, 5]], **changes})


class Fake:
    """Runs whose unique experts are a function of setting, policy and seed."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.asked: list[tuple[Any, str, int]] = []

    def of(self, setting: Any, policy: str, seeds: Sequence[int]) -> list[Any]:
        self.asked += [(setting, policy, seed) for seed in seeds]
        return [seen(self.value(setting, policy, seed)) for seed in seeds]


# One run


def shape_of(setting: Any) -> ModelShape:
    trace = serving.workload(setting.family, setting.requests, setting.layers, 0, None)
    return prepare(setting.scenario("fcfs", 0), trace).cost.shape


def test_the_shape_of_one_layer_is_the_shipped_model_with_one_layer() -> None:
    published = named_shape("readme-llama-2-7b")
    one = shape_of(SMALL)
    assert replace(one, name=published.name, source=published.source) == replace(
        published, num_layers=1
    )
    assert shape_of(replace(SMALL, layers=32)) == published


@pytest.mark.parametrize("family", [CHUNKED, WHOLE], ids=str)
def test_steps_depend_on_no_price_so_one_layer_counts_for_all(family: Any) -> None:
    setting = replace(SMALL, family=family)
    for policy in unique.PAPER:
        one, all_layers = (
            serving.serve(replace(setting, layers=layers), policy, 3, None) for layers in (1, 32)
        )
        assert one.unique == all_layers.unique
        assert one.requests == all_layers.requests
        assert one.wait_steps == all_layers.wait_steps
        assert one.mean_ms < all_layers.mean_ms / 10


def test_steps_and_experts_of_a_request_are_those_between_its_arrival_and_end() -> None:
    trace = serving.workload(CHUNKED, SMALL.requests, 1, 4, None)
    result = result_of(prepare(SMALL.scenario("prefill_first", 4), trace))
    steps, requests = result.table("steps"), result.table("requests")
    inside = requests.sort_values("finish_ns", kind="stable").iloc[12:-12]
    found = serving.serve(SMALL, "prefill_first", 4, None)
    assert len(found.requests) == SMALL.counted
    latencies = []
    for (_, request), (count, experts, tokens) in zip(
        inside.iterrows(), found.requests, strict=True
    ):
        own = steps[(steps.start_ns >= request.arrival_ns) & (steps.finish_ns <= request.finish_ns)]
        assert (len(own), own.accesses.sum(), request.output_tokens) == (count, experts, tokens)
        latency_ns = int((own.finish_ns - own.start_ns).sum())
        assert latency_ns == request.finish_ns - request.arrival_ns
        latencies.append(latency_ns / tokens / 1e6)
    assert found.mean_ms == pytest.approx(np.mean(latencies))
    assert found.p95_ms == pytest.approx(np.percentile(latencies, 95))


def test_the_slope_of_simulated_steps_is_the_roofline_of_one_expert() -> None:
    setting = serving.Setting(CHUNKED, cap=8, clients=12, counted=20, layers=32)
    found = serving.serve(setting, "decode_first", 0, None).slope_ms
    assert found == pytest.approx(table8.expert_ms(), rel=0.1)


def test_all_experts_are_there_and_nothing_is_preempted() -> None:
    setting = replace(SMALL, layers=32)
    trace = serving.workload(CHUNKED, setting.requests, 32, 0, None)
    summary = result_of(prepare(setting.scenario("decode_first", 0), trace)).summary
    assert summary["misses"] == summary["h2d_bytes"] == summary["preemptions"] == 0
    assert summary["window_requests"] == setting.counted


def test_families_differ_in_routing_lengths_and_prefill() -> None:
    def ids(routing: str) -> Any:
        trace = serving.workload(serving.Family(routing, "fixed", True), 60, 1, 0, None)
        return np.asarray(trace.expert_ids[:, 0, 0]), set(trace.requests["domain"].tolist())

    def largest_share(experts: Any) -> float:
        return float(np.bincount(experts).max() / len(experts))

    assert largest_share(ids("uniform")[0]) < 0.2
    assert largest_share(ids("skewed")[0]) > 0.6
    assert [len(ids(name)[1]) for name in serving.ROUTINGS] == [1, 1, 7]
    for family in (CHUNKED, WHOLE):
        scenario = replace(SMALL, family=family).scenario("expert_aware", 0)
        assert scenario.batching.chunked_prefill is family.chunked


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:0{n}.0,{prompt},{output}\n"
    for n, (prompt, output) in enumerate([(1000, 1), (3000, 3), (1, 4), (3999, 8)])
)


def test_lengths_of_azure_are_scaled_to_the_assumed_means(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(AZURE, encoding="utf-8")
    drawn = serving.azure_lengths(file, 200, seed=0)
    assert drawn.shape == (200, 2)
    # 64 / 2000 and 124 / 4 times what is recorded, at least one token.
    assert {tuple(row) for row in drawn.tolist()} == {(32, 31), (96, 93), (1, 124), (128, 248)}
    assert (drawn != serving.azure_lengths(file, 200, seed=1)).any()
    with pytest.raises(UsageError, match="need its path"):
        serving.azure_lengths(None, 5, seed=0)


def test_scaled_lengths_end_at_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.csv"
    file.write_text(AZURE, encoding="utf-8")
    monkeypatch.setattr(serving, "CONTEXT", 200)
    assert serving.azure_lengths(file, 50, seed=0).sum(axis=1).max() == 200


# Prices


def test_a_linear_price_of_a_step_prices_requests() -> None:
    run = seen(requests=[[10, 50, 5], [4, 8, 2]])
    mean_ms, p95_ms = run.priced(fixed_ms=3.0, slope_ms=2.0)
    latencies = [(10 * 3 + 50 * 2) / 5, (4 * 3 + 8 * 2) / 2]
    assert mean_ms == pytest.approx(np.mean(latencies))
    assert p95_ms == pytest.approx(np.percentile(latencies, 95))


def test_with_every_slope_a_step_of_5_08_experts_takes_as_long_as_in_table_8() -> None:
    run = seen(requests=[[100, 508, 1]])
    fewer = seen(requests=[[100, 351, 1]])
    for slope in (0.0, *gains.slopes().values()):
        assert gains.linear(slope)(run)[0] == pytest.approx(100 * table8.step_ms("AR", 5.08))
        saved = gains.linear(slope)(run)[0] - gains.linear(slope)(fewer)[0]
        assert saved == pytest.approx(157 * slope)


def test_gains_are_paired_by_seed_and_baselines_have_no_options() -> None:
    values = {"decode_first": (10, 100), "prefill_first": (18, 90), "expert_aware": (9, 90)}
    runs = Fake(lambda setting, policy, seed: values[policy][seed])
    varied = replace(SMALL, options=(("max_wait", 4),))
    found = gains.gains(runs, varied, (0, 1))
    assert [gain.mean for gain in found] == pytest.approx([-0.1, -0.1, -0.25, -0.25])
    assert [gain.half for gain in found[:2]] == pytest.approx([0.0, 0.0])
    assert {bool(setting.options) for setting, policy, _ in runs.asked if policy in values} == {
        True, False,
    }  # fmt: skip
    assert all(not s.options for s, policy, _ in runs.asked if policy in unique.BASELINES)


def test_a_gap_to_a_published_range_is_counted_from_its_nearer_end() -> None:
    assert [gains.outside(x, (-6.0, -5.0)) for x in (-8.0, -5.5, 1.0)] == [-2.0, 0.0, 6.0]


def test_a_prediction_holds_where_its_interval_overlaps_the_published_range() -> None:
    for mean, half, expected in ((-8.0, 1.0, False), (-8.0, 2.5, True), (-1.0, 3.0, False)):
        gain = Estimate(mean / 100, half / 100, 5)
        assert gains.holds(gain, (-6.1, -5.0)) is expected


# The protocol


def test_the_fit_runs_baselines_only_with_full_batches_on_seeds_of_its_own() -> None:
    runs = Fake(lambda setting, policy, seed: 5.0)
    unique.fitted_cap(runs, CHUNKED)
    assert {policy for _, policy, _ in runs.asked} == set(unique.BASELINES)
    assert {seed for *_, seed in runs.asked} == set(unique.CALIBRATION_SEEDS)
    assert all(setting.clients == 2 * setting.cap for setting, *_ in runs.asked)
    assert not set(unique.CALIBRATION_SEEDS) & set(range(100))


@pytest.mark.parametrize("best", [4, 7, 11, 23, 57, 64, 127, 128])
def test_the_fitted_cap_has_the_least_loss(best: int) -> None:
    def value(setting: Any, policy: str, seed: int) -> float:
        return unique.PAPER[policy] + (setting.cap - best) / 100

    assert unique.fitted_cap(Fake(value), CHUNKED) == best


def test_the_loss_is_the_squared_error_to_both_baselines() -> None:
    assert unique.loss((5.08, 5.21)) == 0
    assert unique.loss((5.18, 5.01)) == pytest.approx(0.1**2 + 0.2**2)
    assert [unique.is_near(pair) for pair in ((5.2, 5.1), (5.2, 5.0))] == [True, False]


def test_the_order_of_the_baselines_is_read_off_the_interval() -> None:
    cases = {"right": (0.2, 0.1), "reversed": (-0.2, 0.1), "open": (0.1, 0.2)}
    for name, (mean, half) in cases.items():
        assert unique.order_of(Estimate(mean, half, 5)) == name


def test_the_crossing_is_interpolated() -> None:
    assert unique.first_crossing([1, 2, 4], [5, 4, 3], 3.5) == pytest.approx(3)
    assert unique.first_crossing([1, 2, 4], [3, 4, 3], 3.5) == 1
    assert np.isnan(unique.first_crossing([1, 2], [5, 4], 3.5))


def test_clients_are_chosen_at_the_mean_crossing_and_only_if_there_is_one() -> None:
    def value(setting: Any, policy: str, seed: int) -> float:
        slope = 1.5 if policy == "expert_aware" else 0.0
        return 5.01 - slope * (setting.clients / setting.cap - 1) + setting.cap / 1e6

    found = unique.explore(Fake(value), CHUNKED, (0, 1))
    assert found.crossing.mean == pytest.approx(2, abs=1e-3)
    assert found.clients == 2 * found.cap
    flat = unique.explore(Fake(lambda *_: 5.1), CHUNKED, (0, 1))
    assert flat.clients is None
    assert flat.crossing.undefined == 2


def test_where_more_wait_than_fit_expert_aware_batches_want_fewer_experts() -> None:
    for family in (CHUNKED, WHOLE):
        found = {
            policy: serving.serve(replace(SMALL, family=family, clients=18), policy, 0, None).unique
            for policy in unique.PAPER
        }
        assert all(found["expert_aware"] < found[policy] - 0.5 for policy in unique.BASELINES)


def test_decodes_that_take_turns_finish_together() -> None:
    """With room for half of the decodes, each is served in every other step."""
    family = serving.Family("uniform", "fixed", True)
    setting = serving.Setting(family, cap=2, clients=4, counted=4)
    runs = {
        name: serving.serve(setting, name, 0, None)
        for name in (gains.ROTATING, "prefill_first", "decode_first")
    }
    pauses = {name: run.pause_steps for name, run in runs.items()}
    assert pauses[gains.ROTATING] < pauses["prefill_first"] / 2
    assert pauses["decode_first"] == 0


# Runs are kept


def test_a_killed_study_resumes_and_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serving.Runs(tmp_path, None).of(SMALL, "expert_aware", (0, 1))
    monkeypatch.setattr(serving, "serve", lambda *_: pytest.fail("simulated again"))
    assert serving.Runs(tmp_path, None).of(SMALL, "expert_aware", (0, 1)) == first
    with pytest.raises(UsageError, match="made with other settings"):
        serving.Runs(tmp_path, None).run(replace(SMALL, counted=5), "expert_aware", 0)


def test_settings_that_differ_have_files_of_their_own() -> None:
    varied = [
        SMALL,
        replace(SMALL, cap=7),
        replace(SMALL, clients=13),
        replace(SMALL, layers=32),
        replace(SMALL, family=WHOLE),
        replace(SMALL, options=(("max_wait", 4),)),
    ]
    names = {
        serving._name(setting, policy, seed)
        for setting, policy, seed in product(varied, unique.PAPER, (0, 1))
    }
    assert len(names) == 6 * 3 * 2


@pytest.mark.slow
def test_the_study_prints_all_its_tables_and_draws_its_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unique, "FAMILIES", (CHUNKED, replace(WHOLE, lengths="azure")))
    monkeypatch.setattr(unique, "CAPS", (5, 6))
    monkeypatch.setattr(unique, "CALIBRATION_SEEDS", (1000,))
    monkeypatch.setattr(unique, "RATIOS", (1.0, 2.0))
    monkeypatch.setattr(unique, "COUNTED", 3)
    unique.main([str(tmp_path / "out"), "--seeds", "2", "--requests", "3"])
    out, err = capsys.readouterr()
    titles = ("Fitted batch caps", "Unique experts per batch over", "N / C at which", "Predicted",
              "Slope of", "Not in the protocol", "Fitted to the gain", "Options of",
              "Longest before")  # fmt: skip
    for title in titles:
        assert f"### {title}" in out
    assert "| uniform, geometric, chunked | " in out
    assert "azure" not in out
    assert "are left out" in err
    kinds = {file.suffix for file in (tmp_path / "out/plots").iterdir()}
    assert kinds == {".png", ".svg", ".csv", ".md"}


def test_a_missing_azure_trace_is_named_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.csv:1: cannot be read"):
        serving.Runs(tmp_path / "out", tmp_path / "absent.csv")


def test_a_folder_of_another_azure_trace_is_refused(tmp_path: Path) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    traces = []
    for name, tokens in (("one", 4), ("two", 5)):
        traces.append(tmp_path / f"{name}.csv")
        row = f"2023-11-16 18:15:46.6805900,{tokens},3\n"
        traces[-1].write_text(header + row, encoding="utf-8")
    setting = serving.Setting(serving.Family("uniform", "azure", True), 4, 4, counted=2)
    seen = serving.Runs(tmp_path / "out", traces[0]).run(setting, "decode_first", 0)
    assert serving.Runs(tmp_path / "out", traces[0]).run(setting, "decode_first", 0) == seen
    with pytest.raises(UsageError, match="other settings"):
        serving.Runs(tmp_path / "out", traces[1]).run(setting, "decode_first", 0)
