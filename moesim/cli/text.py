"""The options `--text` and `--characters`: the text that models train on and prompts come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesim.training import Corpus

__all__ = ["CharactersOption", "TextOption", "corpus_of", "spell_text"]

TextOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="DOMAIN=PATH",
        help="Your own text, a file or a folder; may be repeated (default: source code, "
        "documentation, licences and names from this machine).",
    ),
]
CharactersOption = Annotated[
    int, typer.Option("--characters", min=1000, help="Most characters of each domain.")
]


def corpus_of(text: list[str] | None, characters: int) -> Corpus:
    """Return the domains that `--text` names, or without it those built in."""
    from moesim.training import built_in_corpus, read_corpus

    return read_corpus(_named(text), characters) if text else built_in_corpus(characters)


def spell_text(text: list[str] | None) -> list[str]:
    """Return the values of `--text` for provenance, without the folders of this machine."""
    return [f"{domain}={path.name}" for domain, path in _named(text).items()]


def _named(text: list[str] | None) -> dict[str, Path]:
    from moesim.errors import UsageError
    from moesim.files import as_path

    named: dict[str, Path] = {}
    for pair in text or ():
        domain, equals, path = pair.partition("=")
        if not (domain and equals and path):
            raise UsageError(f"--text {pair!r}: expected DOMAIN=PATH, like law=texts/law")
        if domain in named:
            raise UsageError(f"--text {pair!r}: domain {domain!r} is named twice")
        named[domain] = as_path(path)
    return named
