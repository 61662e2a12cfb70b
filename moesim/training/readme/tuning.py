"""Tuning: routers learn which experts fit, and experts learn the language, in turn.

A router stage changes only routers and uses only the distillation loss. An expert stage changes
everything but routers and uses the language model's loss. Every step takes the next windows of the
training text, in an order that the seed fixes. Targets of routers are computed for the windows of
one step at a time. So a killed run resumes from its last checkpoint with the same result as an
uninterrupted run, and memory does not grow with the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesim.errors import MoesimError
from moesim.training import checkpoint as checkpoints
from moesim.training.readme import distill
from moesim.training.readme.ffn import Variant
from moesim.training.readme.model import ReadMeForCausalLM
from moesim.training.readme.schedule import Schedule, Stage
from moesim.training.tokens import WindowStream

__all__ = ["Measured", "Tuned", "TuningText", "evaluate", "tune"]

_SAVE_EVERY_S = 120.0


@dataclass(frozen=True, slots=True, eq=False)
class TuningText:
    """The text that a model is tuned on and measured by, as token ids.

    All stages take windows from `train`, each where the stage before it stopped.
    `held_out[domain] [V, T]` is used only for measuring. Domains are those of `train`, in order.
    """

    train: WindowStream
    held_out: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements after a stage, or before all stages (`stage` is then `start`).

    Losses are in nats a token. `validation` and `by_domain` are the language model's on held-out
    text; `training` is the mean of the stage's own. `own_experts` are losses by domain if every
    token takes its domain's expert instead of the router's (one router for all layers only).
    `agreement` is the share of held-out tokens for which routers choose the target's expert.
    `tokens` counts the tokens that experts were trained on so far. `passes` says how often the
    training text was gone through so far, by all stages together.
    """

    stage: str
    validation: float
    by_domain: Mapping[str, float]
    training: float | None
    own_experts: Mapping[str, float] | None
    agreement: float | None
    tokens: int
    passes: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished tuning."""

    history: tuple[Measured, ...]
    wall_s: float


def tune(
    model: ReadMeForCausalLM,
    text: TuningText,
    schedule: Schedule,
    teacher: distill.Teacher | None,
    *,
    variant: Variant = "paper",
    by_domain: bool = False,
    autocast: bool = False,
    checkpoint: Path | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
    on_stage: Callable[[Measured], None] | None = None,
) -> Tuned:
    """Tune a masked model in place, by the losses of `variant`.

    `teacher` gives what routers learn; without one there are no router stages. `by_domain` gives
    every window to its domain's expert, in training and in measuring, and asks no router.
    `autocast` computes in bfloat16 and keeps weights as they are. With a `checkpoint` file, work
    is saved there every two minutes and after each stage; if it exists, the run resumes from it.
    `on_step(stage, done, of)` and `on_stage` report progress.

    Raise `MoesimError` that names the step if a loss is not finite (the last checkpoint stays), or
    if the checkpoint belongs to another run.
    """
    run = _Run(model, text, schedule, teacher, variant, by_domain, autocast, checkpoint, on_step)
    run.restore()
    if not run.history:
        run.measure("start", None)
        _report(on_stage, run.history[-1])
    for stage in run.stages[run.stage :]:
        run.go_through(stage)
        _report(on_stage, run.history[-1])
    return Tuned(tuple(run.history), run.wall_s)


def evaluate(
    model: Any,
    held_out: Mapping[str, Tensor],
    *,
    by_domain: bool = False,
    autocast: bool = False,
) -> dict[str, float]:
    """Return a language model's mean cross entropy on each domain's windows, nats a token.

    `by_domain` gives the tokens of domain n to expert n, with weight one.
    """
    model.eval()
    losses = {}
    with torch.inference_mode(), _precision(model, autocast):
        for number, (domain, windows) in enumerate(held_out.items()):
            experts = torch.tensor([number]) if by_domain else None
            each = [float(_lm_loss(model, window[None], experts)) for window in windows]
            losses[domain] = sum(each) / len(each)
    return losses


class _Run:
    """An unfinished tuning: the state that a checkpoint holds, and the next steps."""

    def __init__(
        self,
        model: ReadMeForCausalLM,
        text: TuningText,
        schedule: Schedule,
        teacher: distill.Teacher | None,
        variant: Variant,
        by_domain: bool,
        autocast: bool,
        checkpoint: Path | None,
        on_step: Callable[[str, int, int], None] | None,
    ) -> None:
        self.model = model
        self.text = text
        self.schedule = schedule
        self.teacher = teacher
        self.stages = list(schedule.stages(routers=teacher is not None))
        self.variant = variant
        self.by_domain = by_domain
        self.autocast = autocast
        self.checkpoint = checkpoint
        self.on_step = on_step
        self.stage = 0
        self.step = 0
        self.wall_s = 0.0
        self.losses: list[float] = []
        self.history: list[Measured] = []
        self._moments: dict[str, Tensor] = {}
        self._since = time.perf_counter()
        self._saved = self._since

    def go_through(self, stage: Stage) -> None:
        """Do the remaining steps of a stage, then measure the model."""
        parameters = _parameters(self.model, routers=stage.kind == "router")
        # A new optimizer for each stage, because other parameters learn in it.
        optimizer = torch.optim.AdamW(
            parameters.values(), lr=stage.peak, weight_decay=self.schedule.weight_decay
        )
        checkpoints.put_moments(optimizer, parameters, self._moments)
        for step in range(self.step, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(step)
            self.losses.append(self._learn(optimizer, stage, step))
            self.step = step + 1
            if self.on_step is not None:
                self.on_step(stage.name, self.step, stage.steps)
            if time.perf_counter() - self._saved > _SAVE_EVERY_S and self.step < stage.steps:
                self._moments = checkpoints.moments(optimizer, parameters)
                self.save()
        training = sum(self.losses) / len(self.losses)
        self.stage, self.step, self.losses, self._moments = self.stage + 1, 0, [], {}
        self.measure(stage.name, training)

    def measure(self, name: str, training: float | None) -> None:
        """Measure the model, add the result to the history, and save a checkpoint."""
        by_domain = self._evaluate(self.by_domain)
        done = self.stages[: self.stage]
        last = done[-1] if done else None
        windows = sum(stage.steps * stage.batch for stage in done if stage.kind == "experts")
        seen = last.start + last.steps * last.batch if last else 0
        measured = Measured(
            name,
            sum(by_domain.values()) / len(by_domain),
            by_domain,
            training,
            self._own_experts(),
            self._agreement(),
            windows * self.text.train.windows.shape[1],
            seen / len(self.text.train.windows),
        )
        self.history.append(measured)
        self.save()

    def _learn(self, optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> float:
        windows, domains = self.text.train.take(stage.start + step * stage.batch, stage.batch)
        self.model.train()
        loss: Any
        with _precision(self.model, self.autocast):
            if stage.kind == "router":
                assert self.teacher is not None
                loss = distill.loss(
                    _router_logits(self.model, windows), self.teacher(windows), self.variant
                )
            else:
                loss = _lm_loss(self.model, windows, domains if self.by_domain else None)
        if not torch.isfinite(loss):
            kept = "" if self.checkpoint is None else f"; {self.checkpoint} holds the last good one"
            raise MoesimError(
                f"the loss is {loss.item()} at step {step + 1} of {stage.name}{kept}; "
                "try a lower learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def _evaluate(self, by_domain: bool) -> dict[str, float]:
        held_out = self.text.held_out
        return evaluate(self.model, held_out, by_domain=by_domain, autocast=self.autocast)

    def _own_experts(self) -> dict[str, float] | None:
        """Return losses with each domain's own expert, if one choice serves all layers."""
        choosing = self.teacher is not None and self.model.router is not None
        return self._evaluate(by_domain=True) if choosing else None

    def _agreement(self) -> float | None:
        if self.teacher is None:
            return None
        self.model.train(False)
        shares = []
        with torch.inference_mode(), _precision(self.model, self.autocast):
            for window in torch.cat(list(self.text.held_out.values())):
                logits = _router_logits(self.model, window[None])
                shares.append(distill.agreement(logits, self.teacher(window[None])))
        return sum(shares) / len(shares)

    # --- checkpoints ---

    def save(self) -> None:
        """Write everything needed to resume into one file: the whole file or nothing."""
        if self.checkpoint is None:
            return
        story = {
            "run": self._identity(),
            "stage": self.stage,
            "step": self.step,
            "losses": self.losses,
            "history": [asdict(measured) for measured in self.history],
            "wall_s": self._wall(),
        }
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"moments.{n}": moment for n, moment in self._moments.items()}
        checkpoints.save(self.checkpoint, story, tensors)
        self._saved = time.perf_counter()

    def restore(self) -> None:
        """Load the checkpoint, if there is one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        story, tensors = checkpoints.load(self.checkpoint)
        if story["run"] != self._identity():
            raise MoesimError(
                f"{self.checkpoint} belongs to another run ({story['run']}, not "
                f"{self._identity()}); choose another folder or delete it"
            )
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self._moments = checkpoints.part(tensors, "moments.")
        self.stage, self.step = story["stage"], story["step"]
        self.losses, self.wall_s = story["losses"], story["wall_s"]
        self.history = [Measured(**measured) for measured in story["history"]]

    def _identity(self) -> dict[str, Any]:
        return {
            "schedule": asdict(self.schedule),
            "variant": self.variant,
            "by_domain": self.by_domain,
            "seed": self.text.train.seed,
            "windows": list(self.text.train.windows.shape),
            "routing": self.model.config.routing,
            "num_experts": self.model.config.num_experts,
        }

    def _wall(self) -> float:
        now = time.perf_counter()
        self.wall_s += now - self._since
        self._since = now
        return self.wall_s


def _parameters(model: ReadMeForCausalLM, *, routers: bool) -> dict[str, nn.Parameter]:
    """Return the parameters of routers, or all others; only these get gradients from now on."""
    own = {id(p) for block in model.blocks for p in block.router.parameters()}
    if model.router is not None:
        own |= {id(p) for p in model.router.parameters()}
    chosen = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_((id(parameter) in own) == routers)
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def _router_logits(model: ReadMeForCausalLM, windows: Tensor) -> Tensor:
    """Return logits `[W, T, N]` of the decoupled router, or `[W, T, L, N]` of layer-wise ones."""
    windows = windows.to(model.device)
    if model.router is not None:
        return model.route(windows).cpu()
    model.base.base_model(input_ids=windows, use_cache=False)  # layer routers keep their logits
    layers: list[Any] = [block.router for block in model.blocks]
    stacked = torch.stack([layer.logits for layer in layers], dim=1)
    return stacked.view(*windows.shape, *stacked.shape[1:]).cpu()


def _lm_loss(model: Any, windows: Tensor, experts: Tensor | None = None) -> Tensor:
    """Return the cross entropy of ids `[W, T]`; `experts [W]` replace the router's choice."""
    windows = windows.to(model.device)
    paths: dict[str, Tensor] = {}
    if experts is not None:
        ids = experts.to(model.device)[:, None].expand_as(windows)
        paths = {"path_ids": ids, "path_weights": torch.ones_like(ids, dtype=model.dtype)}
    loss: Tensor = model(input_ids=windows, labels=windows, use_cache=False, **paths).loss
    return loss


def _precision(model: Any, autocast: bool) -> Any:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=autocast)


def _report(listener: Callable[[Measured], None] | None, measured: Measured) -> None:
    if listener is not None:
        listener(measured)
