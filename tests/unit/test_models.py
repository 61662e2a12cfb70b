"""The models that anyone can train: text found, loss falling, a folder that records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from router_models import PAD  # noqa: F401  (one thread)
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from moesim.cli import models as models_cli
from moesim.cli import record as record_cli
from moesim.errors import MissingExtra, MoesimError, OutputError, UsageError
from moesim.record import read_prompts, record
from moesim.trace import load_trace, validate_trace
from moesim.training import (
    PRESETS,
    Corpus,
    MoePreset,
    built_in_corpus,
    cut_prompts,
    read_corpus,
    train,
    write_prompts,
)
from moesim.training.tokenizer import END, train_tokenizer

TINY = MoePreset(
    num_layers=2,
    hidden=32,
    expert_ffn=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    num_experts=4,
    vocabulary=300,
    context=32,
    batch_size=4,
    steps=40,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return built_in_corpus(60_000)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(TINY, corpus, tmp_path_factory.mktemp("models") / "tiny").path


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def test_this_machine_has_at_least_three_kinds_of_text(corpus: Corpus) -> None:
    assert corpus.domains == ("source", "documentation", "licences", "names")
    for domain, facts in corpus.describe().items():
        assert int(facts["train_documents"]) >= 1, domain
        assert int(facts["validation_documents"]) >= 1, domain
        assert 10_000 < int(facts["characters"]) < 70_000, domain


def test_the_choice_of_text_is_deterministic_and_within_budget(corpus: Corpus) -> None:
    assert built_in_corpus(60_000).describe() == corpus.describe()


def test_nothing_held_out_is_learnt_under_another_name(corpus: Corpus) -> None:
    held_out = {d.name for docs in corpus.validation.values() for d in docs}
    assert held_out.isdisjoint(d.name for docs in corpus.train.values() for d in docs)
    learnt = {
        " ".join(paragraph.split()).lower()
        for document in corpus.train["licences"]
        for paragraph in document.text.split("\n\n")
    }
    for document in corpus.validation["licences"]:
        for paragraph in document.text.split("\n\n")[:-1]:  # the last one may be cut short
            assert " ".join(paragraph.split()).lower() not in learnt


def test_names_of_documents_say_nothing_of_the_machine(corpus: Corpus) -> None:
    for documents in corpus.train.values():
        assert not any(Path(document.name).is_absolute() for document in documents)


def test_text_of_one_s_own_is_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("\n\n".join(f"verse {n} " * 30 for n in range(40)))
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.txt").write_text(f"letter {number} " * 40)
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\x00")
    mine = read_corpus({"verse": tmp_path / "poem.txt", "letters": folder})
    assert mine.domains == ("verse", "letters")
    assert len(mine.train["letters"]) + len(mine.validation["letters"]) == 9
    assert mine.validation["verse"]
    with pytest.raises(UsageError, match=r"domain 'x': .*absent: no such file or folder"):
        read_corpus({"x": tmp_path / "absent"})
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(UsageError, match="domain 'x' has 0 documents of 200 characters"):
        read_corpus({"x": tmp_path / "short.txt"})
    with pytest.raises(UsageError, match="no UTF-8 text in it"):
        read_corpus({"x": folder / "photo.jpg"})


def test_the_tokenizer_spells_anything_and_is_deterministic() -> None:
    texts = ["the cat sat on the mat\n" * 30, "def f(x):\n    return x\n" * 30]
    first, second = train_tokenizer(texts, 300), train_tokenizer(texts, 300)
    assert first.get_vocab() == second.get_vocab()
    assert len(first) <= 300
    for text in ("the cat", "\tΩ ∮ naïve 日本\r\n", " "):
        assert first.decode(first(text)["input_ids"]) == text
    assert first.convert_ids_to_tokens(first.eos_token_id) == END


def test_a_short_training_lowers_the_validation_loss(corpus: Corpus, tmp_path: Path) -> None:
    seen: list[Any] = []
    ticks: list[tuple[int, int]] = []
    result = train(
        TINY,
        corpus,
        tmp_path / "m",
        evaluate_every=20,
        on_evaluation=seen.append,
        on_step=lambda done, of: ticks.append((done, of)),
    )
    assert [e.step for e in seen] == [0, 20, 40]
    assert tuple(seen) == result.evaluations
    losses = [e.loss for e in seen]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5
    assert set(seen[0].by_domain) == set(corpus.domains)
    assert ticks[-1] == (40, 40)


def test_the_balance_loss_is_learnt_with(corpus: Corpus, tmp_path: Path) -> None:
    """The loss of a training step is the cross entropy plus the weighted balance loss."""
    path = train(replace(TINY, balance=0.5), corpus, tmp_path / "m", steps=1).path
    model = AutoModelForCausalLM.from_pretrained(path)
    tokens = torch.arange(24).reshape(2, 12)
    plain = model(input_ids=tokens, labels=tokens).loss
    learnt = model(input_ids=tokens, labels=tokens, **TINY.learning)
    assert learnt.aux_loss.item() > 0
    torch.testing.assert_close(learnt.loss, plain + 0.5 * learnt.aux_loss)


def test_the_weight_of_the_balance_loss_changes_what_routers_learn(
    corpus: Corpus, tmp_path: Path
) -> None:
    def routers(name: str, balance: float) -> list[torch.Tensor]:
        path = train(replace(TINY, balance=balance), corpus, tmp_path / name, steps=2).path
        states = AutoModelForCausalLM.from_pretrained(path).state_dict()
        return [states[key] for key in sorted(states) if "mlp.gate." in key]

    without, again, punished = routers("a", 0.0), routers("b", 0.0), routers("c", 1.0)
    assert len(without) == TINY.num_layers
    assert all(map(torch.equal, without, again))
    assert not any(map(torch.equal, without, punished))


def test_the_folder_loads_speaks_and_holds_no_pickle(trained: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.config.num_experts_per_tok == 2
    tokens = tokenizer("def main", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] > 3
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pth")) for name in names)


def test_the_training_record_names_text_and_losses_and_no_machine(trained: Path) -> None:
    text = (trained / "training.json").read_text()
    story = json.loads(text)
    assert story["shape"]["steps"] == 40
    assert story["validation_loss"][0]["step"] == 0
    assert story["validation_loss"][-1]["step"] == 40
    assert len(story["text"]["source"]["sha256"]) == 64
    assert str(trained.parent) not in text
    assert str(Path.home()) not in text


def test_the_same_seed_trains_the_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    shape = replace(TINY, steps=3)
    state = torch.random.get_rng_state()
    first = train(shape, corpus, tmp_path / "a", seed=7).path
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)  # whatever was drawn before must not matter
    again = train(shape, corpus, tmp_path / "b", seed=7).path
    other = train(shape, corpus, tmp_path / "c", seed=8).path
    weights = [(path / "model.safetensors").read_bytes() for path in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_loss_that_is_not_finite_stops_with_its_step(corpus: Corpus, tmp_path: Path) -> None:
    shape = replace(TINY, learning_rate=float("inf"))
    with pytest.raises(MoesimError, match=r"the training loss is nan at step 2; nothing was saved"):
        train(shape, corpus, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_training_leaves_nothing(corpus: Corpus, tmp_path: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, corpus, tmp_path / "m", on_step=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="unknown preset 'huge': choose one of shallow, deep, dense"
    ):
        train("huge", corpus, tmp_path / "m")
    with pytest.raises(UsageError, match=r"steps \(0\) must be at least 1"):
        train(TINY, corpus, tmp_path / "m", steps=0)
    (tmp_path / "m").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        train(TINY, corpus, tmp_path / "m", steps=1)


def test_presets_are_a_shallow_and_a_deep_model_of_mixtral_s_routing_shape() -> None:
    shallow, deep = PRESETS["shallow"], PRESETS["deep"]
    assert isinstance(shallow, MoePreset)
    assert isinstance(deep, MoePreset)
    assert (shallow.num_layers, shallow.num_experts, shallow.top_k) == (4, 16, 2)
    assert (deep.num_layers, deep.num_experts, deep.top_k) == (32, 8, 2)


def test_prompts_are_held_out_text_of_every_domain(corpus: Corpus, tmp_path: Path) -> None:
    prompts = cut_prompts(corpus, per_domain=10, characters=(30, 90), new_tokens=(4, 9))
    assert prompts == cut_prompts(corpus, per_domain=10, characters=(30, 90), new_tokens=(4, 9))
    assert [p.domain for p in prompts] == list(corpus.domains) * 10
    for prompt in prompts:
        assert prompt.domain is not None
        assert any(prompt.text in d.text for d in corpus.validation[prompt.domain])
        assert 0 < len(prompt.text) <= 90
        assert prompt.max_new_tokens in range(4, 10)
    path = write_prompts(prompts, tmp_path / "p.jsonl")
    assert [(p.text, p.domain, p.max_new_tokens) for p in read_prompts(path)] == [
        (p.text, p.domain, p.max_new_tokens) for p in prompts
    ]
    with pytest.raises(OutputError, match=r"p\.jsonl"):
        write_prompts(prompts, path)
    write_prompts(prompts[:1], path, force=True)
    with pytest.raises(UsageError, match=r"characters \(9 to 3\)"):
        cut_prompts(corpus, characters=(9, 3))
    with pytest.raises(UsageError, match=r"per_domain \(0\)"):
        cut_prompts(corpus, per_domain=0)


def test_a_trained_model_records(trained: Path, corpus: Corpus, tmp_path: Path) -> None:
    prompts = cut_prompts(corpus, per_domain=3, new_tokens=(3, 8))
    trace = record(
        str(trained), None, prompts, tmp_path / "t", prediction_depth=1, temperature=0.8, seed=1
    )
    assert trace.meta.model == "tiny"
    assert trace.meta.normalised
    assert trace.meta.provenance["training"]["shape"]["steps"] == 40
    assert set(trace.requests["domain"]) == set(corpus.domains)


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    record_cli.register(app)
    models_cli.register(app)
    return app


def run(app: typer.Typer, *words: object) -> list[str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip().split("\n")


def test_the_commands_train_cut_prompts_and_record(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moesim.training.training.PRESETS", {"shallow": TINY})
    for domain in ("verse", "prose"):
        Path(domain).mkdir()
        for number in range(9):
            Path(domain, f"{number}.txt").write_text(f"{domain} {number}\n" * 60)
    text = ("--text", "verse=verse", "--text", f"prose={tmp_path / 'prose'}")
    told = run(app, "models", "train", "--out", "m", "--steps", "2", *text)
    assert told[0].startswith("step     0  validation loss ")
    assert "verse" in told[0]
    assert told[-1] == "m"
    told = run(app, "models", "prompts", "--out", "p.jsonl", "--per-domain", "2", *text)
    assert told == ["p.jsonl"]
    told = run(
        app,
        *("record", "--model", "m", "--prompts", "p.jsonl", "--out", tmp_path / "t", "--depth", 1),
        *("--temperature", 0.7, "--probabilities"),
    )
    assert told == [told[0], str(tmp_path / "t")]
    assert told[0].startswith("4 requests, ")
    validate_trace(tmp_path / "t")
    trace = load_trace(tmp_path / "t")
    assert trace.meta.provenance["command"] == (
        "moesim record --model m --prompts p.jsonl --out t --max-new-tokens 32 --batch-size 8 "
        "--depth 1 --probabilities --temperature 0.7 --top-p 1.0 --seed 0"
    )
    assert "--text verse=verse --text prose=prose" in trace.meta.provenance["training"]["command"]
    assert trace.probabilities is not None
    assert str(tmp_path) not in (tmp_path / "t" / "trace.json").read_text()


def test_the_commands_refuse_before_they_work(app: typer.Typer, tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    done = invoke(app, ["models", "train", "--out", str(tmp_path)])
    assert isinstance(done.exception, OutputError)
    for pair, message in (("law", "expected DOMAIN=PATH"), ("a=x", "domain 'a' is named twice")):
        done = invoke(
            app,
            ["models", "prompts", "--out", str(tmp_path / "p"), "--text", "a=y", "--text", pair],
        )
        assert isinstance(done.exception, UsageError)
        assert message in str(done.exception)
    done = invoke(app, ["record", "--model", "m", "--prompts", "absent", "--out", "t"])
    assert isinstance(done.exception, UsageError)


def test_without_torch_the_extra_is_named(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.record.extra.find_spec", lambda _: None)
    (tmp_path / "p.txt").write_text("hello")
    for words in (
        ["record", "--model", "m", "--prompts", str(tmp_path / "p.txt"), "--out", "t"],
        ["models", "train", "--out", str(tmp_path / "m")],
    ):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, MissingExtra)
        assert "pip install -c constraints.txt '.[torch]'" in str(done.exception)


@pytest.mark.parametrize("command", ["train", "prompts"])
def test_seeds_are_not_negative(app: typer.Typer, command: str, tmp_path: Path) -> None:
    words = ["models", command, "--out", str(tmp_path / "out"), "--seed", "-1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "--seed" in done.output
