"""The studies of Read-ME's published figures do what their documents say, in small."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_scripts import study

from moesim.cost.roofline import CostModel
from moesim.errors import UsageError
from moesim.hardware import BatchShape, load_hardware
from moesim.model.shapes import named_shape
from moesim.report.statistics import Estimate
from moesim.trace import DecoupledKnobs, synthesize_decoupled

table8, prefetch, table4_served, loads_module = (
    study("readme", name) for name in ("table8", "prefetch", "table4_served", "loads")
)
accuracy, output = (study("readme", name) for name in ("accuracy", "output"))
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


@pytest.mark.parametrize("share", ["0", "2"])
def test_a_wrong_share_ends_the_accuracy_study_before_the_long_training(
    share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.training.train", lambda *_, **__: pytest.fail("long work began"))
    with pytest.raises(UsageError, match=f"share .{float(share)}. must be"):
        accuracy.records_of(0, float(share), None, tmp_path / "out", 1, ())


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", ""])
def test_a_study_takes_at_least_one_seed(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=output.at_least_one)
    assert parser.parse_args(["--seeds", "1"]).seeds == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--seeds", value])
    assert "is not a whole number from 1" in capsys.readouterr().err


def test_a_study_ends_with_one_line_for_a_user_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.cli.ending._noted_signals", list)  # pytest keeps its own

    def main() -> None:
        raise UsageError("no such trace")

    with pytest.raises(SystemExit) as ended:
        output.run_main(main)
    assert ended.value.code == UsageError.exit_code
    assert capsys.readouterr().err == "\nerror: no such trace\n"


def test_a_report_begins_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prefetch.py", "--seeds", "3"])
    expected = "```sh\npython studies/readme/prefetch.py --seeds 3\n```\n"
    assert output.command("prefetch") == expected


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


def test_slopes_of_table_8_are_those_of_its_cells() -> None:
    gained = 7 * ((6 / 7) ** 5 - (6 / 7) ** 20)
    assert table8.slope_over("AR", 5, 20) == pytest.approx((22.99 - 21.75) / gained)
    assert table8.slope_over("TR", 5, 20) == pytest.approx((24.97 - 22.43) / gained)
    assert table8.expert_ms() == pytest.approx(
        32 * 3 * 4096 * 5504 * 2 / (0.8 * 2039e9) * 1e3, rel=1e-4
    )


def test_a_step_of_table_8_is_read_at_the_batch_that_wants_as_many_experts() -> None:
    for batch in table8.BATCHES:
        wanted = table8.unique_experts(batch)
        assert table8.batch_of(wanted) == pytest.approx(batch)
        assert table8.step_ms("AR", wanted) == pytest.approx(
            sum(table8.published("AR", batch).values())
        )
    assert 40.55 < table8.step_ms("AR", 5.08) < 41.27


def test_table_8_prints_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    table8.main()
    printed = capsys.readouterr().out
    for form in "ABC":
        for kind in ("TR", "AR"):
            assert f"| {form} | {kind} | sum of these |" in printed


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
    setting = few_requests(
        monkeypatch, one, prefetch.Setting(1, 2, overhead=None, pinned=bandwidth)
    )
    demand, ahead = (
        prefetch.run(setting, side, 0) for side in (prefetch.PINNED_DEMAND, prefetch.PINNED_AHEAD)
    )
    hardware = load_hardware("a100-80gb", {"h2d": {"bandwidth": bandwidth}})
    load_ns = CostModel(hardware, COST.shape).copy_ns("h2d", COST.expert_bytes)
    front_ns = COST.front_ns(0, BatchShape(1, 1, 1, 1, 1))
    compute_ns = front_ns + COST.experts_ns((1,))
    # The first layer loads under its own attention, which the closed form leaves out.
    hidden_ns = 31 * min(compute_ns, load_ns) + min(front_ns, load_ns)
    assert (demand.step_ms - ahead.step_ms) * 1e6 == pytest.approx(hidden_ns)
    assert (demand.misses, ahead.misses) == (1, 0)
    # The headroom also covers the first layer and the tail of the step.
    most = -prefetch.headroom(setting, 0) * demand.step_ms * 1e6
    resident = prefetch.run(replace(setting, initial_layers=32), prefetch.PINNED_DEMAND, 0)
    tail_ns = resident.step_ms * 1e6 - 32 * compute_ns
    assert hidden_ns <= most <= hidden_ns + compute_ns + tail_ns


def few_requests(monkeypatch: pytest.MonkeyPatch, trace: Any, setting: Any) -> Any:
    """Serve the requests of `trace` in the study of prefetch, and return the setting unchanged."""
    prefetch.run.cache_clear()
    monkeypatch.setattr(prefetch, "_trace", lambda seed: trace)
    loads = {clients: loads_module.closed(clients, trace.num_requests) for clients in (1, 11)}
    monkeypatch.setattr(prefetch, "LOADS", loads)
    return setting


def test_the_headroom_is_perfect_overlap_of_the_layers_that_load() -> None:
    """Steps of 4 layers, of which 2 load: 2 + 2 max(1, 5), and 2 + 2 max(1, 0.5)."""
    times = prefetch.overlapped(np.array([4.0, 4.0]), np.array([10.0, 1.0]), 2, layers=4)
    assert times.tolist() == [12.0, 4.0]


def test_initial_layers_take_no_slot_from_the_others() -> None:
    plain = prefetch.Setting(1, 3)
    assert (plain.all_slots, replace(plain, initial_layers=4).all_slots) == (3 * 32, 4 * 7 + 3 * 28)


def test_pinning_and_prefetch_make_up_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = DecoupledKnobs(requests=12, prompt_tokens=4, output_tokens=6, num_layers=32)
    setting = few_requests(monkeypatch, synthesize_decoupled(knobs), prefetch.Setting(11, 3))
    total, pinning, ahead = prefetch.Study(range(1)).parts(setting)
    assert 1 + total.mean == pytest.approx((1 + pinning.mean) * (1 + ahead.mean))
    assert total.mean < pinning.mean < ahead.mean < 0


def test_the_study_of_prefetch_counts_the_settings_that_reach_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two settings, one reaches -30 % in total only, the other also by pinning alone."""
    parts = {2: (-0.35, -0.2, -0.19), 5: (-0.4, -0.3, -0.14)}

    def fake(_: Any, setting: Any) -> Any:
        return tuple(Estimate(mean, 0.01, 2) for mean in parts[setting.slots])

    monkeypatch.setattr(prefetch.Study, "parts", fake)
    study_of_two = prefetch.Study(range(2))
    study_of_two.settings += [prefetch.Setting(1, slots) for slots in parts]
    cells = [cell.text for cell in study_of_two.reaching(-0.3).rows[0]]
    assert cells == ["25GB/s, slow, always", "2", "2", "1", "0"]


