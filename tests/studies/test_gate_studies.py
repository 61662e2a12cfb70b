"""The study of language models with each gate does what it says, in small."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_scripts import study

from moesim.errors import MoesimError, UsageError
from moesim.record import load_model
from moesim.simulate import run as simulate
from moesim.trace import Trace, load_trace
from moesim.training import PRESETS, built_in_corpus
from moesim.training.gated import GatedConfig
from moesim.training.gates import GumbelSoftmax

language = study("dselect", "language")
served = language.language_served

SMALL = [
    *("--trials", "2", "--trial-steps", "1", "--seeds", "2", "--steps", "2"),
    *("--per-domain", "8", "--characters", "30000"),
]
ROWS = ["dselect_k", "switch", "top_k, ahead", "top_k, by task"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study, and what it printed, beside it."""
    out = tmp_path_factory.mktemp("study") / "out"
    run(out)
    return out


def run(out: Path, *more: str, rows: list[str] = ROWS) -> str:
    """Run the study with very narrow layers; return its tables."""
    preset: Any = PRESETS["gated"]
    narrow = replace(preset, hidden=16, expert_ffn=8, head_dim=4, vocabulary=300, context=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "PRESETS", {"gated": narrow})
        patch.setattr(served, "CAPACITIES", (4,))
        patch.setattr(served, "SHOWN", (4,))
        printed: list[str] = []

        def note(*text: str, file: Any = None, **_: Any) -> None:
            if file is None:
                printed.extend(text)

        patch.setattr("builtins.print", note)
        language.main([str(out), "--rows", *rows, *SMALL, *more])
    return "\n".join(printed)


def trace_of(out: Path, row: str) -> Path:
    """Return the trace of a row, of the first seed."""
    return out / "seed-0" / f"{language.slug(row)}-trace"


