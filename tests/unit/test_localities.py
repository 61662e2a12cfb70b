"""Published hit rates: the facts, what synthetic routing makes of them, and the range of others."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict
from itertools import pairwise
from math import exp

import pytest
import yaml
from paths import ROOT, SHARED

from moesim.errors import UsageError
from moesim.model.shapes import named_shape
from moesim.trace import SyntheticKnobs, Trace, synthesize
from moesim.trace.localities import (
    FITTED,
    KnownModel,
    KnownTrace,
    Sizes,
    fitted_knobs,
    hit_rates_like,
    known_models,
    similar_models,
)
from moesim.trace.lru_hits import lru_hit_rates

MODELS = known_models()
FITS = [(model, trace) for model in MODELS.values() for trace in model.traces if trace.fitted]
STORED = yaml.safe_load(FITTED.read_text(encoding="utf-8"))


def lru_hits(trace: Trace, slots: int, scope: str) -> float:
    """Return LRU's hit rate by an ordered dictionary, which shares no code with moesim."""
    ids = trace.expert_ids[:].tolist()
    caches: dict[int, OrderedDict[tuple[int, int], None]] = {}
    hits = uses = 0
    for row in ids:
        for layer, chosen in enumerate(row):
            cache = caches.setdefault(0 if scope == "global" else layer, OrderedDict())
            keys = [(layer, expert) for expert in chosen]
            hits += sum(key in cache for key in keys)
            uses += len(keys)
            for key in keys:
                cache.pop(key, None)
                cache[key] = None
            while len(cache) > slots:
                cache.popitem(last=False)
    return hits / uses


