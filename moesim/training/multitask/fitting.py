"""Fitting a mixture: Adam on the weighted sum of the tasks' losses and the gates' own.

After every epoch the mixture is measured on validation rows as inference would run it, with at most
k experts a task. The best epoch is kept. Every epoch draws batches and random numbers from its own
random stream. So a killed run resumes after its last epoch with the same result as an uninterrupted
run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from moesim.errors import MoesimError, UsageError
from moesim.streams import stream
from moesim.training import checkpoint as checkpoints
from moesim.training.multitask.mixture import Mixture
from moesim.training.multitask.tasks import Examples, Task, total

_EVALUATION_BATCH = 512


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Length and rates of a training.

    Gates learn at `gate_factor` times the rate of all other parameters. Training ends early after
    `patience` epochs without a better one.
    """

    epochs: int
    batch: int = 512
    rate: float = 1e-3
    gate_factor: float = 1.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} ({value}) must be at least 1")
        for name in ("rate", "gate_factor"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} ({getattr(self, name)}) must be positive")


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses of an epoch, and how many experts it ran."""

    training: float  # mean of the batches' losses, with the gates' own
    validation: float  # weighted sum of the tasks' losses, hardened
    pairs: int  # (row, expert) that were run in training
    share: float  # of all pairs


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished training; the mixture is left as after epoch `best`, counted from 0."""

    history: tuple[Epoch, ...]
    best: int


@dataclass(frozen=True, slots=True)
class Score:
    """A task's mean loss and, for classes, the share of rows that are right."""

    loss: float
    accuracy: float | None


