"""The study of masks compares masks of one size, on text that no mask was chosen by."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from dense_decoders import ids, tiny_llama
from study_scripts import study

from moesim.errors import OutputError, UsageError
from moesim.training.readme.ffn import find_ffns, watched
from moesim.training.readme.masked_experts import MaskedExperts
from moesim.training.readme.masks import pooled_mask, top_masks
from moesim.training.readme.scores import channel_scores
from moesim.training.text import Corpus, Document
from moesim.training.tokenizer import train_tokenizer

torch.set_num_threads(1)
runs, masks = study("readme", "mask_runs"), study("readme", "masks")
WORDS = {
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "colours": "red green blue yellow purple orange black white grey pink brown teal",
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    domains = {}
    for domain, words in WORDS.items():
        each = words.split()
        domains[domain] = [
            Document(
                f"{domain} part {number}",
                " ".join(each[(i * (number + 1) + i // 7) % 12] for i in range(120)),
            )
            for number in range(12)
        ]
    return Corpus.split(domains)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    folder = tmp_path_factory.mktemp("base") / "dense"
    texts = (d.text for documents in corpus.train.values() for d in documents)
    tokenizer = train_tokenizer(texts, 300)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(base: Path) -> Any:
    return runs.Settings(
        base=str(base),
        sizes=(64, 128, 256),
        shares=(0.5, 0.25),
        held_out=8,
        length=16,
        draws=2,
        dtype="float32",
    )


# How text is divided


def test_no_token_is_in_two_samples_or_in_a_sample_and_held_out() -> None:
    text = runs.divided(np.arange(5_000), 1_024, 3, 12, 32)
    parts = [set(text.held_out.flatten().tolist())]
    parts += [set(sample.flatten().tolist()) for sample in text.samples]
    assert [len(part) for part in parts] == [12 * 32, 1_024, 1_024, 1_024]
    assert all(not a & b for a, b in combinations(parts, 2))


def test_text_between_a_sample_and_held_out_windows_is_left_out() -> None:
    text = runs.divided(np.arange(5_000), 1_024, 3, 12, 32)
    stretch = (5_000 - 3 * 1_024) // 4
    held_out, sampled = text.held_out.flatten(), text.samples.flatten()
    nearest = (held_out[:, None] - sampled[None]).abs().min()
    assert nearest > stretch // 4


def test_a_smaller_scoring_size_is_spread_over_the_same_sample() -> None:
    text = runs.divided(np.arange(5_000), 1_024, 3, 12, 32)
    starts = text.samples[0, :8, 0]
    steps = starts.sort().values.diff()
    assert steps.tolist() == [4 * 32] * 7
    assert sorted(text.samples[0].flatten().tolist()) == list(range(482, 482 + 1_024))


def test_too_little_text_is_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(UsageError, match="give 3,840"):
        runs.divided(np.arange(3_839), 1_024, 3, 12, 32)
    assert runs.divided(np.arange(3_840), 1_024, 3, 12, 32).held_out.shape == (12, 32)


def test_documents_are_joined_in_the_order_of_the_file(
    base: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []

    def join(_: Any, documents: Any) -> Any:
        joined.extend(each.name for each in documents)
        return np.arange(5_000)

    monkeypatch.setattr(runs, "token_stream", join)
    runs.texts_of(corpus, None, 1_024, 3, 12, 32)
    assert joined == [f"{domain} part {n}" for domain in WORDS for n in range(12)]


# What is computed


def test_scores_of_all_sizes_are_those_of_the_library() -> None:
    model, windows = tiny_llama(), ids(4, 8)
    scores = runs.scores_by_size(model, windows, (16, 32))
    assert set(scores) == {"code-16", "paper-16", "code-32", "paper-32"}
    for size in (16, 32):
        for variant in runs.VARIANTS:
            expected = channel_scores(model, {"a": windows[: size // 8]}, variant)[0]
            torch.testing.assert_close(scores[f"{variant}-{size}"], expected, rtol=1e-5, atol=1e-8)


def test_a_sliced_model_has_the_losses_of_a_masked_one() -> None:
    model, windows = tiny_llama(), ids(3, 12)
    mask_LD = torch.rand(3, 24, generator=torch.Generator().manual_seed(1)) < 0.4
    dense = runs.losses_of(model, windows)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with runs.sliced(model, mask_LD):
        widths = [ffn.module.gate_proj.weight.shape[0] for ffn in find_ffns(model)]
        assert widths == mask_LD.sum(dim=1).tolist()
        small = runs.losses_of(model, windows)
    assert small != dense
    assert runs.losses_of(model, windows) == dense
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    for layer, mask_D in zip(model.model.layers, mask_LD, strict=True):
        experts = MaskedExperts(layer.mlp, mask_D[None])
        layer.mlp.forward = lambda states, experts=experts: experts(
            states[0], torch.zeros(len(states[0]), 1, dtype=torch.long), torch.ones(1)
        )[None]
    assert runs.losses_of(model, windows) == pytest.approx(small, abs=1e-5)


def test_weights_are_put_back_after_an_error() -> None:
    model = tiny_llama()
    half = torch.arange(24).expand(3, -1) < 12
    with pytest.raises(UsageError), runs.sliced(model, half):
        raise UsageError("while the model is small")
    assert {ffn.module.gate_proj.weight.shape for ffn in find_ffns(model)} == {(24, 16)}


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.125])
def test_the_pooled_mask_has_as_many_channels_a_layer_as_each_domains(
    variant: Any, share: float
) -> None:
    scores = torch.rand(4, 3, 32, generator=torch.Generator().manual_seed(0)).double()
    pooled_LD = pooled_mask(scores, share, variant)
    own = top_masks(scores, tuple("abcd"), share, variant)
    assert pooled_LD.shape == (3, 32)
    assert (own.sizes == pooled_LD.sum(dim=-1)).all()
    kept = scores.mean(dim=0)[pooled_LD].reshape(3, -1).min(dim=1).values
    assert (scores.mean(dim=0).masked_fill(pooled_LD, 0).amax(dim=1) < kept).all()


# The study


@pytest.mark.slow
def test_a_killed_study_resumes_with_the_same_bytes(
    tiny: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = runs.measure(tiny, corpus, tmp_path / "whole", 3)
    calls = {"scores_by_size": 0, "losses_of": 0}
    most = 12  # losses, so that the kill is in the second of three samples

    def counting(name: str) -> Any:
        honest = getattr(runs, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            if calls["losses_of"] > most:
                raise KeyboardInterrupt
            return honest(*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(runs, name, counting(name))
    with pytest.raises(KeyboardInterrupt):
        runs.measure(tiny, corpus, tmp_path / "killed", 3)
    calls["losses_of"], most = 0, len(whole)
    resumed, _ = runs.measure(tiny, corpus, tmp_path / "killed", 3)
    assert resumed == whole
    assert calls == {"scores_by_size": 3 * 2, "losses_of": len(whole) - 12}
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "killed")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 1 + 3 * 2 + len(whole)
    with pytest.raises(OutputError, match="holds another run"):
        runs.measure(replace(tiny, samples=2), corpus, tmp_path / "whole", 3)


def test_all_tables_are_printed(
    tiny: Any,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(masks, "corpus_of", lambda *_: corpus)
    options = "--tokens 64 128 --shares 0.5 --held-out 4 --length 16 --draws 1 --dtype float32"
    command = ["masks.py", str(tmp_path / "out"), "--base", tiny.base, *options.split()]
    monkeypatch.setattr(sys, "argv", command)
    masks.main()
    printed = capsys.readouterr().out
    for title in ("Losses", "Own mask less", "Each mask on", "Scoring tokens", "Channels in"):
        assert f"### {title}" in printed
    assert "| 128 | 2 × 64 |" in printed


def found_with(losses: dict[tuple[int, str, str], list[float]]) -> Any:
    settings = runs.Settings(sizes=(8,), samples=2, shares=(0.5,), held_out=2)
    cells = {runs.Cell("code", 8, 0.5, s, mask, d): x for (s, mask, d), x in losses.items()}
    return masks.Found(settings, ("a", "b"), cells, {})


def test_own_and_pooled_masks_are_compared_window_by_window() -> None:
    found = found_with(
        {
            (0, "a", "a"): [1.0, 2.0],
            (1, "a", "a"): [1.0, 2.5],
            (0, "pooled", "a"): [2.0, 3.0],
            (1, "pooled", "a"): [2.0, 4.0],
        }
    )
    how = runs.How("code", 8, 0.5)
    less = found.less(("own", how), ("pooled", how), ["a"])
    assert (less.by_sample, less.by_window) == ([-1.0, -1.25], [-1.0, -1.25])
    half = f"{12.706 * 0.125:.3f}"
    assert less.cells[:2] == [f"-1.125 ± {half}"] * 2
    assert less.cells[2:] == ["-1.125", "2 of 2", "not seen"]


def test_other_masks_leave_the_own_mask_out() -> None:
    found = found_with({(0, "a", "a"): [1.0, 1.0], (0, "b", "a"): [3.0, 4.0]})
    how = runs.How("code", 8, 0.5)
    assert found.loss("others", "a", 0, how) == [3.0, 4.0]
    assert found.loss("own", "a", 0, how) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("samples", "windows", "verdict"),
    [
        ((-0.3, -0.2), (-0.3, -0.2, -0.1), "not seen"),  # two samples: the factor is 12.7
        ((-0.3, -0.29), (-0.3, -0.29, -0.28), "specialised"),
        ((0.3, 0.29), (0.3, 0.29, 0.28), "pooled is better"),
        ((-0.3, -0.29), (-0.3, 0.4, -0.28), "not seen"),
        ((-0.3, 0.4), (-0.3, -0.29, -0.28), "not seen"),
        ((-0.3,), (-0.3, -0.29), "one sample"),
    ],
)
def test_a_verdict_needs_both_intervals(
    samples: tuple[float, ...], windows: tuple[float, ...], verdict: str
) -> None:
    assert masks.Difference(samples, windows).reading == verdict


def test_masks_of_other_domains_differ_and_hooks_are_gone() -> None:
    model = tiny_llama()
    runs.scores_by_size(model, ids(2, 8), (16,))
    seen: list[int] = []
    with watched(find_ffns(model), lambda layer, _: seen.append(layer)):
        model(input_ids=ids(1, 4))
    assert seen == [0, 1, 2]
    assert not any(ffn.module.gate_proj._forward_hooks for ffn in find_ffns(model))
