"""A stream of tasks: requests of one task and some examples each, and their trace.

A trace holds the gates' choices and each request's task and length, and nothing of the examples.
So data that may not be redistributed is not in its trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesim.errors import UsageError
from moesim.files import may_replace
from moesim.record.generation import evaluating
from moesim.record.header import describe, is_normalised
from moesim.record.recorder import Recorder, Recording
from moesim.streams import stream
from moesim.trace import Trace, TraceWriter
from moesim.trace.meta import HEADER
from moesim.training.multitask.served import ServedMixture
from moesim.training.multitask.tasks import Examples


@dataclass(frozen=True, slots=True, eq=False)
class TaskRequest:
    """A task by name, and its examples `[C, ...]`; C is at least 1."""

    task: str
    examples: Tensor

    def __post_init__(self) -> None:
        if not self.examples.ndim or not len(self.examples):
            raise UsageError(
                f"a request of task {self.task!r} has no examples; it needs at least 1"
            )


def draw_requests(
    tasks: Sequence[str], rows: Examples, count: int, *, lengths: tuple[int, int], seed: int
) -> list[TaskRequest]:
    """Draw `count` requests of mixed tasks, with `lengths` (least, most) examples from `rows`.

    They depend on these arguments alone, so models with different gates get the same requests.
    Raise `UsageError` if there is nothing to draw.
    """
    low, high = lengths
    if count < 1:
        raise UsageError(f"the number of requests ({count}) must be at least 1")
    if not 1 <= low <= high:
        raise UsageError(f"lengths ({low} to {high}) must rise from at least 1")
    if not tasks or not len(rows):
        raise UsageError(f"requests of {len(tasks)} tasks and {len(rows)} examples: none can be 0")
    draw = stream(seed, "task requests")
    chosen = draw.integers(len(tasks), size=count)
    sizes = draw.integers(low, high + 1, size=count)
    return [
        TaskRequest(tasks[task], rows.inputs[torch.from_numpy(draw.integers(len(rows), size=size))])
        for task, size in zip(chosen, sizes, strict=True)
    ]


def record_tasks(
    model: ServedMixture,
    requests: Sequence[TaskRequest],
    out: str | Path,
    *,
    provenance: dict[str, Any] | None = None,
    force: bool = False,
) -> Trace:
    """Serve the requests one after another and write the gates' choices as a trace at `out`.

    A request of C examples has C prompt rows and one output token, so C rows; its domain is its
    task. `provenance` is added to the header's. Raise `UsageError`, before any is served, for
    requests that the model cannot serve. Raise `OutputError` if `out` exists (without `force`) or
    cannot be written.
    """
    if not requests:
        raise UsageError("no requests were given")
    for request in requests:
        model.number_of(request.task)
    may_replace(Path(out), force, (HEADER,))
    recorder = Recorder(model)
    served = _served(recorder, model, requests)
    # Only now: the choices show how many experts a row has, and whether weights sum to one.
    weights_RLK = np.concatenate([recording.gate_weights[0] for recording in served])
    meta = describe(
        model,
        recorder.layers,
        top_k=weights_RLK.shape[-1],
        normalised=is_normalised(weights_RLK),
        prediction_depth=0,
        provenance={
            **(provenance or {}),
            "source": "recorded from a running model",
            "rows": "examples of one task a request; nothing is decoded",
        },
    )
    with TraceWriter(out, meta, force=force) as writer:
        for request, recording in zip(requests, served, strict=True):
            writer.add_request(
                expert_ids=recording.expert_ids[0],
                gate_weights=recording.gate_weights[0],
                prompt_tokens=len(request.examples),
                output_tokens=1,
                domain=request.task,
            )
    return writer.trace


@torch.no_grad()
def _served(
    recorder: Recorder, model: ServedMixture, requests: Sequence[TaskRequest]
) -> list[Recording]:
    recordings = []
    with evaluating(model), recorder:
        for request in requests:
            model(request.examples[None], request.task)
            recordings.append(recorder.take())
    return recordings