def test_the_study_of_prefetch_prints_all_its_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = DecoupledKnobs(requests=3, prompt_tokens=4, output_tokens=4, num_layers=32)
    few_requests(monkeypatch, synthesize_decoupled(knobs), None)
    monkeypatch.setattr(prefetch, "SLOTS", (2, 5))
    monkeypatch.setattr(sys, "argv", ["prefetch.py", "--seeds", "2"])
    prefetch.main()
    assert capsys.readouterr().out.count("### ") == 9


# Table 4, served


def test_a_difference_is_marked_only_if_its_interval_excludes_zero() -> None:
    values = (
        Estimate(1.0, 0.5, 3),
        Estimate(-1.0, 0.5, 3),
        Estimate(1.0, 2.0, 3),
        Estimate(1.0, None, 1),
    )
    marks = [table4_served.marked(value).split()[-1] for value in values]
    assert marks == ["better", "worse", "2.0", "+1.0"]


def test_the_served_table_4_compares_policies_in_the_same_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Policies that hit equally often differ by zero; MIN with hindsight bounds them all."""
    knobs = DecoupledKnobs(requests=6, prompt_tokens=4, output_tokens=4, num_layers=32)
    trace = synthesize_decoupled(knobs)
    loads = {"clients": loads_module.closed(3, 6, 2), "queue": loads_module.queued(1, 6)}
    monkeypatch.setattr(table4_served, "LOADS", loads)
    small = table4_served.Study("small", lambda seed: trace, (2,), range(2))
    rows = [row[0].text for row in small.hits().rows]
    assert ("queue: min" in rows, "clients: min" in rows) == (True, False)
    same = small.difference("expert_hit_rate", "lru", "lru", "clients", 2)
    assert (same.mean, same.half) == (0, 0)
    for load in loads:
        runs = [small.runs(load, policy, 2) for policy in ("random", "lru", "lookahead")]
        for seed in range(2):
            assert len({(run[seed]["steps"], run[seed]["accesses"]) for run in runs}) == 1
        bound = min(small.values("min_hit_rate", load, "lru", 2))
        for policy in ("random", "lru", "lookahead", table4_served.GUESSING):
            assert max(small.values("expert_hit_rate", load, policy, 2)) <= bound
