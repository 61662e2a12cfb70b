"""A language model with any gate: it generates, is recorded, is trained, and resumes if killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from router_models import END, PAD, VOCABULARY, batch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from moesim.cli import models as models_cli
from moesim.errors import MoesimError, OutputError, UsageError
from moesim.executor.generate import Serving, generate
from moesim.model.hf_config import shape_from_config
from moesim.record import Prompt, Recorder, load_model, record
from moesim.trace import validate_trace
from moesim.training import Corpus, GatedPreset, built_in_corpus, checkpoint, train, training
from moesim.training.gated import GatedConfig, GatedForCausalLM, check_gate
from moesim.training.tokenizer import train_tokenizer

N, K, FFN = 6, 2, 12
TASKS = ["law", "code"]
VARIANTS = [
    ("dselect_k", "hidden"),
    ("top_k", "hidden"),
    ("noisy_top_k", "hidden"),
    ("softmax", "hidden"),
    ("gumbel", "hidden"),
    ("switch", "hidden"),
    ("hash", "tokens"),
    ("top_k", "tokens"),
    ("switch", "prefix"),
    ("dselect_k", "prefix"),
    ("dselect_k", "tasks"),
    ("hash", "tasks"),
]
every_variant = pytest.mark.parametrize(("gate", "routed_by"), VARIANTS)


def made(gate: str, routed_by: str = "hidden", **options: Any) -> Any:
    """Return a random float64 model whose logits, and so routing, are far from ties."""
    torch.manual_seed(0)
    base = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=FFN,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.3,
    )
    config = GatedConfig(
        base=base.to_dict(),
        num_experts=N,
        num_experts_per_tok=1 if gate == "switch" else K,
        expert_ffn=FFN,
        gate=gate,
        gate_options=options,
        routed_by=routed_by,
        tasks=TASKS if routed_by == "tasks" else None,
        router={"hidden": 8, "heads": 2, "ffn": 8} if routed_by == "prefix" else None,
    )
    model = GatedForCausalLM(config)
    model.initialise(0.3)
    for router in model.routers:
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def told(model: Any, rows: int) -> dict[str, Any]:
    return dict(model.inputs_of([TASKS[row % 2] for row in range(rows)]))


@every_variant
def test_it_generates_with_a_cache_and_padding_what_it_generates_without(
    gate: str, routed_by: str
) -> None:
    model = made(gate, routed_by)
    ids, mask, lengths = batch()
    more = told(model, len(ids))
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    together = model.generate(input_ids=ids, attention_mask=mask, **options, **more)
    for row, length in enumerate(lengths):
        alone = ids[row : row + 1, -length:]
        own = {name: value[row : row + 1] for name, value in more.items()}
        said = model.generate(
            input_ids=alone,
            attention_mask=torch.ones_like(alone),
            use_cache=False,
            **options,
            **own,
        )
        assert said[0, length:].tolist() == together[row, ids.shape[1] :].tolist()


@every_variant
def test_it_is_the_same_model_once_saved_and_loaded(
    gate: str, routed_by: str, tmp_path: Path
) -> None:
    model = made(gate, routed_by)
    model.save_pretrained(tmp_path / "m")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float64).eval()
    ids, _, _ = batch()
    with torch.no_grad():
        ours = model(input_ids=ids, **told(model, len(ids))).logits
        theirs = again(input_ids=ids, **told(again, len(ids))).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)
    assert again.config.routing == model.config.routing


def test_special_tokens_and_ties_are_those_of_the_decoder_inside() -> None:
    """transformers asks the outer configuration where a text ends and which weights are one."""
    base = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=FFN, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=5, eos_token_id=6, pad_token_id=7,
        tie_word_embeddings=True,
    )  # fmt: skip
    config = GatedConfig(base=base.to_dict(), num_experts=N, num_experts_per_tok=K, expert_ffn=FFN)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)
    assert config.tie_word_embeddings is True
    assert config.vocab_size == 50


@every_variant
def test_at_most_k_experts_run_and_the_recorder_sees_them(gate: str, routed_by: str) -> None:
    model = made(gate, routed_by)
    ids, _, _ = batch()
    shape = (*ids.shape, -1)
    read: list[torch.Tensor] = []
    for router in model.routers:
        router.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad(), Recorder(model) as recorder:
        model(input_ids=ids, **told(model, len(ids)))
        recorded = recorder.take().expert_ids
    k = model.config.num_experts_per_tok
    assert recorded.shape == (*ids.shape, 3, k)
    for index, router in enumerate(model.routers):
        if routed_by == "tokens":
            chosen = router.gate.select(ids.flatten()).ids.view(shape)
        elif routed_by == "tasks":
            tasks = told(model, len(ids))["task_ids"].repeat_interleave(ids.shape[1])
            chosen = router.gate.select(tasks).ids.view(shape)
        else:
            chosen = router.gate.select(read[index]).ids.view(shape)
        assert np.array_equal(recorded[:, :, index], chosen)
    if routed_by == "prefix":  # one choice for all layers
        assert (recorded == recorded[:, :, :1]).all()
    if routed_by == "tasks":  # one choice for all of a task's tokens
        assert (recorded == recorded[:, :1]).all()
        assert np.array_equal(recorded[0], recorded[2])


def test_a_router_before_the_layers_does_not_look_ahead() -> None:
    model = made("top_k", "prefix")
    ids, _, _ = batch(num_sequences=1)
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 7) % VOCABULARY

    def routed(tokens: torch.Tensor) -> Any:
        with torch.no_grad(), Recorder(model) as recorder:
            model(input_ids=tokens)
            return recorder.take().expert_ids

    assert np.array_equal(routed(ids)[:, :5], routed(other)[:, :5])


@pytest.mark.parametrize("gate", ["top_k", "dselect_k", "softmax"])
def test_experts_without_weight_do_not_run_and_are_not_missed(gate: str) -> None:
    """In training, what is computed is the sum over all experts of weight times output."""
    options: dict[str, Any] = {"gamma": 0.5} if gate == "dselect_k" else {}
    model = made(gate, **options).train()
    block = model.blocks[1]
    experts = block.experts
    hidden = torch.randn(9, 16, dtype=torch.float64)
    weights, _ = block.router.gate(hidden)
    if gate != "softmax":
        assert bool((weights == 0).any())
    expected = torch.zeros_like(hidden)
    for number in range(N):
        gate_, up = (hidden @ experts.gate_up_proj[number].T).chunk(2, dim=1)
        inner = functional.silu(gate_) * up
        expected = expected + weights[:, number, None] * (inner @ experts.down_proj[number].T)
    torch.testing.assert_close(block(hidden), expected, rtol=0, atol=1e-12)


def test_the_gates_losses_are_learnt_with_and_not_measured() -> None:
    plain, balanced = made("switch", balance=0.0), made("switch", balance=0.5)
    ids, _, _ = batch()

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    assert loss(plain) == loss(balanced)
    own = loss(plain.train())
    extra = loss(balanced.train()) - own
    assert extra == pytest.approx(sum(float(router.loss) for router in balanced.routers))
    assert extra >= 3 * 0.5  # three layers, each at least 1 where all is even


@pytest.mark.parametrize("routed_by", ["hidden", "prefix", "tasks"])
def test_gates_begin_as_they_draw_themselves(
    routed_by: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not as the decoder that they stand in would have it."""

    def first(gate: str, **options: Any) -> list[Any]:
        shape = replace(TINY, gate=gate, gate_options=options, routed_by=routed_by)
        model = training._Run(shape, corpus, tokenizer, 0, 1, None).model
        return [router.gate for router in model.routers]

    tokenizer = train_tokenizer(["some text to spell\n" * 30], 300)
    for gamma in (0.3, 3.0):
        for gate in first("dselect_k", gamma=gamma):
            z = list(gate.z_logits.parameters()) if routed_by != "tasks" else [gate.z_logits]
            for part in z:
                assert 0 < float(part.detach().abs().max()) <= gamma / 100
    for gate in first("noisy_top_k"):
        assert all(not bool(part.any()) for part in gate.noise.parameters())


