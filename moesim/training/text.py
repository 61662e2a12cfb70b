"""Text: domains of documents that every machine with Python has, or that the user names.

    source         modules of the standard library
    documentation  the help topics of `pydoc` and the docstrings of the standard library
    licences       those of the interpreter, of installed packages, of /usr/share/common-licenses
    names          the names of Unicode characters, block by block

The choice is deterministic: documents are taken in the order of a hash of their names, up to a
budget of characters. An eighth of them (by that hash) is held out for validation. No held-out text
is in the training text under another name. A module and its docstrings have one name, so both are
on the same side. Repeated paragraphs are dropped from prose, because licences repeat each other.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Self

from moesim.errors import UsageError

# Tests and tables of numbers are neither ordinary code nor prose.
_SKIPPED = {"__pycache__", "encodings", "idlelib", "lib2to3", "test", "tests"}
_SKIPPED |= {"dist-packages", "site-packages"}
_LICENCE_NAME = re.compile(r"(?i)(licen[cs]e|copying|notice)")
_HELD_OUT = 8  # one document in 8 is held out, and at least one
_SHORTEST = 200  # characters; shorter documents are left out


_Source = tuple[str, Callable[[], str | None]]  # a document's name, and how to read it


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name that means the same on every machine (no absolute path)."""

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by domain, split into training text and held-out text."""

    train: Mapping[str, tuple[Document, ...]]
    validation: Mapping[str, tuple[Document, ...]]

    def __repr__(self) -> str:
        documents = sum(map(len, (*self.train.values(), *self.validation.values())))
        return f"<Corpus of {', '.join(self.train)}: {documents} documents>"

    @classmethod
    def split(cls, domains: Mapping[str, Sequence[Document]]) -> Self:
        """Hold out an eighth of every domain's documents, and at least one.

        Raise `UsageError` for a domain of fewer than two documents.
        """
        train: dict[str, tuple[Document, ...]] = {}
        validation: dict[str, tuple[Document, ...]] = {}
        for domain, documents in domains.items():
            if len(documents) < 2:
                raise UsageError(
                    f"domain {domain!r} has {len(documents)} documents of {_SHORTEST} characters "
                    "or more; at least 2 are needed, one of them held out for validation"
                )
            held_out = {d.name for d in documents if _order(d.name) % _HELD_OUT == 0}
            if not 0 < len(held_out) < len(documents):
                held_out = {documents[0].name}
            validation[domain] = tuple(d for d in documents if d.name in held_out)
            train[domain] = tuple(d for d in documents if d.name not in held_out)
        return cls(train, validation)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.train)

    def describe(self) -> dict[str, dict[str, int | str]]:
        """Return for each domain documents, characters and a hash of its text, as plain JSON."""
        return {
            domain: {
                "train_documents": len(self.train[domain]),
                "validation_documents": len(self.validation[domain]),
                "characters": sum(
                    len(d.text) for d in (*self.train[domain], *self.validation[domain])
                ),
                "sha256": _hash((*self.train[domain], *self.validation[domain])),
            }
            for domain in self.domains
        }


def built_in_corpus(budget: int = 2_000_000) -> Corpus:
    """Return the four domains above, each of about `budget` characters at most."""
    return Corpus.split(
        {
            "source": _chosen(_modules(), budget),
            "documentation": _chosen([*_topics(), *_docstrings()], budget, prose=True),
            "licences": _chosen(_licences(), budget, prose=True),
            "names": _chosen(_unicode_names(), budget),
        }
    )


def read_corpus(paths: Mapping[str, Path], budget: int = 2_000_000) -> Corpus:
    """Return the user's domains: each a text file or a folder of them (UTF-8, others skipped).

    A single file is cut into documents, so that a part can be held out. Cuts are at blank lines, or
    at line ends if there are none. Repeated paragraphs are dropped, because collections repeat
    themselves. Raise `UsageError` for a path without text, or with too little to hold some out.
    """
    return Corpus.split(
        {d: _chosen(_own(d, path), budget, prose=True) for d, path in paths.items()}
    )


def _chosen(sources: Iterable[_Source], budget: int, *, prose: bool = False) -> list[Document]:
    """Return documents in the order of their names' hashes, up to a budget of characters."""
    chosen: list[Document] = []
    seen: set[str] = set()
    total = 0
    for name, read in sorted(sources, key=lambda source: (_order(source[0]), source[0])):
        if total >= budget:
            break
        text = read() or ""
        if prose:
            text = _unrepeated(text, seen)
        # A single long document (the licence of torch) must not fill a domain.
        text = text[: max(_SHORTEST, budget // 20)]
        if len(text) >= _SHORTEST:
            chosen.append(Document(name, text))
            total += len(text)
    return chosen


def _unrepeated(text: str, seen: set[str]) -> str:
    """Return `text` without the paragraphs in `seen`; add the others to `seen`."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        key = " ".join(paragraph.split()).lower()
        if key and key not in seen:
            seen.add(key)
            kept.append(paragraph)
    return "\n\n".join(kept)


def _modules() -> Iterator[_Source]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not _SKIPPED.intersection(name.parts):
            yield name.as_posix(), partial(_text, path)


def _topics() -> Iterator[_Source]:
    from pydoc_data import topics

    for name, text in topics.topics.items():
        yield f"topic {name}", partial(str, text)


def _docstrings() -> Iterator[_Source]:
    for name, read in _modules():
        yield name, partial(_docstrings_in, read)


def _docstrings_in(read: Callable[[], str | None]) -> str | None:
    """Return all docstrings of a module, or None if it cannot be parsed."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in the modules' strings
        try:
            tree = ast.parse(read() or "")
        except (SyntaxError, ValueError):
            return None
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def _licences() -> Iterator[_Source]:
    places = [Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)]
    own = [path for place in places if (path := place / "LICENSE.txt").is_file()]
    for path in own[:1]:
        yield "python LICENSE.txt", partial(_text, path)
    for path in Path("/usr/share/common-licenses").glob("*"):
        if path.is_file() and not path.is_symlink():
            yield f"common {path.name}", partial(_text, path)
    packages = {package.name: package for package in metadata.distributions() if package.name}
    for name, package in packages.items():
        for file in package.files or []:
            if _LICENCE_NAME.search(file.name) and file.suffix in ("", ".txt", ".md", ".rst"):
                yield f"{name} {file.name}", partial(_text, Path(str(file.locate())))


def _unicode_names() -> Iterator[_Source]:
    for start in range(0x20, 0x1FB00, 128):
        yield f"code points from {start:04X}", partial(_names_from, start)


def _names_from(start: int) -> str:
    """Return lines such as `00E9 LATIN SMALL LETTER E WITH ACUTE` for 128 code points."""
    named = ((code, unicodedata.name(chr(code), "")) for code in range(start, start + 128))
    # The names of ideographs and Hangul syllables only spell the code point: nothing to learn.
    return "".join(
        f"{code:04X} {name}\n"
        for code, name in named
        if name and not name.startswith(("CJK", "HANGUL S"))
    )


def _own(domain: str, path: Path) -> list[_Source]:
    sources: list[_Source]
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        sources = [(file.relative_to(path).as_posix(), partial(_text, file)) for file in files]
    elif path.is_file():
        text = (_text(path) or "").strip()
        if re.search(r"\n\s*\n", text) is None:
            text = text.replace("\n", "\n\n")
        parts = _parts(_unrepeated(text, set()))
        sources = [(f"{path.name} part {n}", partial(str, part)) for n, part in enumerate(parts)]
    else:
        raise UsageError(f"domain {domain!r}: {path}: no such file or folder")
    if not any(read() for _, read in sources):
        raise UsageError(f"domain {domain!r}: {path}: no UTF-8 text in it")
    return sources


def _parts(text: str, size: int = 4000) -> Iterator[str]:
    """Yield whole paragraphs in parts of about `size` characters."""
    part = ""
    for paragraph in re.split(r"\n\s*\n", text):
        part += paragraph + "\n\n"
        if len(part) >= size:
            yield part
            part = ""
    if part.strip():
        yield part


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _order(name: str) -> int:
    """Return a number that depends on the name alone and is otherwise arbitrary."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _hash(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()
