"""From prompts to a trace: `generate()` runs in batches with the recorder attached.

A request of p prompt tokens that generates n has p + n - 1 rows: its prompt's, then one for every
generated token but the last, which is never fed back. In a batch, shorter prompts are padded on the
left, and finished requests run until the last one is finished. Both are cut away here. An
encoder-decoder records its decoder, whose prompt is the start token.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesim.errors import TraceError, UsageError, first_line
from moesim.files import as_path, may_replace
from moesim.progress import Counter
from moesim.record.calls import Adapter
from moesim.record.header import describe, is_normalised, training_record
from moesim.record.loading import load_model
from moesim.record.plain_models import PlainModel
from moesim.record.prompts import Prompt, read_prompts
from moesim.record.recorder import Recorder, Recording
from moesim.record.tokens import content_of, tokens_of
from moesim.record.wrappers import check_generates, feels_padding, text_model, unwrapped
from moesim.trace import Trace, TraceMeta, TraceWriter
from moesim.trace.meta import HEADER


@dataclass(frozen=True, slots=True)
class _Request:
    """A tokenized prompt. `limit` is the most tokens it may generate."""

    tokens: Sequence[int]
    limit: int
    domain: str | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """One request's part of the trace: arrays as in `Recording`, but only its own rows."""

    prompt_tokens: int
    output_tokens: int
    domain: str | None
    arrays: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, otherwise drawn with this seed."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    ignore_end: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"temperature ({self.temperature}) must be at least 0 (greedy)")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p ({self.top_p}) must be above 0 and at most 1")

    def described(self) -> dict[str, Any]:
        """Return the settings that change what is drawn, for the header."""
        seed = self.seed if self.temperature else None
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        return {**drawn, "ignore_end": True} if self.ignore_end else drawn


def record(
    model: Any,
    tokenizer: Any,
    prompts: str | Path | Sequence[Prompt | str],
    out: str | Path,
    *,
    max_new_tokens: int = 32,
    batch_size: int = 8,
    prediction_depth: int = 0,
    probabilities: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
    ignore_end: bool = False,
    provenance: dict[str, Any] | None = None,
    force: bool = False,
    progress: Counter | None = None,
    adapter: Adapter | None = None,
) -> Trace:
    """Generate from `prompts` and write the routers' decisions as a trace folder at `out`.

    `model` is a model object, a Hub id or a local folder. `tokenizer` may be None for the latter
    two, and for prompts given as tokens. `prompts` are a file (`read_prompts`), texts or `Prompt`s,
    one request each, in this order. `prediction_depth` records the choices of the gates of that
    many following layers for each layer's hidden state. `probabilities` records the routers' full
    scores, as distributions. `temperature` 0 is greedy. Longer prompts are cut to
    `max_prompt_tokens`. With `ignore_end` no end token is ever drawn, and every request generates
    its limit. `provenance` is added to the header's. An `adapter` reads a model whose experts are
    not those of transformers. With it, `model` may be any module from ids of tokens to logits,
    which is recorded greedily, one request at a time. Of the model's own generation settings only
    the special tokens count.
    torch's random generator, the model's mode, its settings and its hooks are restored afterwards.

    Raise `UsageError` for a model or prompts that cannot be recorded. Raise `OutputError` if `out`
    exists (without `force`) or cannot be written. Raise `TraceError` if rows do not add up.
    """
    sampling = Sampling(temperature, top_p, seed, ignore_end)
    limits = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "max_prompt_tokens": max_prompt_tokens,
    }
    for name, value in limits.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} ({value}) must be at least 1")
    out = as_path(out)
    may_replace(out, force, (HEADER,))
    source, checked = _prompts(prompts)
    if isinstance(model, str | Path):
        model, own_tokenizer = load_model(model)
        tokenizer = tokenizer or own_tokenizer
    model = text_model(model)
    if adapter is not None and not callable(getattr(model, "generate", None)):
        model, batch_size = PlainModel(model), 1
    inner = unwrapped(model)
    check_generates(inner)
    requests = [_tokenize(p, tokenizer, max_new_tokens, max_prompt_tokens) for p in checked]
    recorder = Recorder(
        model, prediction_depth=prediction_depth, probabilities=probabilities, adapter=adapter
    )
    story = {
        **(provenance or {}),
        "source": "recorded from a running model",
        "prompts": {**source, "requests": len(requests)},
        "generation": {**limits, **sampling.described()},
    }
    with ExitStack() as stack:
        stack.enter_context(evaluating(inner))
        stack.enter_context(_seeded(inner.device, seed))
        writer: TraceWriter | None = None
        for start, batch in _batches(requests, batch_size, equal=feels_padding(inner)):
            if progress is not None:
                progress(start, len(requests))
            rows = _record_batch(recorder, model, batch, sampling, start)
            if writer is None:  # top-k and normalisation are known only after the first batch
                meta = _header(recorder, inner, rows, story)
                writer = stack.enter_context(TraceWriter(out, meta, force=force))
            for request in rows:
                writer.add_request(
                    **request.arrays,
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=request.output_tokens,
                    domain=request.domain,
                )
        if progress is not None:
            progress(len(requests), len(requests))
        assert writer is not None
        return writer.close()


