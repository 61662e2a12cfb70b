"""`meta_info.routed_experts` of SGLang: base64 of int32 (tokens, layers, k), flattened.

A server started with `--enable-return-routed-experts` adds them to an answer whose request says
`return_routed_experts`. The answer does not say how many layers and experts a token has. The rows
are those of the tokens from `routed_experts_start_len` to the last but one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import SourceError, shown
from moesim.trace.importers.base import Format, Imported, Options, need, small_number
from moesim.trace.importers.routed import Answer, Ids, decoded, imported, nested
from moesim.trace.importers.source import Glimpse, read_document

__all__ = ["FORMAT"]


def _infos(record: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return place and `meta_info` of an answer: its own, or those of its choices."""
    if not isinstance(record, dict):
        return []
    found = [(where, record.get("meta_info"))]
    choices = record.get("choices")
    if isinstance(choices, list):
        found += [
            (f"{where} choice {number}".strip(), choice.get("meta_info"))
            for number, choice in enumerate(choices)
            if isinstance(choice, dict)
        ]
    return [(place, info) for place, info in found if isinstance(info, dict)]


def _sniff(glimpse: Glimpse) -> bool:
    infos = _infos(glimpse.first_object, "")
    return any("routed_experts" in info for _, info in infos)


def _read(path: Path, options: Options) -> Imported:
    answers = []
    for where, record in read_document(path):
        infos = _infos(record, where)
        if not infos:
            raise SourceError(path, where, f"must have meta_info, unlike {shown(record)}")
        answers += [_answer(path, place, info, options) for place, info in infos]
    return imported(path, FORMAT.name, answers, options)


def _answer(path: Path, where: str, info: dict[str, Any], options: Options) -> Answer:
    counts = {
        name: small_number(info.get(name, default), path, where, f"meta_info.{name}")
        for name, default in (
            ("prompt_tokens", None),
            ("completion_tokens", None),
            ("routed_experts_start_len", 0),
        )
    }
    prompt, start = counts["prompt_tokens"], counts["routed_experts_start_len"]
    rows = prompt + counts["completion_tokens"] - 1 - start
    if start not in (0, prompt) or rows < 1:
        raise SourceError(
            path,
            where,
            f"routed_experts_start_len is {start}: only the whole request (0) or its output "
            f"({prompt}) is read, and at least one token of it",
        )
    if "routed_experts" not in info:
        raise SourceError(path, where, "meta_info has no routed_experts")
    ids = _ids(path, where, info["routed_experts"], rows, options)
    return Answer(where, ids, prompt, with_prompt=start == 0)


def _ids(path: Path, where: str, value: Any, rows: int, options: Options) -> Ids:
    if not isinstance(value, str):
        ids = nested(value, path, where)
    else:
        flat = np.frombuffer(_whole_numbers(decoded(value, path, where), path, where), "<i4")
        k = need(options.top_k, "--top-k", "does not say how many experts a token uses", path)
        layers, rest = divmod(len(flat), rows * k)
        if rest or not layers:
            raise SourceError(
                path,
                where,
                f"holds {len(flat)} ids, no multiple of {rows} tokens with {k} experts each",
            )
        ids = flat.reshape(rows, layers, k).astype(np.int64)
    if len(ids) != rows:
        raise SourceError(path, where, f"holds {len(ids)} tokens, and its token counts say {rows}")
    if options.num_layers not in (None, ids.shape[1]):
        raise SourceError(
            path, where, f"holds {ids.shape[1]} layers, and --layers says {options.num_layers}"
        )
    return ids


def _whole_numbers(data: bytes, path: Path, where: str) -> bytes:
    if len(data) % 4:
        raise SourceError(path, where, f"holds {len(data)} bytes, no whole number of int32")
    return data


FORMAT = Format(
    "sglang_routed",
    "JSON or JSON lines of SGLang's answers with meta_info.routed_experts",
    _sniff,
    _read,
)
