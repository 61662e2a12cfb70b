"""Text: domains of documents, found on every machine with Python, or named by the user.

    source         modules of the standard library
    documentation  the help topics of `pydoc` and the docstrings of the standard library
    licences       those of the interpreter, of installed packages, of /usr/share/common-licenses
    names          the names of Unicode characters, block by block

The choice is deterministic: documents are sorted by name and taken in the order of a hash of the
name, up to a budget of characters; an eighth of them (by that hash) is held out for validation.
Nothing held out is learnt under another name: a module and its docstrings fall on the same side,
and paragraphs met before are dropped from prose, since licences repeat each other.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from moesim.errors import UsageError

# Tests, and tables of numbers, read like neither code nor prose.
_SKIPPED = {"__pycache__", "encodings", "idlelib", "lib2to3", "test", "tests"}
_SKIPPED |= {"dist-packages", "site-packages"}
_LICENCE_NAME = re.compile(r"(?i)(licen[cs]e|copying|notice)")
_HELD_OUT = 8  # one document in so many, and at least one
_SHORTEST = 200  # characters of a document worth having


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name that means the same on every machine (no absolute path)."""

    name: str
    text: str

    @property
    def order(self) -> int:
        """A number that depends on the name alone and is otherwise arbitrary."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by domain, split into those to learn from and those held out."""

    train: Mapping[str, tuple[Document, ...]]
    validation: Mapping[str, tuple[Document, ...]]

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.train)

    def describe(self) -> dict[str, dict[str, int | str]]:
        """Per domain: documents, characters and a hash of all of the text. Plain JSON."""
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
    """The four domains above, each of at most about `budget` characters."""
    source = list(_source())
    return _split(
        {
            "source": source,
            "documentation": _unrepeated([*_topics(), *_docstrings(source)]),
            "licences": _unrepeated(_licences()),
            "names": list(_unicode_names()),
        },
        budget,
    )


def read_corpus(paths: Mapping[str, Path], budget: int = 2_000_000) -> Corpus:
    """Domains of the user's own: each a text file or a folder of them (UTF-8, others skipped).

    A single file is cut at blank lines into documents, so that a part can be held out.
    Raises `UsageError` for a path without text, or with too little to hold some of it out.
    """
    return _split({domain: _read(domain, path) for domain, path in paths.items()}, budget)


def _split(domains: Mapping[str, Sequence[Document]], budget: int) -> Corpus:
    train: dict[str, tuple[Document, ...]] = {}
    validation: dict[str, tuple[Document, ...]] = {}
    for domain, documents in domains.items():
        chosen = _within(documents, budget)
        if len(chosen) < 2:
            raise UsageError(
                f"domain {domain!r} has {len(chosen)} documents of {_SHORTEST} characters or more; "
                "at least 2 are needed, one of them held out for validation"
            )
        held_out = [d for d in chosen if d.order % _HELD_OUT == 0] or chosen[:1]
        if len(held_out) == len(chosen):
            held_out = chosen[:1]
        validation[domain] = tuple(held_out)
        train[domain] = tuple(d for d in chosen if d not in held_out)
    return Corpus(train, validation)


def _within(documents: Iterable[Document], budget: int) -> list[Document]:
    chosen: list[Document] = []
    total = 0
    long_enough = (d for d in documents if len(d.text) >= _SHORTEST)
    for document in sorted(long_enough, key=lambda d: (d.order, d.name)):
        if total >= budget:
            break
        # No one document (torch's licence is a novel) may fill a domain.
        text = document.text[: max(_SHORTEST, budget // 20)]
        chosen.append(Document(document.name, text))
        total += len(text)
    return chosen


def _source() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _SKIPPED.intersection(name.parts):
            yield from _file(path, name.as_posix())


def _topics() -> Iterator[Document]:
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        yield Document(f"topic {name}", text)


def _docstrings(modules: Iterable[Document]) -> Iterator[Document]:
    """All docstrings of each module, as one document that goes by the module's name."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an old escape in somebody's string
            try:
                tree = ast.parse(module.text)
            except (SyntaxError, ValueError):
                continue
        nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
        found = [text for node in nodes if (text := ast.get_docstring(node))]
        yield Document(module.name, "\n\n".join(found))


def _licences() -> Iterator[Document]:
    places = [Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)]
    for path in (place / "LICENSE.txt" for place in places):
        if path.is_file():
            yield from _file(path, "python LICENSE.txt")
            break
    for path in sorted(Path("/usr/share/common-licenses").glob("*")):
        if path.is_file() and not path.is_symlink():
            yield from _file(path, f"common {path.name}")
    packages = {dist.name: dist for dist in metadata.distributions() if dist.name}
    for name, package in sorted(packages.items()):
        for file in sorted(package.files or [], key=str):
            if _LICENCE_NAME.search(file.name) and file.suffix in ("", ".txt", ".md", ".rst"):
                yield from _file(Path(str(file.locate())), f"{name} {file.name}")


def _unicode_names() -> Iterator[Document]:
    """Lines such as `00E9 LATIN SMALL LETTER E WITH ACUTE`, 128 code points a document."""
    for start in range(0x20, 0x1FB00, 128):
        lines = [
            f"{code:04X} {name}"
            for code in range(start, start + 128)
            if (name := unicodedata.name(chr(code), ""))
            and not name.startswith(("CJK", "HANGUL S"))
        ]
        if lines:
            yield Document(f"code points from {start:04X}", "\n".join(lines) + "\n")


def _read(domain: str, path: Path) -> list[Document]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        found = [d for p in files for d in _file(p, p.relative_to(path).as_posix())]
    elif path.is_file():
        found = [
            Document(f"{path.name} part {number}", part)
            for whole in _file(path, path.name)
            for number, part in enumerate(_parts(whole.text))
        ]
    else:
        raise UsageError(f"domain {domain!r}: {path}: no such file or folder")
    if not found:
        raise UsageError(f"domain {domain!r}: {path}: no UTF-8 text in it")
    return found


def _parts(text: str, size: int = 4000) -> Iterator[str]:
    """Runs of whole paragraphs of about `size` characters."""
    part = ""
    for paragraph in re.split(r"\n\s*\n", text):
        part += paragraph + "\n\n"
        if len(part) >= size:
            yield part
            part = ""
    if part.strip():
        yield part


def _file(path: Path, name: str) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if text.strip():
        yield Document(name, text)


def _unrepeated(documents: Iterable[Document]) -> list[Document]:
    """The documents without the paragraphs that an earlier one has."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", document.text):
            key = " ".join(paragraph.split()).lower()
            if key and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
        kept.append(Document(document.name, "\n\n".join(paragraphs)))
    return kept


def _hash(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()
