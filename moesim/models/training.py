"""Training: a small language model, dense or of experts, learns the text of a corpus.

Every step draws `batch_size` windows of `context` tokens, each from a domain chosen evenly, so that
no kind of text drowns the others. AdamW with a linear warm-up and a cosine decay; the loss is the
cross entropy plus, with experts, the balance term. The validation loss (cross entropy alone) is
measured on fixed windows of the held-out documents of every domain. One seed fixes weights and
windows; the text, the versions and the number of threads fix the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesim.errors import MoesimError, OutputError, UsageError
from moesim.files import whole_folder, write_json
from moesim.models.presets import PRESETS, Preset
from moesim.models.text import Corpus
from moesim.models.tokenizer import train_tokenizer
from moesim.models.tokens import Tokens, spread_windows, token_streams
from moesim.record.header import TRAINING_RECORD, versions

_WARM_UP = 0.05  # of all steps
_LOWEST = 0.1  # of the peak learning rate, at the end
_WINDOWS = 16  # validation windows a domain
_SAMPLE = 400_000  # characters a domain that the tokenizer learns from


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation loss after `step` steps, in nats a token, mean over domains and of each."""

    step: int
    loss: float
    by_domain: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training: where the model is, and how its loss fell."""

    path: Path
    evaluations: tuple[Evaluation, ...]
    num_parameters: int


def train(
    preset: str | Preset,
    corpus: Corpus,
    out: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    evaluate_every: int = 100,
    force: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a model and write it to the folder `out`, whole or not at all.

    The folder loads with `AutoModelForCausalLM` and `AutoTokenizer`, and holds `training.json`: the
    preset, the text, the losses, the versions. `on_step(done, of)` and `on_evaluation` report.
    Raises `UsageError` for an unknown preset or steps below 1, `OutputError` if `out` exists
    (without `force`) or cannot be written, `MoesimError` naming the step if the loss is not finite.
    """
    shape = _preset(preset)
    shape = replace(shape, steps=shape.steps if steps is None else steps)
    if shape.steps < 1:
        raise UsageError(f"steps ({shape.steps}) must be at least 1")
    if Path(out).exists() and not force:
        raise OutputError(out, "already exists; choose another name or pass --force")
    started, cpu_started = time.perf_counter(), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer(corpus, shape.vocabulary)
        streams = token_streams(tokenizer, corpus.train)
        held_out = {
            domain: spread_windows(stream, _WINDOWS, shape.context)
            for domain, stream in token_streams(tokenizer, corpus.validation).items()
        }
        model = _model(shape, tokenizer)
        evaluations = [_evaluate(model, held_out, 0)]
        _report(on_evaluation, evaluations[-1])
        optimizer, schedule = _optimizer(model, shape)
        draw = np.random.default_rng(np.random.SeedSequence(seed))
        for step in range(1, shape.steps + 1):
            _learn(model, optimizer, _batch(streams, shape, draw), shape, step)
            schedule.step()
            if on_step is not None:
                on_step(step, shape.steps)
            if step % evaluate_every == 0 or step == shape.steps:
                evaluations.append(_evaluate(model, held_out, step))
                _report(on_evaluation, evaluations[-1])
    num_parameters = sum(p.numel() for p in model.parameters())
    story = {
        **(provenance or {}),
        "preset": preset if isinstance(preset, str) else "custom",
        "shape": asdict(shape),
        "seed": seed,
        "parameters": num_parameters,
        "tokens_seen": shape.steps * shape.batch_size * shape.context,
        "text": corpus.describe(),
        "validation_loss": [asdict(evaluation) for evaluation in evaluations],
        "threads": torch.get_num_threads(),
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(time.process_time() - cpu_started, 1),
        "versions": versions(),
    }
    with whole_folder(Path(out), force=force, ours=(TRAINING_RECORD,)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / TRAINING_RECORD, story)
    return Trained(Path(out), tuple(evaluations), num_parameters)


def _preset(preset: str | Preset) -> Preset:
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _tokenizer(corpus: Corpus, vocabulary: int) -> Any:
    def texts() -> Any:
        for domain in corpus.domains:
            left = _SAMPLE
            for document in corpus.train[domain]:
                yield document.text[:left]
                left -= len(document.text)
                if left <= 0:
                    break

    return train_tokenizer(texts(), vocabulary)


def _batch(streams: Mapping[str, Tokens], shape: Preset, draw: np.random.Generator) -> torch.Tensor:
    windows = []
    for domain in draw.choice(list(streams), size=shape.batch_size):
        stream = np.resize(streams[domain], max(len(streams[domain]), shape.context + 1))
        start = int(draw.integers(len(stream) - shape.context))
        windows.append(stream[start : start + shape.context])
    return torch.from_numpy(np.stack(windows))


def _model(shape: Preset, tokenizer: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{shape.family}Config")(
        **shape.config(len(tokenizer), tokenizer.eos_token_id)
    )
    return getattr(transformers, f"{shape.family}ForCausalLM")(config)


def _optimizer(model: Any, shape: Preset) -> tuple[torch.optim.Optimizer, Any]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=shape.learning_rate,
        betas=(0.9, 0.95),
    )
    warm_up = max(1, round(_WARM_UP * shape.steps))

    def share(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        done = (step - warm_up) / max(1, shape.steps - warm_up)
        return _LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * done))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _learn(
    model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, shape: Preset, step: int
) -> None:
    model.train()
    loss = model(input_ids=tokens, labels=tokens, **shape.learning).loss
    if not torch.isfinite(loss):
        raise MoesimError(
            f"the training loss is {loss.item()} at step {step}; nothing was saved; "
            "try a lower learning rate or another seed"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _evaluate(model: Any, held_out: Mapping[str, torch.Tensor], step: int) -> Evaluation:
    model.eval()
    with torch.no_grad():
        by_domain = {
            domain: float(model(input_ids=windows, labels=windows).loss)
            for domain, windows in held_out.items()
        }
    return Evaluation(step, sum(by_domain.values()) / len(by_domain), by_domain)


def _report(listener: Callable[[Evaluation], None] | None, evaluation: Evaluation) -> None:
    if listener is not None:
        listener(evaluation)
