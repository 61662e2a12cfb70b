"""The whole refactoring by one call: resumable, refused early, the same twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moesim.cli import app
from moesim.errors import OutputError, UsageError
from moesim.record.loading import load_model
from moesim.training.readme import pipeline
from moesim.training.readme.model import ReadMeForCausalLM
from moesim.training.readme.pipeline import run
from moesim.training.readme.schedule import Schedule
from moesim.training.readme.settings import KINDS, PipelineSettings
from moesim.training.text import Corpus, read_corpus
from moesim.training.tokenizer import train_tokenizer

torch.set_num_threads(1)

QUICK = PipelineSettings(
    Schedule(2, 2, 2, 2, 2, router_rate=1e-2, expert_rate=1e-3),
    context=16,
    score_windows=5,
    held_out_windows=2,
    router={"hidden": 8, "heads": 2, "ffn": 4},
)
MODELS = tuple(kind for kind in KINDS if kind != "oracle")  # no model, only its losses
WORDS = {
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "colours": "red green blue yellow purple orange black white grey pink brown teal",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("text")
    for domain, words in WORDS.items():
        (folder / domain).mkdir()
        each = words.split()
        for number in range(12):
            text = " ".join(each[(i * (number + 1) + i // 7) % 12] for i in range(120))
            (folder / domain / f"{number}.txt").write_text(text)
    return read_corpus({domain: folder / domain for domain in WORDS})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    return _saved(tmp_path_factory.mktemp("base") / "dense", corpus, "Llama")


def _saved(folder: Path, corpus: Corpus, family: str, **changes: Any) -> Path:
    texts = (d.text for documents in corpus.train.values() for d in documents)
    tokenizer = train_tokenizer(texts, 300)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    if family == "Llama":
        sizes |= {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 2}
    else:
        sizes |= {"n_embd": 16, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, f"{family}{_HEADS[family]}")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_HEADS = {"Llama": "ForCausalLM", "GPT2": "LMHeadModel"}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load_model(folder)
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path, corpus: Corpus) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(base, corpus, out, QUICK, kinds=KINDS)
    return out


def test_models_of_all_kinds_load_and_tell_their_story(whole: Path) -> None:
    for kind in MODELS:
        model, tokenizer = load_model(whole / kind)
        assert isinstance(model, ReadMeForCausalLM)
        assert tokenizer is not None
        assert model.config.layout == "fused"
        assert model.config.num_experts == (1 if kind == "dense" else 2)
        assert model.config.expert_ffn == 11  # of 24: strictly above the twelfth
        story = json.loads((whole / kind / "training.json").read_text())
        assert story["kind"] == kind
        assert story["history"][0]["stage"] == "start"
        assert story["history"][-1]["tokens"] == 2 * 2 * 2 * 16
        assert set(story["untuned"]["experts"]) == set(WORDS)
    assert not list(whole.glob("decoupled.safetensors"))
    assert load_model(whole / "layerwise")[0].config.routing == "layerwise"


def test_oracle_has_losses_and_no_model(whole: Path) -> None:
    assert [path.name for path in (whole / "oracle").iterdir()] == ["training.json"]
    oracle, decoupled = (
        json.loads((whole / kind / "training.json").read_text()) for kind in ("oracle", "decoupled")
    )
    stages = [each["stage"] for each in oracle["history"]]
    assert stages == ["start", "round 0 experts", "round 1 experts"]
    start = oracle["history"][0]["by_domain"]
    assert start == pytest.approx({d: oracle["untuned"]["experts"][d][d] for d in WORDS}, rel=1e-5)
    assert decoupled["history"][0]["own_experts"] == pytest.approx(start, rel=1e-5)
    assert oracle["history"][-1]["tokens"] == decoupled["history"][-1]["tokens"]
    assert oracle["history"][-1]["passes"] == decoupled["history"][-1]["passes"] > 0


def test_a_run_of_an_older_form_is_refused(
    tmp_path: Path, whole: Path, base: Path, corpus: Corpus
) -> None:
    """Routers learned from one pool of windows then, so its results are of another schedule."""
    (tmp_path / "out").mkdir()
    identity = json.loads((whole / "run.json").read_text())
    identity["settings"]["pool_windows"] = 3
    (tmp_path / "out/run.json").write_text(json.dumps(identity))
    with pytest.raises(OutputError, match="holds another run"):
        run(base, corpus, tmp_path / "out", QUICK)


def test_the_same_run_is_not_done_twice(whole: Path, base: Path, corpus: Corpus) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    seen: list[str] = []
    run(base, corpus, whole, QUICK, on_stage=lambda kind, _: seen.append(kind))
    assert not seen
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    after.pop(whole / "masks.safetensors")
    before.pop(whole / "masks.safetensors")
    assert after == before


def test_a_killed_run_resumes_to_the_same_models(
    tmp_path: Path, whole: Path, base: Path, corpus: Corpus
) -> None:
    out, shown = tmp_path / "out", 0
    for fatal in (1, 5, 12, 20, 30, 45):
        count = 0

        def die(what: str, done: int, of: int, fatal: int = fatal) -> None:
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt

        try:
            run(base, corpus, out, QUICK, kinds=KINDS, show=die)
        except KeyboardInterrupt:
            shown += 1
    assert shown >= 3
    run(base, corpus, out, QUICK, kinds=KINDS)
    for kind in MODELS:
        expected = _weights(whole / kind)
        for name, tensor in _weights(out / kind).items():
            assert torch.equal(tensor, expected[name]), (kind, name)
    records = [json.loads((folder / "oracle/training.json").read_text()) for folder in (out, whole)]
    assert records[0]["history"] == records[1]["history"]


@pytest.mark.parametrize("change", [{"control": "random"}, {"control": "shuffled"}])
def test_controls_change_the_masks_and_nothing_before(
    tmp_path: Path, whole: Path, base: Path, corpus: Corpus, change: dict[str, Any]
) -> None:
    run(base, corpus, tmp_path / "out", replace(QUICK, **change), kinds=["decoupled"])
    ours = json.loads((tmp_path / "out/untuned.json").read_text())
    theirs = json.loads((whole / "untuned.json").read_text())
    assert ours["dense"] == theirs["dense"]
    assert ours["experts"] != theirs["experts"]
    assert ours["masks"]["channels"] == theirs["masks"]["channels"]


def test_the_variant_paper_gives_the_papers_masks(
    tmp_path: Path, base: Path, corpus: Corpus
) -> None:
    out = tmp_path / "out"
    run(base, corpus, out, replace(QUICK, variant="paper"), kinds=["decoupled"])
    model, _ = load_model(out / "decoupled")
    assert model.config.scaled
    assert model.config.router["mlp"] == "swiglu"
    assert model.config.expert_ffn == 12  # half of 24; the code's strict threshold leaves 11


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_small_shares_give_narrow_experts_of_all_kinds(
    tmp_path: Path, base: Path, corpus: Corpus, variant: Any
) -> None:
    settings = replace(QUICK, share=0.25, variant=variant)
    folders = run(base, corpus, tmp_path / "out", settings, kinds=KINDS)
    for kind in MODELS:
        model, _ = load_model(folders[kind])
        assert model.config.expert_ffn == (6 if variant == "paper" else 5)
    story = json.loads((folders["decoupled"] / "training.json").read_text())
    permanent = story["masks"]["permanent_channels"]
    assert 0 <= permanent < model.config.expert_ffn
    assert story["masks"]["share"] == 0.25


@pytest.mark.parametrize(("variant", "shape"), [("paper", (1, 16, 2)), ("code", (1, 16, 2, 2))])
def test_what_teaches_a_decoupled_router(
    tmp_path: Path,
    base: Path,
    corpus: Corpus,
    variant: Any,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`paper` adds overlaps over layers, `code` has a loss for each."""
    seen = []

    def stop(_: Any, text: Any, __: Any, teach: Any, **___: Any) -> None:
        seen.append(teach(text.train.windows[:1]).shape)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "tune", stop)
    with pytest.raises(KeyboardInterrupt):
        run(base, corpus, tmp_path / "out", replace(QUICK, variant=variant))
    assert seen == [shape]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, r"share \(1.5\)"),
        ({"share": float("nan")}, r"share \(nan\)"),
        ({"seed": -1}, r"seed \(-1\) must not be negative"),
        ({"share": 0.05}, r"share \(0.05\).*larger"),
        ({"score_windows": 500}, r"domain 'numbers' has .* tokens; 500 windows of 16 need 8,000"),
        ({"held_out_windows": 100}, "tokens; 100 windows"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, base: Path, corpus: Corpus, change: dict[str, Any], message: str
) -> None:
    shown: list[str] = []
    with pytest.raises(UsageError, match=message):
        run(
            base,
            corpus,
            tmp_path / "out",
            replace(QUICK, **change),
            show=lambda *what: shown.append(str(what)),
        )
    assert not shown