def _batches(
    requests: Sequence[_Request], size: int, *, equal: bool
) -> Iterator[tuple[int, Sequence[_Request]]]:
    """Yield the first number and the requests of each batch, with `equal` prompts of one length."""
    start = 0
    while start < len(requests):
        stop, length = start, len(requests[start].tokens)
        while stop < min(start + size, len(requests)):
            if equal and len(requests[stop].tokens) != length:
                break
            stop += 1
        yield start, requests[start:stop]
        start = stop


def _header(
    recorder: Recorder, model: Any, rows: Sequence[_Rows], story: dict[str, Any]
) -> TraceMeta:
    """Return the header; the first batch shows how many experts a row has, and their weights."""
    weights = np.concatenate([request.arrays["gate_weights"] for request in rows])
    facts: dict[str, Any] = {"device": model.device.type}
    if recorder.scoring is not None:
        facts["probabilities"] = recorder.scoring
    if recorder.idle:
        facts["layers_left_out"] = recorder.idle
    if (training := training_record(model)) is not None:
        facts["training"] = training
    return describe(
        model,
        recorder.layers,
        top_k=weights.shape[-1],
        normalised=is_normalised(weights),
        prediction_depth=recorder.prediction_depth,
        provenance={**story, **facts},
    )


def _prompts(prompts: str | Path | Sequence[Prompt | str]) -> tuple[dict[str, Any], list[Prompt]]:
    """Return the header's entry for the prompts, and the prompts."""
    source: dict[str, Any] = {}
    if isinstance(prompts, str | Path):
        source["file"] = Path(prompts).name
        prompts = read_prompts(prompts)
    texts = [Prompt(p) if isinstance(p, str) else p for p in prompts]
    placed = [replace(p, where=p.where or f"prompt {n}") for n, p in enumerate(texts)]
    if not placed:
        raise UsageError("no prompts were given")
    content = "\0".join(map(content_of, placed))
    source["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    return source, placed


def _tokenize(prompt: Prompt, tokenizer: Any, limit: int, longest: int | None) -> _Request:
    tokens = tokens_of(prompt, tokenizer)
    return _Request(tokens[:longest], prompt.max_new_tokens or limit, prompt.domain)


def _record_batch(
    recorder: Recorder, model: Any, batch: Sequence[_Request], sampling: Sampling, first: int
) -> list[_Rows]:
    """Generate for a batch, and cut every request's rows out of the recording."""
    inner = unwrapped(model)
    width = max(len(request.tokens) for request in batch)
    end = _end_tokens(inner)
    pad = _token(inner, "pad_token_id")
    # Padding is masked, so any id will serve.
    pad = (*end, 0)[0] if pad is None else int(pad)
    ids = torch.tensor([[pad] * (width - len(r.tokens)) + list(r.tokens) for r in batch])
    mask = torch.tensor([[0] * (width - len(r.tokens)) + [1] * len(r.tokens) for r in batch])
    more: dict[str, Any] = {}
    if hasattr(inner, "inputs_of"):  # a model of ours whose gates may route by domain
        more = inner.inputs_of([request.domain for request in batch])
    with recorder, torch.no_grad():
        chosen = _generation_config(inner, max(r.limit for r in batch), pad, end, sampling)
        with _refusals(inner), _own_settings_aside(inner, chosen):
            generated = model.generate(
                input_ids=ids.to(inner.device),
                attention_mask=mask.to(inner.device),
                generation_config=chosen,
                **more,
            )
        recording = recorder.take()
    if inner.config.is_encoder_decoder:
        width, lengths = 1, [1] * len(batch)  # the decoder's prompt is its start token
    else:
        lengths = [len(request.tokens) for request in batch]
    columns = generated.shape[1] - 1
    if recording.num_columns != columns or recording.expert_ids.shape[0] != len(batch):
        raise TraceError(
            "",
            f"requests {first} to {first + len(batch) - 1}",
            f"{len(batch)} sequences of {generated.shape[1]} tokens need {len(batch)} x {columns} "
            f"rows in each of {len(recorder.layers)} layers, but "
            f"{recording.expert_ids.shape[0]} x {recording.num_columns} were recorded",
        )
    outputs = generated[:, width:].tolist()
    rows = [
        _cut(
            recording,
            number,
            width - length,
            length,
            _num_output(output, request.limit, end),
            request,
        )
        for number, (request, length, output) in enumerate(
            zip(batch, lengths, outputs, strict=True)
        )
    ]
    for number, request in enumerate(rows, start=first):
        if not np.isfinite(request.arrays["gate_weights"]).all():
            raise TraceError(
                "",
                f"request {number}",
                f"{type(inner).__name__} gave a gate weight that is no number. If it was padded to "
                "the length of another prompt, record with a batch size of 1",
            )
    return rows


@contextmanager
def _own_settings_aside(model: Any, chosen: Any) -> Iterator[None]:
    """Let none of the model's own generation settings fill what `chosen` leaves open.

    transformers takes every value that a caller does not set from the model, like a time limit,
    strings that end a text, or a guidance that runs the model twice.
    """
    own = getattr(model, "generation_config", None)
    model.generation_config = copy.deepcopy(chosen)
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _refusals(model: Any) -> Iterator[None]:
    """Raise `UsageError` where a model of this class or configuration generates nothing."""
    kind = type(model).__name__
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        hint = (
            "; an encoder-decoder needs decoder_start_token_id in its configuration"
            if getattr(model.config, "is_encoder_decoder", False)
            else ""
        )
        raise UsageError(f"{kind} cannot generate from these prompts: {reason}{hint}") from error


def _cut(
    recording: Recording, number: int, start: int, prompt: int, output: int, request: _Request
) -> _Rows:
    own = slice(start, start + prompt + output - 1)
    arrays = {
        name: array[number, own]
        for name in Recording.__slots__
        if (array := getattr(recording, name)) is not None
    }
    return _Rows(prompt, output, request.domain, arrays)


def _num_output(output: Sequence[int], limit: int, end: Sequence[int]) -> int:
    """Return how many tokens a request generated: its limit, or up to its first end token."""
    for number, token in enumerate(output[:limit], start=1):
        if token in end:
            return number
    return min(limit, len(output))


def _end_tokens(model: Any) -> list[int]:
    end = _token(model, "eos_token_id")
    if end is None:
        return []
    return [int(token) for token in end] if isinstance(end, list | tuple) else [int(end)]


def _token(model: Any, name: str) -> Any:
    for place in (getattr(model, "generation_config", None), model.config):
        if getattr(place, name, None) is not None:
            return getattr(place, name)
    return None


def _generation_config(model: Any, limit: int, pad: int, end: list[int], sampling: Sampling) -> Any:
    """Return a new generation config, so that none of the model's defaults changes the rows."""
    from transformers import GenerationConfig

    drawn = sampling.temperature > 0
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=limit,
        min_new_tokens=limit if sampling.ignore_end else None,
        do_sample=drawn,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        repetition_penalty=1.0,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=end or None,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        **(
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if drawn
            else {}
        ),
    )


@contextmanager
def evaluating(model: Any) -> Any:
    """Put the model in evaluation mode within the block, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Any:
    """Seed torch for the block, and restore its generators' states afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