def fit(
    model: Mixture,
    tasks: Sequence[Task],
    train: Examples,
    validation: Examples,
    settings: FitSettings,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Fit a mixture in place.

    With a `checkpoint` file, work is saved there after every epoch; if it exists, the run resumes
    from it. `on_step(done, of)` reports steps. Raise `UsageError`, before any work, if a task has
    no data or the mixture no such task. Raise `MoesimError` that names the step if a loss is not
    finite (the last checkpoint stays), or if the checkpoint belongs to another run.
    """
    _check_tasks(model, tasks)
    train.check(tasks, "training")
    validation.check(tasks, "validation")
    run = _Run(model, tasks, train, validation, settings, checkpoint, on_step)
    run.restore()
    while not run.finished:
        run.epoch()
    model.load_state_dict(run.best_state)
    return Fitted(tuple(run.history), run.best)


@torch.no_grad()
def evaluate(
    model: Mixture, tasks: Sequence[Task], rows: Examples, *, hardened: bool = True
) -> dict[str, Score]:
    """Return each task's score; `hardened` as in inference, otherwise as in training.

    Raise `UsageError` for a task without data.
    """
    _check_tasks(model, tasks)
    rows.check(tasks, "evaluation")
    model.eval()
    sums = {task.name: torch.zeros(3, dtype=torch.float64) for task in tasks}
    for start in range(0, len(rows), _EVALUATION_BATCH):
        batch = rows[slice(start, start + _EVALUATION_BATCH)]
        outputs = model(batch.inputs, hardened=hardened).outputs
        for task in tasks:
            mask_B = batch.mask(task)
            pair = outputs[task.name][mask_B], batch.targets[task.name][mask_B]
            right = torch.zeros(()) if task.right is None else task.right(*pair).sum()
            sums[task.name] += torch.stack([task.losses(*pair).sum(), right, mask_B.sum()])
    return {task.name: _score(task, *sums[task.name].tolist()) for task in tasks}


def weighted(tasks: Sequence[Task], scores: dict[str, Score]) -> float:
    """Return the weighted sum of the tasks' losses, by which settings and epochs are chosen."""
    return sum(task.weight * scores[task.name].loss for task in tasks)


def options_of(gate: nn.Module) -> dict[str, str]:
    """Return a gate's kind and its public attributes: arguments, and numbers derived from them."""
    options = {
        key: repr(value)
        for key, value in vars(gate).items()
        if key != "training" and not key.startswith("_")
    }
    return options | {"kind": type(gate).__name__}


class _Run:
    """An unfinished training: the state that a checkpoint holds, and the next epochs."""

    def __init__(
        self,
        model: Mixture,
        tasks: Sequence[Task],
        train: Examples,
        validation: Examples,
        settings: FitSettings,
        checkpoint: Path | None,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        self.model = model
        self.tasks = tasks
        self.train = train
        self.validation = validation
        self.settings = settings
        self.checkpoint = checkpoint
        self.on_step = on_step
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}
        self.steps = -(-len(train) // settings.batch)  # of an epoch
        self.optimizer = torch.optim.Adam(_groups(model, settings))

    @property
    def best(self) -> int:
        """Return the epoch with the least validation loss, the first of equals."""
        return min(range(len(self.history)), key=lambda epoch: self.history[epoch].validation)

    @property
    def finished(self) -> bool:
        done, patience = len(self.history), self.settings.patience
        if patience is not None and done and done - 1 - self.best >= patience:
            return True
        return done >= self.settings.epochs

    def epoch(self) -> None:
        """Pass once more over the training rows, then evaluate and save."""
        number = len(self.history)
        draw = stream(self.settings.seed, "multitask", number)
        order = torch.from_numpy(draw.permutation(len(self.train)))
        losses, pairs = [], 0
        with torch.random.fork_rng(devices=[]):
            # A seed of the epoch's own stream, so that a resumed run draws the same numbers.
            torch.manual_seed(int(draw.integers(2**62)))
            batches = torch.split(order, self.settings.batch)
            for step, rows in enumerate(batches, number * self.steps + 1):
                loss, run = self._learn(self.train[rows], step)
                losses.append(loss)
                pairs += run
                if self.on_step is not None:
                    self.on_step(step, self.settings.epochs * self.steps)
        validation = weighted(self.tasks, evaluate(self.model, self.tasks, self.validation))
        if not math.isfinite(validation):
            raise self._not_finite("validation loss", validation, (number + 1) * self.steps)
        share = pairs / (len(self.train) * len(self.model.experts))
        self.history.append(Epoch(sum(losses) / len(losses), validation, pairs, share))
        if self.best == number:
            # A copy, because later epochs change the parameters in place.
            self.best_state = {
                name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
            }
        self._save()

    def _learn(self, rows: Examples, step: int) -> tuple[float, int]:
        self.model.train()
        mixed = self.model(rows.inputs)
        loss = total(self.tasks, mixed.outputs, rows) + mixed.loss
        if not torch.isfinite(loss):
            raise self._not_finite("loss", loss.item(), step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), mixed.activity.pairs

    def _not_finite(self, what: str, value: float, step: int) -> MoesimError:
        kept = "no checkpoint was kept"
        if self.checkpoint is not None and self.history:
            kept = f"{self.checkpoint} holds the last good one, of epoch {len(self.history)}"
        return MoesimError(
            f"the {what} is {value} at step {step}; {kept}; try a lower learning rate"
        )

    # --- checkpoints ---

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        moments = checkpoints.moments(self.optimizer, dict(self.model.named_parameters()))
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_state.items()}
        story = {"run": self._identity(), "history": [asdict(epoch) for epoch in self.history]}
        tensors |= {f"moments.{name}": moment for name, moment in moments.items()}
        checkpoints.save(self.checkpoint, story, tensors)

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
        self.model.load_state_dict(checkpoints.part(tensors, "model."))
        self.best_state = checkpoints.part(tensors, "best.")
        checkpoints.put_moments(
            self.optimizer,
            dict(self.model.named_parameters()),
            checkpoints.part(tensors, "moments."),
        )
        self.history = [Epoch(**epoch) for epoch in story["history"]]

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for one run to resume another."""
        tensors = [self.train.inputs, *self.train.targets.values(), *self.train.known.values()]
        return {
            "settings": asdict(self.settings),
            "tasks": {task.name: task.weight for task in self.tasks},
            "gates": [options_of(gate) for gate in self.model.gates],
            "parameters": {n: list(p.shape) for n, p in self.model.named_parameters()},
            "data": [crc32(tensor.contiguous().numpy().tobytes()) for tensor in tensors],
        }


def _check_tasks(model: Mixture, tasks: Sequence[Task]) -> None:
    names, towers = [task.name for task in tasks], list(model.towers)
    if names != towers:
        raise UsageError(f"the mixture has towers of {towers}, but the tasks are {names}")


def _groups(model: Mixture, settings: FitSettings) -> list[dict[str, Any]]:
    gates = list(model.gates.parameters())
    own = {id(parameter) for parameter in gates}
    others = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = ((others, settings.rate), (gates, settings.rate * settings.gate_factor))
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def _score(task: Task, loss: float, right: float, count: float) -> Score:
    return Score(loss / count, None if task.right is None else right / count)
