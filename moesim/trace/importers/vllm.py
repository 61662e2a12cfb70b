"""`routed_experts` of vLLM: (tokens, layers, k) ids of one completion.

A server started with `--enable-return-routed-experts` adds them to each choice, as base64 of a
`.npy` file or as lists; older ones keep the prompt's apart in `prompt_routed_experts`. In Python
they are `CompletionOutput.routed_experts`, whose arrays can be saved as `.npy` or `.npz`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.errors import SourceError, shown
from moesim.trace.importers.arrays import arrays_in_zip, npy_array
from moesim.trace.importers.base import Format, Imported, Options, small_number
from moesim.trace.importers.routed import Answer, Ids, decoded, ids_of, imported, nested, npy_ids
from moesim.trace.importers.source import Glimpse, read_document

__all__ = ["FORMAT"]

_UNSAID: Final = object()


def _sniff(glimpse: Glimpse) -> bool:
    if len(glimpse.npy_shape) == 3:
        return True
    if glimpse.arrays:
        return all(name.startswith("routed_experts") for name in glimpse.arrays)
    first = glimpse.first_object
    return "meta_info" not in first and bool(_completions(first, ""))


def _read(path: Path, options: Options) -> Imported:
    glimpse = Glimpse(path)
    if glimpse.npy_shape:
        answers = [Answer("", ids_of(npy_array(path), path, ""), None)]
    elif glimpse.members or glimpse.head.startswith(b"PK"):
        arrays = arrays_in_zip(path)
        answers = [Answer(name, ids_of(array, path, name), None) for name, array in arrays.items()]
    else:
        answers = [
            answer
            for where, record in read_document(path)
            for answer in _answers(path, where, record)
        ]
    made = imported(path, FORMAT.name, answers, options)
    if answers[0].prompt_tokens is None and options.prompt_tokens is None:
        made.notes.append(
            "all tokens count as prompt, because the file does not say where a prompt ends; state "
            "it with --prompt-tokens"
        )
    return made


def _completions(record: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return place and content of each completion of an answer that has routed experts."""
    if not isinstance(record, dict):
        return []
    if "routed_experts" in record:
        return [(where, record)]
    for key in ("choices", "outputs"):
        if isinstance(record.get(key), list):
            return [
                (f"{where} {key[:-1]} {number}".strip(), choice)
                for number, choice in enumerate(record[key])
                if isinstance(choice, dict) and "routed_experts" in choice
            ]
    return []


def _answers(path: Path, where: str, record: Any) -> list[Answer]:
    completions = _completions(record, where)
    if not completions:
        raise SourceError(path, where, f"has no routed_experts: {shown(record)}")
    prompt = record.get("prompt_routed_experts")
    ahead = None if prompt is None else _ids(path, where, prompt)
    stated = _prompt_tokens(path, where, record)
    answers = []
    for place, completion in completions:
        ids = _ids(path, place, completion["routed_experts"])
        count = stated
        if ahead is not None:
            if ahead.shape[1:] != ids.shape[1:]:
                raise SourceError(
                    path, place, "has other layers or experts than prompt_routed_experts"
                )
            if stated not in (None, len(ahead)):
                raise SourceError(
                    path, place, f"has {len(ahead)} prompt tokens with routing, not {stated}"
                )
            count, ids = len(ahead), np.concatenate([ahead, ids])
        rows = _fed_back(path, place, record, completion, ids, count)
        answers.append(Answer(place, ids[:rows], count))
    return answers


def _fed_back(
    path: Path, where: str, record: dict[str, Any], completion: dict[str, Any], ids: Ids,
    prompt: int | None,
) -> int:  # fmt: skip
    """Return the rows of tokens that were fed back, which leaves out the last generated one.

    Some versions add a row for it, which may be filled with zeros. Raise `SourceError` where the
    rows disagree with the counts of tokens.
    """
    if prompt is not None and prompt > len(ids):
        raise SourceError(
            path, where, f"has routing of {len(ids)} tokens, fewer than its {prompt} prompt tokens"
        )
    usage = record.get("usage")
    if isinstance(completion.get("token_ids"), list):
        count: Any = len(completion["token_ids"])
    elif isinstance(usage, dict) and len(record.get("choices", ())) == 1:
        count = usage.get("completion_tokens", _UNSAID)
    else:
        count = _UNSAID
    if count is _UNSAID or prompt is None:
        return len(ids)
    output = small_number(count, path, where, "completion_tokens")
    if len(ids) not in (prompt + output - 1, prompt + output):
        raise SourceError(
            path,
            where,
            f"has routing of {len(ids)} tokens, and {prompt} prompt and {output} output tokens",
        )
    return prompt + output - 1


def _prompt_tokens(path: Path, where: str, record: dict[str, Any]) -> int | None:
    ids = record.get("prompt_token_ids")
    if isinstance(ids, list):
        return len(ids)
    usage = record.get("usage")
    if isinstance(usage, dict) and "prompt_tokens" in usage:
        return small_number(usage["prompt_tokens"], path, where, "usage.prompt_tokens")
    return None


def _ids(path: Path, where: str, value: Any) -> Ids:
    """Return ids as base64 of a `.npy`, as base64 of numbers with their shape, or as lists."""
    if value is None:
        raise SourceError(
            path,
            where,
            "routed_experts is null: start the server with --enable-return-routed-experts",
        )
    if isinstance(value, str):
        return npy_ids(decoded(value, path, where), path, where)
    if isinstance(value, dict):
        return _shaped(path, where, value)
    return nested(value, path, where)


def _shaped(path: Path, where: str, value: dict[str, Any]) -> Ids:
    """Return ids that a client keeps as `data` (base64), `shape` and perhaps `dtype`."""
    text, shape = value.get("data"), value.get("shape")
    if not isinstance(text, str) or not isinstance(shape, list) or len(shape) != 3:
        raise SourceError(path, where, "routed_experts must have data (base64) and a shape of 3")
    sizes = [small_number(size, path, where, "shape", 2**24) for size in shape]
    data, count = decoded(text, path, where), math.prod(sizes)
    width = {1: "u1", 2: "<i2", 4: "<i4"}.get(len(data) // count if count else 0)
    if width is None or len(data) % count:
        raise SourceError(path, where, f"holds {len(data)} bytes, and the shape is {shape}")
    name = value.get("dtype", np.dtype(width).name)
    if name not in (np.dtype(width).name, f"torch.{np.dtype(width).name}"):
        raise SourceError(
            path, where, f"dtype is {shown(name)}, and ids have {len(data) // count} bytes"
        )
    return ids_of(np.frombuffer(data, width).reshape(sizes), path, where)


FORMAT = Format(
    "vllm",
    "vLLM's answers (JSON or JSON lines) with routed_experts, or such arrays as .npy or .npz",
    _sniff,
    _read,
)
