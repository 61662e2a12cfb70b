"""Prefetch policies that learn: each answers as its plain version, and is kept from its lessons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.prefetch import (
    BY_SCORE,
    Look,
    is_enough,
    is_ranking,
    matrix_scores,
    table_of,
    trajectories,
)
from workloads import TINY_CONFIG, plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation, ScenarioError, UsageError
from moesim.policies import Input, View, find, names, parse_options
from moesim.policies.prefetch import Learned, PrefetchContext
from moesim.scenario import load_scenario
from moesim.simulate import prepare, summarise
from moesim.simulate.lessons import lessons_of
from moesim.trace import Trace

LEARNED = [name for name in names("prefetch") if issubclass(find("prefetch", name), Learned)]
EXPERTS, LAYERS, TOP_K = 8, 4, 2
RULES = ["sum", "bayes"]


def watched(scenario: dict[str, Any], trace: Trace) -> list[tuple[list[Look], list[int]]]:
    """Run; return for each call of the policy all that it had seen, and its answer."""
    looks: list[Look] = []
    calls: list[tuple[list[Look], list[int]]] = []
    policy = find("prefetch", scenario["prefetch"]["policy"])
    wanted = policy.wanted

    def asked(self: Any, view: View) -> Any:
        experts = [key % EXPERTS for key in view.union]
        rows = dict(zip(experts, view.tokens, strict=True))
        weights = dict(zip(experts, view.gate_weights(), strict=False))
        looks.append(Look(view.layer, rows, weights, tuple(view.requests)))
        answer = list(wanted(self, view))
        calls.append((list(looks), answer))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "wanted", asked)
        run_on(plan_of(scenario, trace))
    return calls


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], Trace]:
    """Return options, a scenario and a random trace, with and without weights and unused places."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    requests = draw(st.integers(2, 6))
    lengths = rng.integers(1, 6, requests)
    rows = int(lengths.sum())
    # Few experts in use, so that transitions repeat.
    ids = rng.random((rows, LAYERS, EXPERTS)) + 0.7 * (np.arange(EXPERTS) < draw(st.integers(0, 6)))
    ids = ids.argsort(axis=-1)[..., ::-1][..., :TOP_K]
    if draw(st.booleans()):
        ids[rng.random((rows, LAYERS)) < 0.2, 1] = -1
    weights = rng.random(ids.shape) if draw(st.booleans()) else None
    trace = Trace.from_arrays(
        expert_ids=ids,
        gate_weights=weights,
        seq_len=lengths,
        prompt_tokens=[int(rng.integers(1, length + 1)) for length in lengths],
        num_experts=EXPERTS,
        model_config=TINY_CONFIG,
    )
    options: dict[str, Any] = {"depth": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        options["experts"] = draw(st.integers(1, 9))
    scenario = tiny_scenario(
        workload={"part": [0.5, 1]},
        cache={"slots": draw(st.integers(1, 32)), "scope": draw(st.sampled_from(["global"]))},
        batching={
            "token_budget": draw(st.integers(1, 8)),
            "max_sequences": draw(st.integers(1, 3)),
        },
        prefetch={"options": options},
    )
    return options, scenario, trace


def most_of(options: dict[str, Any], looks: list[Look]) -> int:
    sizes = [len(look.rows) for look in looks if look.rows]
    return int(options.get("experts") or (sizes[-1] if sizes else TOP_K))


@pytest.mark.parametrize(
    ("name", "rule"),
    [("popularity", ""), *[(f"previous_{x}", y) for x in ("layer", "token") for y in RULES]],
)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_a_table_ranks_as_its_plain_version(name: str, rule: str, case: Any) -> None:
    options, scenario, trace = case
    options |= {"combine": rule} if rule else {}
    scenario["prefetch"]["policy"] = name
    table = table_of(trace, 0.5)
    for looks, answer in watched(scenario, trace):
        now, most = looks[-1].layer, most_of(options, looks)
        rest = list(answer)
        for layer in range(now + 1, min(now + options["depth"], LAYERS - 1) + 1):
            scores = BY_SCORE[name](table, looks, layer, rule)
            count = min(most, sum(score > 0 for score in scores.values()))
            mine, rest = rest[:count], rest[count:]
            assert {key // EXPERTS for key in mine} <= {layer}
            assert is_ranking([key % EXPERTS for key in mine], scores, most)
        assert rest == []


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(case=cases(), stride=st.integers(1, LAYERS - 1))
def test_a_stride_ranks_one_later_layer_as_the_plain_version_does(
    rule: str, case: Any, stride: int
) -> None:
    options, scenario, trace = case
    del options["depth"]
    options |= {"combine": rule, "stride": stride}
    scenario["prefetch"]["policy"] = "stride"
    table = table_of(trace, 0.5)
    for looks, answer in watched(scenario, trace):
        layer = looks[-1].layer + stride
        if looks[-1].layer < 0 or layer >= LAYERS:
            assert answer == []
            continue
        assert {key // EXPERTS for key in answer} <= {layer}
        scores = BY_SCORE["previous_layer"](table, looks, layer, rule)
        assert is_ranking([key % EXPERTS for key in answer], scores, most_of(options, looks))


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_the_nearest_activation_matrix_is_that_of_the_plain_version(case: Any) -> None:
    options, scenario, trace = case
    scenario["prefetch"]["policy"] = "activation_matrix"
    table = table_of(trace, 0.5)
    for looks, answer in watched(scenario, trace):
        layers = min(options["depth"], LAYERS - 1 - looks[-1].layer)
        most = most_of(options, looks) * layers
        nearest = matrix_scores(table, looks, options["depth"])
        assert any(is_ranking(answer, scores, most) for scores in nearest)


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_the_best_trajectory_is_that_of_the_plain_version(case: Any) -> None:
    options, scenario, trace = case
    scenario["prefetch"]["policy"] = "trajectory"
    table = table_of(trace, 0.5)
    for looks, answer in watched(scenario, trace):
        now, least = looks[-1].layer, most_of(options, looks)
        layers = range(now + 1, min(now + options["depth"], LAYERS - 1) + 1)
        fitting = [
            all(
                is_enough(
                    [key % EXPERTS for key in answer if key // EXPERTS == layer],
                    maps[layer],
                    max(0.0, 1 - similarity),
                    least,
                )
                for layer in layers
            )
            for maps, similarity in trajectories(table, looks)
        ]
        assert any(fitting) if fitting else answer == []
        assert {key // EXPERTS for key in answer} <= set(layers)
        assert answer == sorted(answer, key=lambda key: key // EXPERTS)


@pytest.mark.parametrize("name", LEARNED)
def test_a_table_of_a_trace_that_repeats_itself_predicts_all_of_it(name: str) -> None:
    """Each request has the same experts in all rows, and the test part repeats the lessons."""
    ids = np.tile(np.arange(LAYERS)[:, None] % 4 * 2 + np.arange(TOP_K), (12, 1, 1))
    trace = Trace.from_arrays(
        expert_ids=ids,
        seq_len=[6, 6],
        prompt_tokens=[1, 1],
        num_experts=EXPERTS,
        model_config=TINY_CONFIG,
    )
    scenario = tiny_scenario(workload={"part": [0.5, 1]}, prefetch={"policy": name})
    calls = watched(scenario, trace)
    for looks, answer in calls[LAYERS + 1 :]:
        layer = looks[-1].layer + 1
        if layer == 0 and name in ("previous_layer", "stride", "trajectory"):
            assert answer == []  # nothing of the step is known
        else:
            expected = [] if layer == LAYERS else (layer * EXPERTS + ids[0, layer]).tolist()
            assert sorted(answer) == expected


def test_a_running_matrix_starts_anew_with_another_request() -> None:
    trace = tiny_trace(requests=4, prompt_tokens=2, output_tokens=3)
    policy = find("prefetch", "activation_matrix")()
    policy.prepare(context(trace))

    class Shows(View):
        requests = (7,)

    policy.wanted(Shows(-1, ()))
    policy.wanted(Shows(0, [1, 2], [1, 1]))
    assert policy._running.sum() == 2
    policy.wanted(Shows(-1, ()))
    assert policy._running.sum() == 2
    Shows.requests = (8,)
    assert policy.wanted(Shows(-1, ())) == ()
    assert policy._running.sum() == 0


def test_a_stride_of_recorded_predictions_fetches_for_one_layer_and_learns_nothing() -> None:
    class Guesses(View):
        def predicted(self, depth: int) -> list[int]:
            return {1: [8, 9], 2: [17, 16]}.get(depth, [])

    stride = find("prefetch", "stride")
    for number, experts, expected in [(1, None, [8, 9]), (2, None, [17, 16]), (2, 1, [17])]:
        options = stride.Options(number, "recorded", experts=experts)
        policy = stride(options)
        policy.prepare(PrefetchContext(LAYERS, EXPERTS, TOP_K, np.random.default_rng(0)))
        assert list(policy.wanted(Guesses(0, [1, 2], [1, 1]))) == expected
        assert list(stride.inputs(options)) == []
        assert policy.needs_predictions


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "stride"])
def test_all_layers_are_as_many_as_there_are(name: str) -> None:
    trace = tiny_trace(requests=4, prompt_tokens=2, output_tokens=3)
    scenario = tiny_scenario(workload={"part": [0.5, 1]})
    answers = [
        [answer for _, answer in watched({**scenario, "prefetch": {"policy": name, **how}}, trace)]
        for how in ({"options": {"depth": "all"}}, {"options": {"depth": LAYERS}})
    ]
    assert answers[0] == answers[1]


def test_a_policy_without_a_trace_to_learn_from_says_so() -> None:
    for name in LEARNED:
        with pytest.raises(UsageError, match=f"{name} learns from a trace, and there is none"):
            find("prefetch", name)().prepare(
                PrefetchContext(LAYERS, EXPERTS, TOP_K, np.random.default_rng(0))
            )


def context(trace: Trace) -> PrefetchContext:
    def lessons(given: Input) -> Any:
        assert given.part is not None
        return lessons_of(trace, given.part)

    rng = np.random.default_rng(0)
    return PrefetchContext(trace.num_layers, trace.num_experts, trace.top_k, rng, lessons)


# --- kept from its lessons ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a trace, a copy of its second half and two more, and another trace."""
    trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=3)
    trace.save(tmp_path / "trace")
    rows = [trace.slice(number) for number in (2, 3, 2)]
    Trace.from_arrays(
        expert_ids=np.concatenate([trace.expert_ids[each] for each in rows]),
        seq_len=[each.stop - each.start for each in rows],
        num_experts=EXPERTS,
    ).save(tmp_path / "again")
    tiny_trace(requests=3, seed=4).save(tmp_path / "other")
    return tmp_path


def refused(folder: Path, options: str, more: str = "") -> str:
    text = "trace: trace\nhardware: rtx-4090\nprefetch: {policy: popularity, options:\n"
    text += f"  {{{options}}}}}\nbounds: false\n{more}"
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    try:
        prepare(load_scenario(folder / "a.yaml"))
    except ScenarioError as error:
        (problem,) = error.problems
        return problem.removeprefix(f"{folder / 'a.yaml'}:")
    return ""


def test_a_run_that_serves_its_lessons_is_refused_with_what_is_needed(folder: Path) -> None:
    assert refused(folder, "depth: 1") == (
        "4:3: prefetch.options.profile: popularity learns from requests 0 to 1 of the replayed "
        "trace, and the run serves 2 of them, first request 0 of the trace; write workload.part: "
        "[0.5, 1]"
    )
    assert "serves 1 of them, first request 2" in refused(
        folder, "train: 0.75", "workload: {part: [0.5, 1]}\n"
    )
    assert refused(folder, "depth: 1", "workload: {part: [0.5, 1]}\n") == ""
    assert refused(folder, "train: 0.75", "workload: {part: [0.75, 1]}\n") == ""


def test_lessons_in_another_folder_are_recognised_by_their_experts(folder: Path) -> None:
    assert refused(folder, "profile: other") == ""
    said = refused(folder, "profile: again")
    assert said.startswith("4:13: prefetch.options.profile: popularity learns from requests 0 to 2")
    assert "serves 2 of them, first request 2 of the trace; learn from another trace" in said
    assert refused(folder, "profile: again", "workload: {part: [0, 0.5]}\n") == ""
    assert "serves 2 of them" in refused(
        folder, "profile: trace, train: 0.5", "workload: {part: [0, 0.5]}\n"
    )


def test_rows_tiled_from_the_lessons_count(folder: Path) -> None:
    """The one request served is too short, and continues with rows of the training part."""
    lengths = "lengths: {prompt: 3, output: 20}"
    assert refused(folder, "train: 0.75", f"workload: {{part: [0.75, 1], {lengths}}}\n") == ""
    assert "serves 3 of them" in refused(
        folder, "train: 0.75", f"workload: {{requests: 1, {lengths}}}\n"
    )


def test_a_training_part_without_requests_is_refused(folder: Path) -> None:
    assert "learns from no request: the replayed trace has 4" in refused(folder, "train: 0.1")


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("wrong", [0, 1.5])
def test_a_share_that_is_none_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(UsageError, match="option train"):
        parse_options(find("prefetch", name), {"train": wrong})


def test_a_table_of_other_requests_is_no_hindsight_and_says_what_it_learnt() -> None:
    trace = tiny_trace(requests=4)
    scenario = tiny_scenario(prefetch="popularity", workload={"part": [0.5, 1]})
    summary = summarise(run_on(plan_of(scenario, trace)))
    assert summary["knows_the_future"] == ""
    note = "popularity was learnt on the first 50% of the requests of the replayed trace"
    assert note in summary["notes"]


def test_rows_of_an_input_that_was_not_named_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = find("prefetch", "popularity")
    plan = plan_of(
        tiny_scenario(prefetch="popularity", workload={"part": [0.5, 1]}), tiny_trace(requests=4)
    )
    asks = Input(None, "profile", trace=True, part=(0.0, 1.0))

    def prepared(self: Any, context: PrefetchContext) -> None:
        assert context.lessons is not None
        context.lessons(asks)

    monkeypatch.setattr(policy, "prepare", prepared)
    with pytest.raises(PolicyViolation, match="none of its inputs"):
        run_on(plan)


@pytest.mark.parametrize(("part", "served"), [([0, 0.4], [0, 1]), ([0.4, 1], [2, 3, 4])])
@pytest.mark.parametrize("order", ["recorded", "shuffled", "resampled"])
def test_a_part_of_the_trace_serves_its_requests_alone(
    part: list[float], served: list[int], order: str
) -> None:
    trace = tiny_trace(requests=5)
    workload = {"part": part, "order": order, "lengths": {"prompt": 9, "output": 60}}
    outcome = run_on(plan_of(tiny_scenario(workload=workload), trace))
    own = {row for number in served for row in range(*trace.slice(number).indices(10**9))}
    rows = {int(row) for request in outcome.requests for row in request.rows}
    assert rows <= own
    assert order == "resampled" or rows == own


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ([0.5, 0.5], "write two shares, the lower first"),
        ([0.5], "write two shares, the lower first"),
        ([0, 2], "must be at most 1, not 2"),
        ([0, 0.01], "holds no request with rows that may be drawn; the trace has 4 requests"),
    ],
)
def test_a_part_that_is_none_is_refused(folder: Path, part: list[float], said: str) -> None:
    (folder / "b.yaml").write_text(
        f"trace: trace\nhardware: rtx-4090\nworkload: {{part: {part}}}\n", encoding="utf-8"
    )
    with pytest.raises(ScenarioError, match=said) as caught:
        prepare(load_scenario(folder / "b.yaml"))
    assert caught.value.problems[0].startswith(f"{folder / 'b.yaml'}:3:")


# --- on real routing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recall"),
    [("popularity", 0.222), ("previous_layer", 0.587), ("previous_token", 0.397)],
)
def test_recall_on_real_routing_is_that_of_a_separate_count(
    esft: Callable[[str], Trace], name: str, recall: float
) -> None:
    """DeepSeek-V2-Lite on texts of law, learnt on the first half, every fifth row of the second.

    The figures were counted by another program with naive Bayes, over all rows of that half. It
    left out the layers for which nothing is predicted.
    """
    trace = esft("law")
    kind = find("prefetch", name)
    combine = {} if name == "popularity" else {"combine": "bayes"}
    policy = kind(parse_options(kind, {"experts": trace.top_k, **combine}))
    policy.prepare(context(trace))
    layers, experts = trace.num_layers, trace.num_experts
    keys_BLK = np.asarray(trace.expert_ids[:]).astype(int) + np.arange(layers)[:, None] * experts
    right = wanted = 0
    first = trace.slice(round(0.5 * trace.num_requests)).start
    for row in range(first + 1, trace.num_rows, 5):
        for earlier in (row - 1, row) if name == "previous_token" else (row,):
            for layer in range(-1, layers - 1):
                union = keys_BLK[earlier, layer].tolist() if layer >= 0 else []
                named = policy.wanted(View(layer, union, [1] * len(union)))
                if named and earlier == row:
                    right += len({*named} & {*keys_BLK[row, layer + 1].tolist()})
                    wanted += trace.top_k
    assert right / wanted == pytest.approx(recall, abs=0.02)
