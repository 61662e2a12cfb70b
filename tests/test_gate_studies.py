"""The study of language models with each gate does what it says, in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import study

from moesim.errors import UsageError
from moesim.models import PRESETS, built_in_corpus
from moesim.models.gated import GatedConfig
from moesim.trace import load_trace

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
    """The study's tables, with narrower layers than anybody would take."""
    narrow = replace(
        PRESETS["gated"], hidden=16, expert_ffn=8, head_dim=4, vocabulary=300, context=16
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "PRESETS", {"gated": narrow})
        patch.setattr(served, "CAPACITIES", (4,))
        patch.setattr(served, "SHOWN", (4,))
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *text, file=None, **_: file or printed.extend(text))
        language.main([str(out), "--rows", *rows, *SMALL, *more])
    return "\n".join(printed)


def test_it_goes_on_where_it_was_and_says_the_same(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for name in language.ROWS:
        assert language.draw_settings(name, 2) == language.draw_settings(name, 5)[:2]
    for row in ("dselect_k", "switch", "top_k-ahead", "top_k-by-task"):
        trials = sorted(path.name for path in (made / row).glob("trial-*"))
        assert trials == ["trial-0", "trial-1"]
        best = min(
            (json.loads((made / row / trial / "training.json").read_text()) for trial in trials),
            key=language.final_loss,
        )
        chosen = json.loads((made / row / "seed-0/training.json").read_text())
        assert chosen["setting"] == best["setting"]
        assert chosen["seed"] == 0
        assert best["seed"] == language.TUNING_SEED


def test_rows_differ_in_the_gate_alone(made: Path) -> None:
    """The same first weights cannot be, since gates draw some; the same text and prompts can."""
    stories = [
        json.loads((made / row / "seed-1/training.json").read_text())
        for row in ("dselect_k", "switch", "top_k-by-task")
    ]
    for story in stories[1:]:
        assert story["text"] == stories[0]["text"]
        own = ("gate", "gate_options", "gate_factor", "routed_by", "learning_rate", "top_k")
        for key in stories[0]["shape"].keys() - set(own):
            assert story["shape"][key] == stories[0]["shape"][key]


def test_traces_say_what_their_gates_reveal(made: Path) -> None:
    kinds = {"dselect_k": "layerwise", "top_k-ahead": "decoupled", "top_k-by-task": "static"}
    for row, kind in kinds.items():
        trace = load_trace(made / row / "seed-0-trace")
        assert trace.meta.router == kind
        assert trace.meta.prediction_depth == (1 if kind == "layerwise" else 0)
        assert str(made.parent) not in (made / row / "seed-0-trace/trace.json").read_text()
    paths = {row: [made / row / "seed-0-trace"] for row in kinds}
    served.check_same_work(paths)


def test_traces_of_other_prompts_are_not_compared(made: Path, tmp_path: Path) -> None:
    paths = {"dselect_k": [made / "dselect_k/seed-0-trace"]}
    other = load_trace(paths["dselect_k"][0])
    fewer = {name: column[:-1] for name, column in other.requests.items()}
    rows = int(fewer["num_rows"].sum())
    from moesim.trace import Trace

    Trace.from_arrays(
        expert_ids=other.expert_ids[:rows], seq_len=fewer["num_rows"], num_experts=8
    ).save(tmp_path / "fewer")
    with pytest.raises(UsageError, match="differ in domain: record them again"):
        served.check_same_work({**paths, "other": [tmp_path / "fewer"]})


def test_sizes_follow_the_trace(made: Path) -> None:
    assert served.sizes_of(made / "switch/seed-0-trace").name == "mixtral-4-layers-top1.json"
    assert served.sizes_of(made / "dselect_k/seed-0-trace").name == "mixtral-4-layers-top2.json"
    ahead = served.sizes_of(made / "top_k-ahead/seed-0-trace")
    assert ahead.name == "mixtral-4-layers-ahead.json"


def test_sparsity_is_looked_at_before_the_cut(made: Path) -> None:
    corpus = built_in_corpus(30_000)
    from moesim.record import load_model

    for row, non_zeros in (("top_k-by-task", 2.0), ("switch", 1.0)):
        model, tokenizer = load_model(made / row / "seed-0")
        assert isinstance(model.config, GatedConfig)
        seen = language.look(model, tokenizer, corpus)
        assert seen["non_zeros"] == non_zeros
        assert not model.routers[0].training
    model, tokenizer = load_model(made / "dselect_k/seed-0")
    seen = language.look(model, tokenizer, corpus)
    assert 2 <= seen["non_zeros"] <= 8
    for router in model.routers:
        with torch.no_grad():
            router.gate.z_logits.weight.zero_()
            router.gate.z_logits.bias.fill_(10.0)
    seen = language.look(model, tokenizer, corpus)
    assert (seen["non_zeros"], seen["binary"]) == (1.0, 1.0)


def test_bytes_are_by_token_computed() -> None:
    summary: dict[str, Any] = {"h2d_bytes": 6e6, "tokens_per_s": 4.0, "makespan_s": 0.5}
    assert served.mb_per_token(summary) == 3.0


@pytest.mark.parametrize("wrong", ["--trials", "--seeds", "--steps"])
def test_a_study_of_nothing_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(0\) must be at least 1"):
        run(tmp_path / "out", wrong, "0")