def test_a_study_resumes_and_prints_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run(made)
    monkeypatch.setattr(language, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(language, "record", lambda *_, **__: pytest.fail("recorded again"))
    assert run(made) == told
    for row in ROWS:
        assert told.count(f"| {row} |") >= 5
    for policy in ("+ prefetch of what is predicted", "+ expert-aware", "+ task-aware"):
        assert policy in told
    assert "nan" not in told


def test_a_folder_of_another_study_is_refused(made: Path) -> None:
    with pytest.raises(UsageError, match="was made with other settings; choose another folder"):
        run(made, "--steps", "3")


def test_every_gate_has_the_same_tuning_budget(made: Path) -> None:
    """The same rates and factors, and as many options of its own, none twice without need."""
    drawn = {name: language.draw_settings(name, 4) for name in language.ROWS}
    for name, settings in drawn.items():
        for setting, other in zip(settings, drawn["top_k"], strict=True):
            for key in ("learning_rate", "gate_factor"):
                assert setting[key] == other[key]
        space = language.ROWS[name].space
        size = math.prod(len(values) for values in space.values())
        options = {json.dumps(setting["gate_options"]) for setting in settings}
        assert len(options) == min(4, size)
    rates = [setting["learning_rate"] for setting in drawn["top_k"]]
    assert rates == sorted(rates)
    assert language.RATES[0] <= rates[0] < rates[-1] <= language.RATES[1]
    trials = sorted(path.name for path in made.glob("trial-*"))
    assert trials == ["trial-0", "trial-1"]
    for row in ROWS:
        models = [made / trial / language.slug(row) for trial in trials]
        best = min(
            (json.loads((model / "training.json").read_text()) for model in models),
            key=language.final_loss,
        )
        chosen = json.loads((made / "seed-0" / language.slug(row) / "training.json").read_text())
        assert chosen["setting"] == best["setting"]
        assert chosen["seed"] == 0
        assert best["seed"] == language.TUNING_SEED


def test_rows_differ_in_the_gate_alone(made: Path) -> None:
    stories = [
        json.loads((made / "seed-1" / language.slug(row) / "training.json").read_text())
        for row in ("dselect_k", "switch", "top_k, by task")
    ]
    for story in stories[1:]:
        assert story["text"] == stories[0]["text"]
        own = ("gate", "gate_options", "gate_factor", "routed_by", "learning_rate", "top_k")
        for key in stories[0]["shape"].keys() - set(own):
            assert story["shape"][key] == stories[0]["shape"][key]


def test_traces_say_what_their_gates_reveal(made: Path) -> None:
    kinds = {"dselect_k": "layerwise", "top_k, ahead": "decoupled", "top_k, by task": "static"}
    for row, kind in kinds.items():
        trace = load_trace(trace_of(made, row))
        assert trace.meta.router == kind
        assert trace.meta.model == language.slug(row)
        assert trace.meta.prediction_depth == (1 if kind == "layerwise" else 0)
        assert str(made.parent) not in (trace_of(made, row) / "trace.json").read_text()
    paths = {row: [trace_of(made, row)] for row in kinds}
    served.check_same_work(paths)


def test_traces_of_other_prompts_are_not_compared(made: Path, tmp_path: Path) -> None:
    paths = {"dselect_k": [trace_of(made, "dselect_k")]}
    ours = load_trace(paths["dselect_k"][0])
    story = dict(ours.meta.provenance)
    story["prompts"] = {**story["prompts"], "sha256": "0"}
    ours.with_meta(provenance=story).save(tmp_path / "prompts")
    with pytest.raises(UsageError, match="have other prompts: record them again"):
        served.check_same_work({**paths, "other": [tmp_path / "prompts"]})
    rows, prompts = ours.requests["num_rows"], ours.requests["prompt_tokens"]
    domains = ours.requests["domain"].tolist()
    ids = ours.expert_ids[:]
    for column, domain, prompt in (
        ("domain", None, prompts),
        ("prompt_tokens", domains, rows),
    ):
        Trace.from_arrays(
            expert_ids=ids, seq_len=rows, num_experts=8, domain=domain, prompt_tokens=prompt
        ).save(tmp_path / column)
        with pytest.raises(UsageError, match=f"differ in {column}: record them again"):
            served.check_same_work({**paths, "other": [tmp_path / column]})


def test_every_row_generates_as_many_tokens(made: Path) -> None:
    asked = [load_trace(trace_of(made, row)).requests for row in ("dselect_k", "switch")]
    assert asked[0]["output_tokens"].tolist() == asked[1]["output_tokens"].tolist()
    assert min(asked[0]["output_tokens"]) >= 16


def test_other_numbers_of_prompts_or_other_sizes_are_refused(made: Path) -> None:
    with pytest.raises(UsageError, match="trace was made with other settings"):
        run(made, "--per-domain", "4")
    wider = replace(PRESETS["gated"], hidden=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "PRESETS", {"gated": wider})
        with pytest.raises(UsageError, match="was made with other settings"):
            language.main([str(made), "--rows", *ROWS, *SMALL])


def test_a_trial_whose_loss_is_not_finite_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(self: Any, name: str, run: str, *_: Any) -> Any:
        if run == "trial-0":
            raise MoesimError("the training loss is nan at step 3")
        return {"validation_loss": [{"loss": 5.0}]}

    monkeypatch.setattr(language.Study, "_trained", trained)
    monkeypatch.setattr(language.Study, "_recorded", lambda self, name, run, setting, seed: setting)
    options = argparse.Namespace(trials=3, seeds=1, steps=1, trial_steps=1, per_domain=1)
    study = language.Study(Path("nowhere"), None, options)
    assert study.models_of("top_k") == [language.draw_settings("top_k", 3)[1]]


def test_sizes_follow_the_trace(made: Path) -> None:
    assert served.sizes_of(trace_of(made, "switch")).name == "mixtral-4-layers-top1.json"
    assert served.sizes_of(trace_of(made, "dselect_k")).name == "mixtral-4-layers-top2.json"
    ahead = served.sizes_of(trace_of(made, "top_k, ahead"))
    assert ahead.name == "mixtral-4-layers-ahead.json"


def test_sparsity_is_looked_at_before_the_cut(made: Path) -> None:
    corpus = built_in_corpus(30_000)
    for row, non_zeros in (("top_k, by task", 2.0), ("switch", 1.0)):
        model, tokenizer = load_model(made / "seed-0" / language.slug(row))
        assert isinstance(model.config, GatedConfig)
        seen = language.look(model, tokenizer, corpus)
        assert seen["non_zeros"] == non_zeros
        assert not model.routers[0].training
    model, tokenizer = load_model(made / "seed-0/gates-dselect-k")
    seen = language.look(model, tokenizer, corpus)
    assert 2 <= seen["non_zeros"] <= 8
    for router in model.routers:
        with torch.no_grad():
            router.gate.z_logits.weight.zero_()
            router.gate.z_logits.bias.fill_(10.0)
    seen = language.look(model, tokenizer, corpus)
    assert (seen["non_zeros"], seen["binary"]) == (1.0, 1.0)


def test_what_is_dense_in_training_is_said_to_be(made: Path) -> None:
    model, tokenizer = load_model(made / "seed-0/gates-dselect-k")
    for router in model.routers:
        router.gate = GumbelSoftmax(8, 2, features=router.gate.features)
    assert language.look(model, tokenizer, built_in_corpus(30_000))["non_zeros"] == 8.0


def test_bytes_and_time_are_by_token(made: Path) -> None:
    paths = [trace_of(made, "dselect_k")]
    (seen,) = served.simulated(paths, 4, served.STEADY, {})
    result = simulate(served.scenario(paths[0], 4, served.STEADY, 0, {}))
    requests = result.columns["requests"]
    prompts, outputs = sum(requests["prompt_tokens"]), sum(requests["output_tokens"])
    copied = sum(result.columns["steps"]["h2d_bytes"])
    assert served.mb_per_token(seen) == pytest.approx(copied / (prompts + outputs) / 1e6)
    last_ns = max(requests["finish_ns"])
    assert served.ms_per_token(seen) == pytest.approx(last_ns / 1e6 / outputs)


@pytest.mark.parametrize("wrong", ["--trials", "--seeds", "--steps"])
def test_a_study_of_nothing_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(0\) must be at least 1"):
        run(tmp_path / "out", wrong, "0")
