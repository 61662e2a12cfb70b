"""The tables of published figures: the document shows the committed rows, and fits are right."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from study_scripts import study

from moesim.model.hf_config import shape_from_config
from moesim.report.tabular import with_tables
from moesim.simulate.curve import Scope, curve
from moesim.trace.synthetic import SyntheticKnobs, synthesize

results = study("published", "results")
published_rows = study("published", "published_rows")
replay = study("published", "cache_replay")
offloading = study("published", "mixtral_offloading")
systems = study("published", "system_hits")
recent = study("published", "recent_models")
pre_gated = study("published", "pre_gated")
infinity = study("published", "moe_infinity")
tables = study("published", "tables")

COMMITTED = results.read_results(ROOT / "studies/published/rows.json")
DOCUMENT = (ROOT / "docs/published.md").read_text(encoding="utf-8")


def row(**changes: Any) -> Any:
    plain = {
        "table": "recent", "source": "made up", "what": "a", "unit": "tok/s", "published": 2.0,
        "ours": 3.0, "kind": "predicted", "note": "", "group": "g",
    }  # fmt: skip
    return published_rows.Row(**{**plain, **changes})


def test_the_document_has_the_tables_of_the_committed_rows() -> None:
    made = results.tables_of(COMMITTED)
    assert with_tables(DOCUMENT, made) == DOCUMENT
    for name in results.TABLES:
        own = [each for each in COMMITTED.rows if each.table == name]
        assert own
        for each in own:
            assert f"| {each.what} | {each.published:.4g} {each.unit} |" in DOCUMENT


def test_every_row_has_a_source_and_a_figure_or_says_what_is_missing() -> None:
    for each in COMMITTED.rows:
        assert len(each.source) > 5
        assert (each.ours is None) == (each.kind == "missing")
        assert each.note or each.ours is not None


def test_no_row_of_the_rtx_4090_is_fitted() -> None:
    resident = [each for each in COMMITTED.rows if each.table == "resident"]
    kinds = {each.what.startswith("RTX 4090"): each.kind for each in resident}
    assert kinds == {True: "predicted", False: "fitted"}


def test_an_error_is_relative_to_the_published_figure_and_in_points_for_rates() -> None:
    assert row().error == pytest.approx(50)
    assert row().error_text == "+50.0 %"
    rate = row(unit="%", published=40.0, ours=30.0)
    assert (rate.error, rate.error_text) == (-10, "-10.0 points")
    assert rate.relative_pct == pytest.approx(-25)
    missing = row(ours=None, kind="missing")
    assert (missing.error, missing.error_text, missing.relative_pct) == (None, "", None)


def test_the_median_is_of_sizes_of_errors_of_one_kind() -> None:
    rows = [row(ours=ours) for ours in (1.0, 2.2, 2.6)]  # -50, +10, +30 %
    rows += [row(ours=20.0, kind="fitted"), row(ours=None, kind="missing")]
    assert published_rows.median_error(rows) == pytest.approx(median([50, 10, 30]))
    assert published_rows.median_error(rows, "fitted") == pytest.approx(900)
    assert published_rows.median_error([]) is None


def test_results_survive_the_file_with_six_digits(tmp_path: Path) -> None:
    results.write_results(COMMITTED, tmp_path / "rows.json")
    assert results.read_results(tmp_path / "rows.json") == COMMITTED
    long = results.Results([row(ours=1.23456789)])
    results.write_results(long, tmp_path / "rows.json")
    assert results.read_results(tmp_path / "rows.json").rows[0].ours == 1.23457


def test_a_table_without_a_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="no mark for the table other"):
        with_tables(DOCUMENT, {"other": ""})


MADE_UP = offloading.Machine("made up", "A100 80GB SXM", "", 4)
TRUE = offloading.Fit(link_bytes_per_s=12e9, layer_ns=7e6)


def test_the_fit_of_a_machine_finds_the_two_numbers_of_a_made_up_table() -> None:
    def rates(algorithm: str) -> dict[str, float]:
        bits = ("2bit", "3bit")
        return {each: 1 / offloading.seconds(algorithm, each, MADE_UP, TRUE) for each in bits}

    found = offloading.fit_machine(MADE_UP, rates("naive_accelerate"), rates("no_lru_no_preload"))
    assert found.link_bytes_per_s == pytest.approx(TRUE.link_bytes_per_s, rel=1e-3)
    assert found.layer_ns == pytest.approx(TRUE.layer_ns, rel=1e-3)


def test_a_naive_token_takes_the_bytes_of_all_experts_over_the_link() -> None:
    weights = 3 * 4096 * 14336
    nbytes = 32 * 8 * weights * offloading.EXPERT_BITS["2bit"] / 8
    taken = offloading.seconds("naive_accelerate", "2bit", MADE_UP, TRUE)
    assert taken == pytest.approx(nbytes / TRUE.link_bytes_per_s, rel=0.03)


def test_a_token_without_a_cache_takes_its_copies_and_its_layers() -> None:
    weights = 3 * 4096 * 14336
    copies_s = 32 * 2 * weights * offloading.EXPERT_BITS["2bit"] / 8 / TRUE.link_bytes_per_s
    taken = offloading.seconds("no_lru_no_preload", "2bit", MADE_UP, TRUE)
    assert taken == pytest.approx(copies_s + 32 * TRUE.layer_ns / 1e9, rel=0.05)
    skewed = replay.Locality(1.5, 0.5)
    other = offloading.seconds("no_lru_no_preload", "2bit", MADE_UP, TRUE, skewed)
    assert other == pytest.approx(taken, rel=1e-3), "the routing has no effect"


def test_a_misprint_is_not_fitted() -> None:
    def entry(algorithm: str, value: float, note: str | None = None) -> dict[str, object]:
        config = {"alg": algorithm, "expert_bits": "3bit", "note": note}
        return {"hardware": "RTX3060-12GB", "value": value, "config": config}

    entries = [entry("naive_accelerate", 9.0, "suspected"), entry("no_lru_no_preload", 1.5)]
    assert offloading._by_bits(entries, "naive_accelerate") == {}
    assert offloading._by_bits(entries, "no_lru_no_preload") == {"3bit": 1.5}


def test_prefetch_and_demand_share_the_four_buffers_of_the_open_code() -> None:
    for algorithm, ahead in (("full", 2), ("no_preload", 0)):
        scenario = offloading._scenario(algorithm, 3.0, MADE_UP, TRUE, 4)
        assert scenario["prefetch"]["buffers"] == ahead
        assert scenario["memory"]["staging"] + ahead == 4


def test_prefetch_helps_in_each_row_where_it_helped_there() -> None:
    ours = {r.what: r.ours for r in COMMITTED.rows if r.table == "offloading"}
    gains = [(what, what.replace("full", "LRU")) for what in ours if what.endswith("full")]
    assert len(gains) == 8
    for full, lru in gains:
        assert ours[full] > ours[lru]


def test_knobs_are_found_again_from_the_hit_rates_that_they_give() -> None:
    true = replay.Locality(0.9, 0.25)

    def hits(knobs: object) -> list[float]:
        events = replay.synthetic_events(4, 16, 2, 600, knobs)
        return [replay.hit_pct(events, policy, 5, "per_layer") for policy in ("lru", "lfu")]

    wanted = hits(true)
    found = replay.fit_locality(
        lambda knobs: [ours - theirs for ours, theirs in zip(hits(knobs), wanted, strict=True)]
    )
    assert hits(found) == pytest.approx(wanted, abs=0.5)
    assert found.skew == pytest.approx(true.skew, abs=0.1)
    assert found.stickiness == pytest.approx(true.stickiness, abs=0.05)


@pytest.mark.parametrize("policy", ["lru", "lfu", "belady", "static"])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_a_replay_agrees_with_the_curve(policy: str, scope: Scope) -> None:
    trace = synthesize(SyntheticKnobs(requests=1, prompt_tokens=1, output_tokens=200, num_layers=3))
    slots = 5 if scope == "per_layer" else 15
    admission = "bypass" if policy == "static" else "always"
    rates = curve(trace, [policy], scope=scope, capacities=[5], admission=admission)
    ours = replay.hit_pct(replay.events_of(trace), policy, slots, scope)
    assert ours == pytest.approx(100 * rates[policy][5])


def test_a_warm_cache_leaves_the_first_half_out() -> None:
    unions = [[(0,), (1,), (0,), (1,), (0,), (2,)]]
    events = replay.Events(unions, 3)
    assert replay.hit_pct(events, "lru", 2, "per_layer") == pytest.approx(100 * 3 / 6)
    assert replay.hit_pct(events, "lru", 2, "per_layer", warm=True) == pytest.approx(100 * 2 / 3)


def test_steps_of_several_rows_are_unions() -> None:
    trace = synthesize(SyntheticKnobs(requests=1, prompt_tokens=1, output_tokens=10, num_layers=2))
    events = replay.events_of(trace, rows=5)
    ids = np.asarray(trace.expert_ids[:])
    assert [len(layer) for layer in events.unions] == [2, 2]
    assert set(events.unions[1][0]) == {16 + int(each) for each in ids[:5, 1].ravel()}


def test_popular_experts_hit_their_share_of_the_uses() -> None:
    frequencies_LE = np.array([[0.7, 0.3], [0.4, 0.6]])
    assert systems.popular_hit_pct(frequencies_LE, [(0, 0), (1, 1)]) == pytest.approx(65)


def test_a_group_of_rows_is_that_of_its_knobs() -> None:
    groups = {each.group for each in COMMITTED.found}
    assert {each.group for each in recent.ROUTINGS} < groups
    for routing in recent.ROUTINGS:
        fitted = [r for r in COMMITTED.rows if r.group == routing.group and r.kind == "fitted"]
        assert len(fitted) == len(routing.fitted)


def test_the_shipped_profile_has_the_layer_time_of_the_committed_fit() -> None:
    from moesim.engines.engine import load_engine

    engine = load_engine("hf-offloading")
    assert engine.event_ns == pytest.approx(COMMITTED.fits["A100"].layer_ns, rel=0.01)


def test_documents_state_the_hits_of_deep_and_of_mixtral() -> None:
    mixtral, deep = (round(rates[3]) for rates in COMMITTED.lru_by_slots.values())
    documents = ["README.md", "docs/placement.md", "scenarios/README.md", "traces/README.md"]
    for name in documents:
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert re.search(rf"{deep} %, where Mixtral('s)? hits about {mixtral} %", text), name


def test_one_table_can_be_written_without_the_others(shared: Path) -> None:
    earlier = replace(COMMITTED, rows=[r for r in COMMITTED.rows if r.table != "resident"])
    found = tables.updated(earlier, ["resident"], shared)
    assert len(found.rows) == len(COMMITTED.rows)
    assert [r for r in found.rows if r.table != "resident"] == list(earlier.rows)
    assert found.fits == COMMITTED.fits
    ours = {each.what: each.ours for each in COMMITTED.rows if each.table == "resident"}
    again = {each.what: each.ours for each in found.rows if each.table == "resident"}
    assert again == pytest.approx(ours, rel=1e-5), "write them with tables.py --only resident"


SMALL = pre_gated.Switch("small", 1024, 3072, 16, 3, 8)
LINK_BYTES_PER_S = 24.6e9
LAYER_NS = 3e6


def decoded(design: str) -> float:
    """Return the seconds of a decoded token of the small model."""
    return pre_gated.times(design, SMALL, LAYER_NS).token_s


def test_the_bytes_of_a_switch_expert_are_those_of_two_matrices() -> None:
    for model in pre_gated.SWITCH:
        shape = shape_from_config(model.config)
        assert shape.expert_params == pytest.approx(2 * model.hidden * model.ffn, rel=1e-3)
        assert len(shape.moe_layers) == model.moe_layers
        assert shape.num_layers == 2 * model.moe_layers


def test_switch_models_have_the_published_numbers_of_weights() -> None:
    billions = {8: 0.7, 64: 3.8, 128: 7.5}  # encoder and decoder, which share the embeddings
    for model in pre_gated.BASE:
        expert = 2 * model.hidden * model.ffn
        dense = 0.25e9
        total = dense + 2 * model.moe_layers * model.experts * expert
        assert total / 1e9 == pytest.approx(billions[model.experts], rel=0.02)


def test_on_demand_waits_for_one_expert_in_each_layer() -> None:
    expert_s = 4 * 2 * SMALL.hidden * SMALL.ffn / LINK_BYTES_PER_S
    extra = decoded("on-demand") - decoded("GPU-only")
    assert extra == pytest.approx(SMALL.moe_layers * expert_s, rel=0.05)


def test_pre_gated_waits_for_the_first_layer_only() -> None:
    expert_s = 4 * 2 * SMALL.hidden * SMALL.ffn / LINK_BYTES_PER_S
    assert 2 * expert_s < LAYER_NS / 1e9, "copies are hidden behind a layer"
    extra = decoded("pre-gated") - decoded("GPU-only")
    assert extra == pytest.approx(expert_s, rel=0.05)


def test_prefetch_all_copies_all_experts_of_all_layers() -> None:
    model = replace(SMALL, experts=64)
    layers_s = (
        model.moe_layers * model.experts * 4 * 2 * model.hidden * model.ffn / LINK_BYTES_PER_S
    )
    found = pre_gated.times("prefetch-all", model, 1e3).token_s
    assert found == pytest.approx(layers_s, rel=0.1)


def test_the_fit_of_a_layer_reaches_the_published_throughput() -> None:
    layer_ns = pre_gated.fit_layer(100.0, [SMALL])
    assert pre_gated.times("GPU-only", SMALL, layer_ns).tokens_per_s == pytest.approx(100, rel=1e-3)


def test_one_figure_of_pre_gated_moe_is_fitted_and_it_is_of_gpu_only() -> None:
    own = [each for each in COMMITTED.rows if each.table == "pre_gated"]
    fitted = [each.what for each in own if each.kind == "fitted"]
    assert len([what for what in fitted if "raw data" not in what]) == 1
    assert all("GPU-only" in what for what in fitted)


def test_ratios_of_pre_gated_moe_are_close_but_where_the_figure_itself_is_in_doubt() -> None:
    own = [r for r in COMMITTED.rows if r.table == "pre_gated" and r.kind == "predicted"]
    far = [r.what for r in own if abs(r.error) > 20]
    assert all("prefetch-all" in what or "memory" in what for what in far)
    assert not any("block" in what or "raw data" in what for what in far)


def test_mrs_is_missing_where_the_routing_has_no_scores() -> None:
    own = [r for r in COMMITTED.rows if r.table == "systems" and "MRS" in r.what]
    kinds = {r.what.startswith("DeepSeek-V2-Lite"): r.kind for r in own}
    assert kinds == {True: "predicted", False: "missing"}


def test_a_gain_is_the_difference_of_two_rows_in_points() -> None:
    def entry(policy: str) -> dict[str, Any]:
        return {"model": "m", "config": {"cache_fraction": 0.25, "policy": policy}}

    rows = [row(unit="%", published=40.0, ours=42.0), row(unit="%", published=45.0, ours=43.5)]
    (gain,) = systems._gains([entry("LRU"), entry("MRS")], rows)
    assert (gain.unit, gain.published, gain.ours) == ("points", 5.0, 1.5)
    assert gain.error_text == "-3.5 points"
    unknown = [rows[0], row(unit="%", published=45.0, ours=None, kind="missing")]
    assert systems._gains([entry("LRU"), entry("MRS")], unknown)[0].ours is None


def test_a_token_without_misses_takes_the_times_of_its_layers() -> None:
    trace = synthesize(SyntheticKnobs(
        requests=6, prompt_tokens=16, output_tokens=30, num_layers=16, num_experts=64, top_k=8,
        stickiness=1.0,
    ))  # fmt: skip
    few, more = (infinity.token_seconds(trace, "olmoe-1b-7b", ns, slots="8GiB") for ns in (0, 1e6))
    assert more - few == pytest.approx(16e-3, rel=0.03)