def drawn(model: KnownModel, trace: KnownTrace) -> Trace:
    layers, experts, top_k = model.sizes
    steps = min(trace.steps, 1500)
    return synthesize(
        SyntheticKnobs(
            requests=1, prompt_tokens=1, output_tokens=steps,
            num_layers=layers if trace.slots == "global" else min(8, layers), num_experts=experts,
            top_k=top_k, layer_correlation=0, seed=1, **asdict(fitted_knobs(model, trace)),
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_sizes_are_those_of_the_shipped_model(name: str) -> None:
    shape = named_shape(name)
    assert shape.name == name
    sizes = (len(shape.moe_layers), shape.num_experts, shape.top_k)
    assert MODELS[name].sizes == sizes


def test_the_facts_are_those_of_the_compiled_measurements() -> None:
    path = SHARED / "data/measured/cache_hits.json"
    if not path.is_file():
        pytest.skip("the measurements lie beside the project, in ../shared")
    spelling = {"qwen3.6-35b-a3b": "qwen3.5-35b-a3b"}
    known = {
        (model.name, round(slots * (model.sizes.layers if trace.slots == "global" else 1)), pct)
        for model in MODELS.values()
        for trace in model.traces
        for slots, pct in ((at, round(100 * hit, 2)) for at, hit in trace.hits.items())
    }
    for each in json.loads(path.read_text(encoding="utf-8")):
        if each["policy"] in ("lru", "lru_simulator", "lru_warm", "lru_cold"):
            name = each["model"].lower()
            assert (spelling.get(name, name), each["capacity"], each["hit_pct"]) in known


def test_the_replayed_facts_are_those_of_the_reference() -> None:
    path = SHARED / "reference/hit_rates.json"
    if not path.is_file():
        pytest.skip("the reference lies beside the project, in ../shared")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    replayed = [each for each in MODELS["deepseek-v2-lite"].traces if each.kind == "replayed"]
    assert len(replayed) == 4
    for trace in replayed:
        entry = results[f"esft_deepseek_v2_lite/{trace.trace}"]
        caps = {float(cap): each["LRU"] for cap, each in entry["caps"].items()}
        assert trace.hits == pytest.approx(caps)
        assert trace.adjacent_overlap == entry["adjacent_token_overlap"]


@pytest.mark.parametrize(("model", "trace"), FITS, ids=lambda each: getattr(each, "trace", ""))
def test_stored_fits_are_within_a_point_of_what_is_published(
    model: KnownModel, trace: KnownTrace
) -> None:
    entry = next(
        each
        for each in STORED[model.name]
        if (each["trace"], each["source"]) == (trace.trace, trace.source)
    )
    per = model.sizes.layers if trace.slots == "global" else 1
    assert [slots / per for slots in entry["fitted"]] == pytest.approx(list(trace.fitted))
    assert len(entry["hits_pct"]) == len(trace.hits)
    for slots, (published, synthetic) in entry["hits_pct"].items():
        assert published == pytest.approx(100 * trace.hits[slots / per])
        if slots in entry["fitted"]:
            assert synthetic == pytest.approx(published, abs=1)


@pytest.mark.parametrize(("model", "trace"), FITS, ids=lambda each: getattr(each, "trace", ""))
def test_the_formula_gives_the_stored_hit_rates_of_replays(
    model: KnownModel, trace: KnownTrace
) -> None:
    entry = next(
        each
        for each in STORED[model.name]
        if (each["trace"], each["source"]) == (trace.trace, trace.source)
    )
    per, top_k = (model.sizes.layers if trace.slots == "global" else 1), model.sizes.top_k
    # A cache for all layers that holds few tokens' experts holds whole tokens, or nearly.
    least, margin = (4 * top_k, 1.5) if trace.slots == "global" else (top_k, 1.0)
    replayed = {
        slots / per: pair[1] for slots, pair in entry["hits_pct"].items() if slots / per >= least
    }
    assert replayed
    knobs = fitted_knobs(model, trace)
    rates = lru_hit_rates(knobs, model.sizes.experts, top_k, list(replayed), trace.steps)
    assert 100 * rates == pytest.approx(list(replayed.values()), abs=margin)


HELD_OUT = {
    ("gpt-oss-120b", "wikitext, 47.7K tokens"): 32,
    ("gpt-oss-120b", "chat, 52.0K tokens"): 32,
    ("deepseek-v2-lite", "law"): 32,
    ("deepseek-v2-lite", "intent"): 16,
    ("qwen3-30b-a3b", "code, 192 decode steps"): 2056,
}


@pytest.mark.parametrize(("name", "trace"), HELD_OUT)
def test_synthetic_routing_hits_as_published_where_it_is_fitted_and_elsewhere(
    name: str, trace: str
) -> None:
    model = MODELS[name]
    known = next(each for each in model.traces if each.trace == trace)
    held_out = HELD_OUT[name, trace]
    per = model.sizes.layers if known.slots == "global" else 1
    assert held_out / per not in known.fitted
    made = drawn(model, known)
    for slots in known.fitted:
        ours = lru_hits(made, round(slots * per), known.slots)
        # One point, and half a point of sampling: the seed is not that of the fit.
        assert 100 * ours == pytest.approx(100 * known.hits[slots], abs=1.5)
    error = 100 * (lru_hits(made, held_out, known.slots) - known.hits[held_out / per])
    assert abs(error) < 2, f"held out: {error:+.1f} points"


def test_the_overlap_of_neighbours_follows_though_it_was_not_fitted() -> None:
    # Translation was recorded with many short requests; its repeats are not of whole sets.
    for entry in STORED["deepseek-v2-lite"]:
        published, synthetic = entry["adjacent_overlap"]
        assert synthetic == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(("slots", "hit"), [(8, 0.456), (24, 0.754), (64, 0.966)])
def test_the_hit_rate_at_a_published_capacity_is_the_published_one(slots: int, hit: float) -> None:
    model = MODELS["gpt-oss-120b"]
    trace = next(each for each in model.traces if each.trace.startswith("wikitext"))
    odds = hit / (1 - hit)
    assert exp(trace.log_odds(slots / 128, 128)) == pytest.approx(odds)


def test_several_traces_give_their_own_range() -> None:
    found = hit_rates_like("gpt-oss-120b", 0.25)
    assert found.published
    assert found.low == pytest.approx(0.730, abs=1e-3)  # code
    assert found.value == pytest.approx(0.829, abs=1e-3)  # wikitext
    assert found.high == pytest.approx(0.916, abs=1e-3)  # chat


def test_one_trace_gives_a_range_as_wide_as_the_traces_of_other_models_differ() -> None:
    found = hit_rates_like("mixtral-8x7b", 0.75)
    assert found.value == pytest.approx(0.806)
    assert found.low < 0.78
    assert found.high > 0.86
    assert "one trace" in found.source


@pytest.mark.parametrize("name", [*MODELS, "deepseek-v3", "unknown"])
def test_more_slots_never_lower_a_hit_rate_and_the_range_holds_its_value(name: str) -> None:
    found = [hit_rates_like(name, at / 50) for at in range(51)]
    for low, value, high, _, _ in found:
        assert 0 <= low <= value <= high <= 1
    for one, other in pairwise(found):
        assert all(a <= b for a, b in zip(one[:3], other[:3], strict=True))
    assert found[0][:3] == (0, 0, 0)
    assert found[-1][:3] == (1, 1, 1)


def test_a_model_of_which_nothing_is_published_gets_the_range_of_similar_ones() -> None:
    sizes = Sizes(58, 256, 8)
    found = hit_rates_like("deepseek-v3", 0.25, sizes)
    names = {each.name for each in similar_models(sizes)}
    assert names == {"gpt-oss-120b", "qwen3-30b-a3b", "qwen3.5-35b-a3b", "qwen3.8-flash-next"}
    assert not found.published
    assert all(name in found.source for name in names)
    every = [hit_rates_like(name, 0.25) for name in ("gpt-oss-120b", "qwen3-30b-a3b")]
    assert found.low <= min(each.value for each in every)
    assert found.high >= max(each.value for each in every)


def test_a_model_of_the_same_sizes_stands_for_one_of_another_name() -> None:
    own = hit_rates_like("gpt-oss-120b", 0.3)
    assert hit_rates_like("my-tuned-model", 0.3, Sizes(36, 128, 4)) == own


def test_hit_rates_of_several_tokens_a_step_are_not_those_of_one() -> None:
    model = MODELS["qwen3.8-flash-next"]
    assert [each.batch for each in model.single] == [1]
    # Five rows a step hit 95.3 % at this share; one row a step hits 92.7 %.
    assert hit_rates_like(model.name, 12207 / 24576).value == pytest.approx(0.9274, abs=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share_of_slots must lie between 0 and 1"):
        hit_rates_like("gpt-oss-120b", share)


@pytest.mark.parametrize("name", STORED)
def test_the_document_has_the_knobs_and_the_errors_held_out(name: str) -> None:
    document = (ROOT / "docs/trace-format.md").read_text(encoding="utf-8")
    for entry in STORED[name]:
        held_out = {
            slots: ours - published
            for slots, (published, ours) in entry["hits_pct"].items()
            if slots not in entry["fitted"]
        }
        worst = max(held_out, key=lambda slots: abs(held_out[slots]), default=None)
        error = f"{held_out[worst]:+.1f} points at {worst} slots" if worst else "none held out"
        knobs = " | ".join(f"{value:.2f}" for value in entry["knobs"].values())
        fitted = ", ".join(map(str, entry["fitted"]))
        assert f"| {name}, {entry['trace']} | {knobs} | {fitted} | {error} |\n" in document