def test_whatever_the_gate_all_else_begins_alike(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(["some text to spell\n" * 30], 300)

    def first(**changes: Any) -> dict[str, torch.Tensor]:
        shape = replace(TINY, **changes)
        torch.manual_seed(5)  # as `train` does
        model = training._Run(shape, corpus, tokenizer, 5, 1, None).model
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if "router" not in name and "ahead" not in name
        }

    plain = first(gate="top_k")
    variants = ({"gate": "dselect_k"}, {"gate": "hash", "routed_by": "tokens"},
                {"gate": "switch", "top_k": 1, "routed_by": "prefix"})  # fmt: skip
    for changes in variants:
        other = first(**changes)
        assert plain.keys() == other.keys()
        assert all(torch.equal(plain[name], other[name]) for name in plain)


# Recording


def test_a_trace_says_how_far_ahead_its_routing_is_known(tmp_path: Path) -> None:
    prompts = [Prompt(tokens=tuple(range(3, 9 + n)), domain=TASKS[n % 2]) for n in range(4)]
    kinds = {"hidden": "layerwise", "tokens": "decoupled", "prefix": "decoupled", "tasks": "static"}
    for routed_by, router in kinds.items():
        trace = record(
            made("top_k", routed_by), None, prompts, tmp_path / routed_by, max_new_tokens=4
        )
        assert trace.meta.router == router
        validate_trace(tmp_path / routed_by)
    ids, first = trace.expert_ids[:], trace.requests["first_row"]
    for start, rows, domain in zip(
        first, trace.requests["num_rows"], trace.requests["domain"], strict=True
    ):
        assert (ids[start : start + rows] == ids[first[TASKS.index(domain)]]).all()