def test_what_was_refused_does_not_keep_the_folder(
    tmp_path: Path, base: Path, corpus: Corpus
) -> None:
    for change in ({"share": 0.05}, {"score_windows": 500}):
        with pytest.raises(UsageError):
            run(base, corpus, tmp_path / "out", replace(QUICK, **change))
        assert not (tmp_path / "out").exists()


def test_domains_in_another_order_are_another_run(whole: Path, base: Path, corpus: Corpus) -> None:
    """Expert n is of domain n, in the scores that are kept too."""
    train, validation = (dict([*part.items()][::-1]) for part in (corpus.train, corpus.validation))
    turned = Corpus(train, validation)
    assert turned.describe() == corpus.describe()
    with pytest.raises(OutputError, match="holds another run"):
        run(base, turned, whole, QUICK)


@pytest.mark.parametrize("name", ["run.json", "untuned.json", "scores.safetensors"])
def test_damaged_files_are_named(
    tmp_path: Path, whole: Path, base: Path, corpus: Corpus, name: str
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/decoupled")
    damaged = tmp_path / "out" / name
    damaged.write_bytes(damaged.read_bytes()[:40])
    if name == "scores.safetensors":
        (tmp_path / "out/untuned.json").unlink()
    with pytest.raises(UsageError, match=rf"{name} is damaged"):
        run(base, corpus, tmp_path / "out", QUICK)


def test_a_run_killed_between_a_model_and_its_checkpoint_leaves_none(
    tmp_path: Path, whole: Path, base: Path, corpus: Corpus
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out/decoupled.safetensors").write_bytes(b"of a tuning that ended")
    run(base, corpus, tmp_path / "out", QUICK)
    assert not (tmp_path / "out/decoupled.safetensors").exists()


def test_a_run_killed_as_it_claimed_its_folder_resumes(
    tmp_path: Path, base: Path, corpus: Corpus
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.run.json.partial").write_text("{")
    run(base, corpus, tmp_path / "out", QUICK, kinds=[])
    assert (tmp_path / "out/run.json").exists()


def test_bases_and_folders_that_do_not_fit(
    tmp_path: Path, whole: Path, base: Path, corpus: Corpus
) -> None:
    with pytest.raises(OutputError, match="holds another run"):
        run(base, corpus, whole, replace(QUICK, seed=1))
    retrained = tmp_path / base.name
    shutil.copytree(base, retrained)
    model, _ = load_model(retrained)
    model.get_input_embeddings().weight.data.zero_()
    model.save_pretrained(retrained)
    with pytest.raises(OutputError, match="holds another run"):
        run(retrained, corpus, whole, QUICK, kinds=KINDS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not empty"):
        run(base, corpus, tmp_path / "mine", QUICK)
    with pytest.raises(OutputError, match="is a file"):
        run(base, corpus, tmp_path / "mine/thesis.txt", QUICK)
    with pytest.raises(UsageError, match="unknown kind 'sparse'"):
        run(base, corpus, tmp_path / "out", QUICK, kinds=["sparse"])
    gpt2 = _saved(tmp_path / "gpt2", corpus, "GPT2")
    with pytest.raises(UsageError, match="GPT2LMHeadModel has no gated FFN"):
        run(gpt2, corpus, tmp_path / "out2", QUICK)
    shown: list[str] = []
    biased = _saved(tmp_path / "biased", corpus, "Llama", mlp_bias=True)
    with pytest.raises(UsageError, match="has biases in its FFNs"):
        run(biased, corpus, tmp_path / "out2", QUICK, show=lambda what, *_: shown.append(what))
    assert not shown
    with pytest.raises(UsageError, match="is a mixture of experts already"):
        run(whole / "decoupled", corpus, tmp_path / "out3", QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "nowhere/at/all/of"], "cannot load"),
        (["--base", "./nowhere"], "no such folder"),
        (["--size", "huge"], "unknown size 'huge'"),
        (["--control", "none at all"], "unknown control"),
        (["--variant", "folklore"], "unknown variant"),
        (["--text", "numbers"], "expected DOMAIN=PATH"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, base: Path, options: list[str], message: str
) -> None:
    given = options if "--base" in options else ["--base", str(base), *options]
    with pytest.raises(UsageError, match=message):
        app(["models", "readme", "--out", str(tmp_path / "out"), *given], standalone_mode=False)
