"""Training: a small language model, dense or of experts, learns the text of a corpus.

Every step draws `batch_size` windows of `context` tokens, each from a domain chosen evenly, so that
no kind of text dominates. AdamW with a linear warm-up and a cosine decay; the loss is the cross
entropy plus, with experts, the balance term. The validation loss (cross entropy alone) is measured
on fixed windows of the held-out documents of every domain. One seed fixes weights and windows; the
text, the versions and the number of threads fix the rest. A killed run resumes from its checkpoint,
which holds the random generators' states, and gives the same result as an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from moesim.errors import MoesimError, UsageError
from moesim.files import may_replace, whole_folder, write_json
from moesim.record.header import TRAINING_RECORD, versions
from moesim.training import checkpoint as checkpoints
from moesim.training.optimizer import adamw, share_of_peak
from moesim.training.presets import PRESETS, GatedPreset, Preset
from moesim.training.text import Corpus
from moesim.training.tokenizer import train_tokenizer
from moesim.training.tokens import Tokens, spread_windows, token_streams

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
    """A finished training: the model's folder, and the course of its loss."""

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
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a model and write it to the folder `out`, whole or not at all.

    The folder loads with `AutoModelForCausalLM` and `AutoTokenizer`, and holds `training.json`: the
    preset, the text, the losses, the versions. With a `checkpoint` file, work is saved there at
    every evaluation. If the file exists, the run resumes from it; it is deleted once `out` is
    written. `on_step(done, of)` and `on_evaluation` report progress.

    Raise `UsageError` for an unknown preset or steps below 1. Raise `OutputError` if `out` exists
    (without `force`) or cannot be written. Raise `MoesimError` that names the step if the loss is
    not finite (the last checkpoint stays), or if the checkpoint belongs to another run.
    """
    shape = _shape(preset, steps, evaluate_every)
    may_replace(Path(out), force, (TRAINING_RECORD,))
    # The caller's random state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer(corpus, shape.vocabulary)
        run = _Run(shape, corpus, tokenizer, seed, evaluate_every, checkpoint)
        run.restore()
        if not run.evaluations:
            _report(on_evaluation, run.evaluate())
        while run.step < shape.steps:
            run.learn()
            if on_step is not None:
                on_step(run.step, shape.steps)
            if run.step % evaluate_every == 0 or run.step == shape.steps:
                _report(on_evaluation, run.evaluate())
    num_parameters = sum(p.numel() for p in run.model.parameters())
    story = {
        "preset": preset if isinstance(preset, str) else "custom",
        **(provenance or {}),
        **run.story(corpus, num_parameters),
    }
    with whole_folder(Path(out), force=force, ours=(TRAINING_RECORD,)) as folder:
        run.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / TRAINING_RECORD, story)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Trained(Path(out), tuple(run.evaluations), num_parameters)


class _Run:
    """An unfinished training: the state that a checkpoint holds, and the next steps."""

    def __init__(
        self,
        shape: Preset,
        corpus: Corpus,
        tokenizer: Any,
        seed: int,
        evaluate_every: int,
        checkpoint: Path | None,
    ) -> None:
        self.shape = shape
        self.seed = seed
        self.evaluate_every = evaluate_every
        self.checkpoint = checkpoint
        self.streams = token_streams(tokenizer, corpus.train)
        self.held_out = {
            domain: spread_windows(stream, _WINDOWS, shape.context)
            for domain, stream in token_streams(tokenizer, corpus.validation).items()
        }
        self.model = _model(shape, tokenizer, corpus.domains, seed)
        self.optimizer = adamw(self.model, shape)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.draw = np.random.default_rng(np.random.SeedSequence(seed))
        self.step = 0
        self.evaluations: list[Evaluation] = []
        self._before = (0.0, 0.0)  # wall and CPU seconds of the runs that this one resumes
        self._since = _clocks()

    def learn(self) -> None:
        """Take one training step."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share_of_peak(self.step, self.shape.steps)
        tokens, domains = _batch(self.streams, self.shape, self.draw)
        self.model.train()
        more = {**self.shape.learning, **_inputs_of(self.model, domains)}
        loss = self.model(input_ids=tokens, labels=tokens, **more).loss
        if not torch.isfinite(loss):
            raise self._not_finite(f"the training loss is {loss.item()}", self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Bounds the effect of a rare large gradient.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

    def evaluate(self) -> Evaluation:
        """Measure the validation loss and save a checkpoint; raise if the model is not finite."""
        evaluation = _evaluate(self.model, self.held_out, self.step)
        if not math.isfinite(evaluation.loss):
            raise self._not_finite(f"the validation loss is {evaluation.loss}", self.step)
        # A weight that the evaluation did not use may be broken too; such a state must not be kept.
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._not_finite(f"a weight of {name} is not finite", self.step)
        self.evaluations.append(evaluation)
        self._save()
        return evaluation

    def _not_finite(self, what: str, step: int) -> MoesimError:
        kept = "nothing was saved"
        if self.checkpoint is not None and self.checkpoint.exists():
            kept = (
                f"{self.checkpoint} holds the last good state, of step "
                f"{self.evaluations[-1].step}; delete it to start again"
            )
        return MoesimError(
            f"{what} at step {step}; {kept}; try a lower learning rate or another seed"
        )

    def spent(self) -> tuple[float, float]:
        """Return wall and CPU seconds so far, those of earlier runs included."""
        pairs = zip(self._before, self._since, _clocks(), strict=True)
        wall_s, cpu_s = (before + now - since for before, since, now in pairs)
        return wall_s, cpu_s

    def story(self, corpus: Corpus, num_parameters: int) -> dict[str, Any]:
        """Return what the finished model's folder says of its training."""
        shape, (wall_s, cpu_s) = self.shape, self.spent()
        return {
            "shape": asdict(shape),
            "seed": self.seed,
            "parameters": num_parameters,
            "tokens_seen": shape.steps * shape.batch_size * shape.context,
            "text": corpus.describe(),
            "validation_loss": [asdict(evaluation) for evaluation in self.evaluations],
            "threads": torch.get_num_threads(),
            "wall_s": round(wall_s, 1),
            "cpu_s": round(cpu_s, 1),
            "versions": versions(),
        }

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        story = {
            "run": self._identity(),
            "step": self.step,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "draw": self.draw.bit_generator.state,
            "spent": self.spent(),
        }
        named = dict(self.model.named_parameters())
        tensors = {f"model.{name}": tensor for name, tensor in _state(self.model).items()}
        moments = checkpoints.moments(self.optimizer, named)
        tensors |= {f"moments.{name}": moment for name, moment in moments.items()}
        checkpoints.save(self.checkpoint, story, tensors | {"torch": torch.get_rng_state()})

    def restore(self) -> None:
        """Load the checkpoint, if there is one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        story, tensors = checkpoints.load(self.checkpoint)
        if story.get("run") != self._identity():
            raise MoesimError(
                f"{self.checkpoint} belongs to another run; choose another name or delete it"
            )
        with torch.no_grad():
            for name, tensor in _state(self.model).items():
                tensor.copy_(tensors[f"model.{name}"])
        named = dict(self.model.named_parameters())
        checkpoints.put_moments(self.optimizer, named, checkpoints.part(tensors, "moments."))
        self.step = story["step"]
        self.evaluations = [Evaluation(**evaluation) for evaluation in story["evaluations"]]
        self.draw.bit_generator.state = story["draw"]
        self._before = tuple(story["spent"])
        torch.set_rng_state(tensors["torch"])

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for one run to resume another."""
        # The tokens themselves, because a changed text must not resume an old run.
        tokens = [*self.streams.values(), *(held.numpy() for held in self.held_out.values())]
        return {
            "shape": json.loads(json.dumps(asdict(self.shape))),
            "seed": self.seed,
            "evaluate_every": self.evaluate_every,
            "domains": list(self.streams),
            "data": [crc32(np.ascontiguousarray(ids).tobytes()) for ids in tokens],
        }


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _state(model: Any) -> dict[str, torch.Tensor]:
    """Return parameters, each once, and the buffers that a model's files would hold."""
    kept = model.state_dict().keys()
    return {
        # Tied weights appear once here; a safetensors file refuses tensors that share memory.
        **dict(model.named_parameters()),
        **{name: buffer for name, buffer in model.named_buffers() if name in kept},
    }


def _inputs_of(model: Any, domains: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the inputs, other than ids, of a model that routes by domain."""
    return model.inputs_of(domains) if hasattr(model, "inputs_of") else {}


def _shape(preset: str | Preset, steps: int | None, evaluate_every: int) -> Preset:
    """Return the preset with this number of steps. Raise `UsageError` if it cannot be trained."""
    shape = _preset(preset)
    shape = replace(shape, steps=shape.steps if steps is None else steps)
    for name, value in (("steps", shape.steps), ("evaluate_every", evaluate_every)):
        if value < 1:
            raise UsageError(f"{name} ({value}) must be at least 1")
    if isinstance(shape, GatedPreset):
        from moesim.training.gated import check_gate

        check_gate(shape)
    return shape


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


def _batch(
    streams: Mapping[str, Tokens], shape: Preset, draw: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """Draw windows; return them with the domain of each."""
    domains = [str(domain) for domain in draw.choice(list(streams), size=shape.batch_size)]
    windows = []
    for domain in domains:
        # Repeats a text that is shorter than a window.
        stream = np.resize(streams[domain], max(len(streams[domain]), shape.context + 1))
        start = int(draw.integers(len(stream) - shape.context))
        windows.append(stream[start : start + shape.context])
    return torch.from_numpy(np.stack(windows)), domains


def _model(shape: Preset, tokenizer: Any, domains: Sequence[str], seed: int) -> Any:
    import transformers

    config = getattr(transformers, f"{shape.family}Config")(
        **shape.config(len(tokenizer), tokenizer.eos_token_id)
    )
    if not isinstance(shape, GatedPreset):
        return getattr(transformers, f"{shape.family}ForCausalLM")(config)
    from moesim.training.gated import GatedConfig, GatedForCausalLM

    model: Any = GatedForCausalLM(
        GatedConfig(
            base=config.to_dict(),
            num_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k,
            expert_ffn=shape.expert_ffn,
            gate=shape.gate,
            gate_options=dict(shape.gate_options),
            routed_by=shape.routed_by,
            tasks=list(domains) if shape.routed_by == "tasks" else None,
            router=dict(shape.router or {}) if shape.routed_by == "prefix" else None,
        )
    )
    torch.manual_seed(seed)  # gates draw different counts; experts must start alike with any gate
    model.initialise()
    return model


def _evaluate(model: Any, held_out: Mapping[str, torch.Tensor], step: int) -> Evaluation:
    model.eval()
    with torch.no_grad():
        by_domain = {
            domain: float(
                model(
                    input_ids=windows,
                    labels=windows,
                    **_inputs_of(model, [domain] * len(windows)),
                ).loss
            )
            for domain, windows in held_out.items()
        }
    return Evaluation(step, sum(by_domain.values()) / len(by_domain), by_domain)


def _report(listener: Callable[[Evaluation], None] | None, evaluation: Evaluation) -> None:
    if listener is not None:
        listener(evaluation)