def test_without_end_tokens_every_request_generates_its_limit(tmp_path: Path) -> None:
    model = made("top_k")
    prompts = [Prompt(tokens=(3, 4 + n), max_new_tokens=9 + n) for n in range(6)]
    model.generation_config.eos_token_id = list(range(2, 30))  # half of all there are
    asked = [prompt.max_new_tokens for prompt in prompts]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 1}
    ended = record(model, None, prompts, tmp_path / "ended", **options)
    assert ended.requests["output_tokens"].tolist() < asked
    whole = record(model, None, prompts, tmp_path / "whole", ignore_end=True, **options)
    assert whole.requests["output_tokens"].tolist() == asked
    assert whole.meta.provenance["generation"]["ignore_end"] is True
    assert not (whole.expert_ids[:] == whole.meta.unused).any()


def test_a_task_that_gates_do_not_know_is_refused(tmp_path: Path) -> None:
    model = made("dselect_k", "tasks")
    for domain in ("poems", None):
        with pytest.raises(UsageError, match="gates know the tasks law, code"):
            record(model, None, [Prompt(tokens=(3, 4), domain=domain)], tmp_path / "t")
    assert not (tmp_path / "t").exists()
    ids, _, _ = batch()
    with pytest.raises(UsageError, match="needs one for each of 3 sequences, not 0"):
        model(input_ids=ids)


# Serving


@pytest.mark.parametrize("gate", ["dselect_k", "top_k", "switch"])
def test_the_real_machine_gives_the_text_of_the_model(gate: str) -> None:
    model = made(gate)
    prompts = ([5, 9, 31, 7], [11, 22, 33, 44, 6, 8])
    served = generate(model, prompts, 4, Serving(slots=5, token_budget=5, max_sequences=2))
    for prompt, tokens in zip(prompts, served.tokens, strict=True):
        text = list(prompt)
        for _ in range(4):
            with torch.no_grad():
                text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
        assert tokens == text[len(prompt) :]


@pytest.mark.parametrize("routed_by", ["tokens", "prefix", "tasks"])
def test_the_real_machine_refuses_gates_that_read_something_else(routed_by: str) -> None:
    with pytest.raises(UsageError, match=f"routes by {routed_by}; the real machine runs gates"):
        generate(made("top_k", routed_by), ([5, 9],), 2, Serving(slots=5))


def test_its_sizes_are_read_from_its_configuration() -> None:
    for routed_by, ahead in (("hidden", False), ("tasks", False), ("prefix", True)):
        model = made("top_k", routed_by)
        shape = shape_from_config(model.config.to_dict())
        assert (shape.num_layers, shape.num_experts, shape.top_k) == (3, N, K)
        experts = model.blocks[0].experts
        assert shape.expert_params * N == sum(p.numel() for p in experts.parameters())
        assert (shape.router is not None) == ahead


