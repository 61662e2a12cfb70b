"""Prompts: pieces of each domain's held-out text, of varied length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moesim.errors import UsageError
from moesim.files import output_errors
from moesim.record.prompts import Prompt
from moesim.training.text import Corpus, Document


def cut_prompts(
    corpus: Corpus,
    *,
    per_domain: int = 40,
    characters: tuple[int, int] = (40, 280),
    new_tokens: tuple[int, int] = (16, 48),
    seed: int = 0,
) -> list[Prompt]:
    """Return `per_domain` pieces of every domain's held-out text, domains taking turns.

    Lengths (`characters`) and limits of generation (`new_tokens`) are drawn evenly from the given
    ranges, both ends included. A piece starts at the start of a line. The same seed and text give
    the same prompts. Raise `UsageError` for an empty range or `per_domain` below 1.
    """
    for name, (low, high) in (("characters", characters), ("new_tokens", new_tokens)):
        if not 1 <= low <= high:
            raise UsageError(f"{name} ({low} to {high}) must run from at least 1 upwards")
    if per_domain < 1:
        raise UsageError(f"per_domain ({per_domain}) must be at least 1")
    draw = np.random.default_rng(np.random.SeedSequence(seed))
    return [
        Prompt(
            _piece(corpus.validation[domain], int(draw.integers(*characters, endpoint=True)), draw),
            domain,
            int(draw.integers(*new_tokens, endpoint=True)),
        )
        for _ in range(per_domain)
        for domain in corpus.domains
    ]


def write_prompts(prompts: list[Prompt], out: str | Path, *, force: bool = False) -> Path:
    """Write prompts as JSONL for `moesim record`. Raise `OutputError` if `out` exists."""
    path = Path(out)
    lines = [
        json.dumps({"prompt": p.text, "domain": p.domain, "max_new_tokens": p.max_new_tokens})
        for p in prompts
    ]
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return path


def _piece(documents: tuple[Document, ...], length: int, draw: np.random.Generator) -> str:
    """Return a piece of about `length` characters; long documents are chosen more often."""
    # By length, so that every character is about equally likely to be in a prompt.
    sizes = np.array([len(d.text) for d in documents], dtype=float)
    text = documents[int(draw.choice(len(documents), p=sizes / sizes.sum()))].text
    start = int(draw.integers(max(1, len(text) - length)))
    start = text.rfind("\n", 0, start) + 1  # a prompt that starts inside a word is unlike real ones
    piece = text[start : start + length].strip("\n")
    return piece if piece.strip() else text[:length]  # a piece of blank lines is no prompt
