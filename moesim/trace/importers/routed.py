"""`routed_experts` in the answers of SGLang and vLLM: (tokens, layers, k) ids of one request.

An answer holds them as base64 of raw int32 (SGLang), as base64 of a `.npy` file (vLLM), or as
nested lists. Layers without experts are filled with one repeated id; they are left out and named.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError, shown
from moesim.trace.importers.arrays import read_npy
from moesim.trace.importers.base import MOST_EXPERTS, Imported, Options
from moesim.trace.importers.build import built, most_id
from moesim.trace.importers.json_text import integers
from moesim.trace.importers.uses import Arrays

__all__ = ["Answer", "Ids", "decoded", "ids_of", "imported", "nested", "npy_ids"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answer:
    """The routing of one request, and where in the file it stands.

    `ids` (rows, layers, k); `prompt_tokens` of the request; `with_prompt`: whether the prompt's
    rows are there.
    """

    where: str
    ids: Ids
    prompt_tokens: int | None
    with_prompt: bool = True


def decoded(text: str, path: Path, where: str) -> bytes:
    """Return the bytes of a base64 text. Raise `SourceError` where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceError(path, where, f"routed_experts is not base64: {error}") from None


def nested(value: Any, path: Path, where: str) -> Ids:
    """Return nested lists [token][layer][k] as an array. Raise `SourceError` for ragged ones."""
    if not isinstance(value, list):
        raise SourceError(path, where, f"routed_experts must be a list, not {shown(value)}")
    rows = []
    for number, row in enumerate(value):
        if not isinstance(row, list):
            raise SourceError(path, where, f"token {number} must be a list, not {shown(row)}")
        rows.append([integers(one, path, where, f"token {number}", MOST_EXPERTS) for one in row])
    if not rows or not rows[0] or not rows[0][0]:
        raise SourceError(path, where, "must hold at least one token, one layer and one expert")
    layers, k = len(rows[0]), len(rows[0][0])
    for number, row in enumerate(rows):
        if len(row) != layers or any(len(one) != k for one in row):
            raise SourceError(
                path, where, f"token {number} must have {layers} layers of {k} experts as token 0"
            )
    return np.array(rows, np.int64)


def ids_of(array: npt.NDArray[Any], path: Path, where: str) -> Ids:
    """Return an array (tokens, layers, k) of ids. Raise `SourceError` for another."""
    if array.ndim != 3 or array.dtype.kind not in "iu" or not array.size:
        raise SourceError(
            path,
            where,
            "routed_experts must hold integers of shape (tokens, layers, k), not "
            f"{array.dtype} of shape {array.shape}",
        )
    return array.astype(np.int64)


def npy_ids(data: bytes, path: Path, where: str) -> Ids:
    """Return the ids in the bytes of a `.npy` file."""
    try:
        array = read_npy(path, where, io.BytesIO(data), len(data))
    except SourceError:
        raise
    except Exception as error:  # numpy raises its own on a damaged header
        raise SourceError(path, where, f"routed_experts is no .npy: {error}") from None
    return ids_of(array, path, where)


def imported(
    path: Path, name: str, answers: Sequence[Answer], options: Options, **extra: Any
) -> Imported:
    """Return the trace of the answers of one file; all have the same layers and k."""
    if not answers:
        raise SourceError(path, "", "holds no routed_experts")
    first = answers[0]
    most = most_id(path, options)
    for answer in answers:
        if answer.ids.shape[1:] != first.ids.shape[1:]:
            raise SourceError(
                path,
                answer.where,
                f"has {answer.ids.shape[1:]} layers and experts a token, and "
                f"{first.where or 'the first'} has {first.ids.shape[1:]}",
            )
        if answer.with_prompt != first.with_prompt:
            raise SourceError(
                path, answer.where, "has no rows of its prompt, unlike the first, or the reverse"
            )
        if (answer.prompt_tokens is None) != (first.prompt_tokens is None):
            raise SourceError(path, answer.where, "must say prompt_tokens as the others do")
    layers = _routed_layers(answers)
    if not layers:
        raise SourceError(path, "", "has no layer whose tokens use distinct experts")
    notes = []
    total = first.ids.shape[1]
    if len(layers) < total:
        left = [layer for layer in range(total) if layer not in layers]
        notes.append(f"layers without routing are left out: {', '.join(map(str, left))}")
    for answer in answers:
        _check(path, answer, layers, most)
    prompts = [answer.prompt_tokens for answer in answers]
    known = options.prompt_tokens is None and None not in prompts
    if known:
        extra["prompt_tokens"] = prompts
    if not first.with_prompt:
        extra["prompt_rows"] = "absent"
    arrays = Arrays(
        np.concatenate([answer.ids[:, layers] for answer in answers]),
        None,
        np.array([len(answer.ids) for answer in answers]),
        tuple(layers),
        [answer.where for answer in answers],
    )
    return built(path, name, arrays, options, notes=notes, **extra)


def _routed_layers(answers: Sequence[Answer]) -> list[int]:
    """Return the layers that are not filled with one repeated id (0 or -1) throughout."""
    ids = answers[0].ids
    if ids.shape[2] == 1:  # one id alone repeats nothing
        filled = np.array([all((a.ids[:, n] == -1).all() for a in answers)
                           for n in range(ids.shape[1])])  # fmt: skip
    else:
        filled = np.array(
            [
                any(all((a.ids[:, n] == value).all() for a in answers) for value in (0, -1))
                for n in range(ids.shape[1])
            ]
        )
    return np.flatnonzero(~filled).tolist()


def _check(path: Path, answer: Answer, layers: list[int], most: int) -> None:
    ids = answer.ids[:, layers]
    if (ids == -1).any():
        row, layer, _ = np.argwhere(ids == -1)[0]
        raise SourceError(
            path,
            answer.where,
            f"token {row} has no expert at layer {layers[layer]} (-1): its routing was not "
            "recorded, as for a cached prefix; record without cached prefixes",
        )
    wrong = (ids < 0) | (ids > most)
    if wrong.any():
        row, layer, place = np.argwhere(wrong)[0]
        raise SourceError(
            path,
            answer.where,
            f"token {row}, layer {layers[layer]}: expert id {ids[row, layer, place]} is out of "
            f"range for {most + 1} experts",
        )
    ordered = np.sort(ids, axis=-1)
    repeated = ordered[..., 1:] == ordered[..., :-1]
    if repeated.any():
        row, layer, place = np.argwhere(repeated)[0]
        raise SourceError(
            path,
            answer.where,
            f"token {row}, layer {layers[layer]}: expert id {ordered[row, layer, place]} is "
            "repeated",
        )