# Training

TINY = GatedPreset(
    num_layers=2,
    hidden=16,
    expert_ffn=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    num_experts=4,
    vocabulary=300,
    context=16,
    batch_size=2,
    steps=6,
    router={"hidden": 8, "heads": 2, "ffn": 8},
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return built_in_corpus(30_000)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "routed_by", "options"),
    [
        ("noisy_top_k", "hidden", {}),
        ("dselect_k", "hidden", {"entropy": [0.1, 10], "over_rows": "mean"}),
        ("dselect_k", "tasks", {}),
        ("gumbel", "prefix", {"straight_through": True}),
    ],
)
def test_a_killed_training_resumes_to_the_same_result(
    gate: str, routed_by: str, options: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    shape = replace(TINY, gate=gate, routed_by=routed_by, gate_options=options)
    whole = train(shape, corpus, tmp_path / "whole", evaluate_every=2, seed=3)

    kept = tmp_path / "kept"
    for last in (1, 3, 5):  # from the start, and twice between two evaluations

        def stop(done: int, _: int, last: int = last) -> None:
            if done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(
                shape, corpus, tmp_path / "again", evaluate_every=2, seed=3, checkpoint=kept,
                on_step=stop,
            )  # fmt: skip
        torch.rand(3)  # whatever is drawn in between must not matter
    assert not (tmp_path / "again").exists()
    again = train(shape, corpus, tmp_path / "again", evaluate_every=2, seed=3, checkpoint=kept)
    assert again.evaluations == whole.evaluations
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert not kept.exists()


def test_a_checkpoint_of_another_run_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        train(TINY, corpus, tmp_path / "m", checkpoint=kept, on_step=stop)
    other = replace(TINY, gate="switch", top_k=1)
    with pytest.raises(MoesimError, match="belongs to another run"):
        train(other, corpus, tmp_path / "m", checkpoint=kept)
    with pytest.raises(MoesimError, match="belongs to another run"):
        train(TINY, corpus, tmp_path / "m", checkpoint=kept, evaluate_every=7)
    checkpoint.save(kept, {"step": 1}, {"x": torch.zeros(1)})
    with pytest.raises(MoesimError, match="belongs to another run"):
        train(TINY, corpus, tmp_path / "m", checkpoint=kept)
    kept.write_bytes(b"nonsense")
    with pytest.raises(MoesimError, match=r"is not a checkpoint of a training .*delete it"):
        train(TINY, corpus, tmp_path / "m", checkpoint=kept)


def test_a_folder_that_may_not_be_replaced_is_refused_before_any_work(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_tokenizer", lambda *_: pytest.fail("work began"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear reader")
    with pytest.raises(OutputError, match=r"replaced only where it holds training\.json"):
        train(TINY, corpus, tmp_path / "home", force=True)


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(
    corpus: Corpus, tmp_path: Path
) -> None:
    shape = replace(TINY, learning_rate=float("inf"))
    with pytest.raises(MoesimError, match=r"loss is nan at step 2; .*kept holds .*, of step 0"):
        train(shape, corpus, tmp_path / "m", checkpoint=tmp_path / "kept")
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(("every", "steps", "good"), [(1, 6, 0), (3, 6, 0), (1, 1, 0)])
def test_a_broken_model_is_no_checkpoint(
    every: int, steps: int, good: int, corpus: Corpus, tmp_path: Path
) -> None:
    """The step that broke it is found at the evaluation after it, at the latest."""
    shape = replace(TINY, learning_rate=float("inf"), steps=steps)
    kept = tmp_path / "kept"
    with pytest.raises(MoesimError, match=rf"not finite|is nan .*kept holds .*, of step {good}"):
        train(shape, corpus, tmp_path / "m", checkpoint=kept, evaluate_every=every)
    assert not (tmp_path / "m").exists()
    _, tensors = checkpoint.load(kept)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_gates_learn_at_a_rate_of_their_own(corpus: Corpus, tmp_path: Path) -> None:
    """At factor 0 a gate stays as it was drawn, and all else learns."""

    def gate_of(name: str, factor: float, steps: int) -> Any:
        shape = replace(TINY, gate_factor=factor, steps=steps)
        model, _ = load_model(train(shape, corpus, tmp_path / name).path)
        return [parameter for router in model.routers for parameter in router.parameters()]

    still, longer = gate_of("a", 0.0, 1), gate_of("b", 0.0, 4)
    assert all(torch.equal(*pair) for pair in zip(still, longer, strict=True))
    moved = gate_of("c", 1.0, 4)
    assert not any(torch.equal(*pair) for pair in zip(still, moved, strict=True))


@pytest.mark.parametrize(
    "router", [None, {}, {"hiden": 8, "heads": 2, "ffn": 8}, {"hidden": 8, "heads": 2}]
)
def test_a_router_before_the_layers_needs_sizes(router: dict[str, int] | None) -> None:
    with pytest.raises(UsageError, match="needs the sizes of the router before"):
        check_gate(replace(TINY, routed_by="prefix", router=router))


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    models_cli.register(app)
    return app


def test_the_command_trains_any_gate(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.training.PRESETS", {"gated": TINY, "dense": object()})
    words = ["models", "train", "--preset", "gated", "--steps", "2", "--characters", "30000"]
    chosen = ["--gate", "dselect_k", "--routed-by", "tasks", "--gate-option", "gamma=5e-1"]
    done = CliRunner().invoke(
        app, [*words, *chosen, "--out", str(tmp_path / "m")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    story = json.loads((tmp_path / "m/training.json").read_text())
    assert story["preset"] == "gated"
    assert "--gate dselect_k --routed-by tasks --gate-option gamma=5e-1" in story["command"]
    model, _ = load_model(tmp_path / "m")
    assert model.routers[0].gate.gamma == 0.5
    assert model.config.routing == "static"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gate", "top_k", "--top-k", "9"], r"k \(9\) must be .* at most the number of experts"),
        (["--gate", "switch", "--top-k", "2"], r"k \(2\) must be 1"),
        (["--gate", "topk"], "no gate is called 'topk'; did you mean 'top_k'"),
        (["--gate", "dselect_k", "--gate-option", "gamma=0"], r"gamma \(0\) must be positive"),
        (["--gate", "dselect_k", "--gate-option", "gama=1"], "did you mean 'gamma'"),
        (["--gate", "top_k", "--gate-option", "balance"], "expected NAME=VALUE"),
        (["--gate", "dselect_k", "--gate-option", "gamma=abc"], r"gamma 'abc' must be a number"),
        (["--gate", "dselect_k", "--gate-option", "gamma=true"], r"gamma True must be a number"),
        (["--gate", "dselect_k", "--gate-option", "gamma={"], "cannot be read as YAML"),
        (["--gate", "dselect_k", "--gate-option", "entropy=[0.1]"], r"a number or \[top, calls\]"),
        (["--gate", "dselect_k", "--gate-option", "entropy=[0.1, 0]"], r"or \[top, calls\]"),
        (
            ["--gate", "dselect_k", "--gate-option", "entropy=.nan"],
            "a number that is finite",
        ),
        (["--gate", "top_k", "--gate-option", "balance=-1"], "finite and not negative"),
        (["--gate", "gumbel", "--gate-option", "straight_through=no thanks"], "of type bool"),
        (["--gate", "hash", "--gate-option", "seed=0.5"], "of type int"),
        (["--preset", "gatd", "--gate", "top_k"], "unknown preset 'gatd': choose one of"),
        (["--gate", "hash", "--routed-by", "hidden"], "hash routes by id"),
        (["--routed-by", "moon"], "unknown routed_by 'moon': choose one of hidden"),
        (["--preset", "dense", "--gate", "top_k"], "preset dense has no gate to choose"),
    ],
)
def test_what_no_gate_can_be_is_refused_before_any_work(
    app: typer.Typer,
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models_cli, "corpus_of", lambda *_: pytest.fail("work began"))
    preset = [] if "--preset" in words else ["--preset", "gated"]
    done = CliRunner().invoke(
        app,
        ["models", "train", *preset, *words, "--out", str(tmp_path / "m"), "--characters", "2000"],
    )
    assert isinstance(done.exception, MoesimError)
    assert done.exception.exit_code == 2
    with pytest.raises(MoesimError, match=says):
        raise done.exception
    assert not list(tmp_path.iterdir())
