"""Which page of the site a file of the repository becomes.

Pages keep links that work in the repository, like `../reports/README.md`. On the site, each file
that a page links to is copied as a picture, or becomes a page under `repository/`.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = (".png", ".svg", ".jpg")
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".ipynb": "json",
    ".toml": "toml",
    ".sh": "bash",
}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")


def place(path: str) -> str | None:
    """Return the page or picture of the site for a path of the repository; None for no file."""
    if not (ROOT / path).exists():
        return None
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    return f"repository/{path}" if path.endswith((".md", *PICTURES)) else f"repository/{path}.md"


def content(path: str) -> str:
    """Return the Markdown of a folder (a list of its files) or of a file that is no Markdown."""
    if (ROOT / path).is_dir():
        names = sorted(file.name for file in (ROOT / path).iterdir() if file.is_file())
        return f"# `{path}`\n\n" + "\n".join(f"- [`{name}`]({name})" for name in names) + "\n"
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# `{path}`\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n````\n"


def links(text: str, path: str) -> list[str]:
    """Return the paths of the repository that a text links to; `path` is where the text lies."""
    return [_target(link, path) for link in _LINK.findall(text)]


def relink(text: str, path: str, page: str) -> str:
    """Return a text whose links lead to places of the site.

    Links to nothing stay, and mkdocs complains of them.
    """

    def replace(match: re.Match[str]) -> str:
        to = place(_target(match[1], path))
        return match[1] if to is None else posixpath.relpath(to, posixpath.dirname(page) or ".")

    return _LINK.sub(replace, text)


def nested(text: str) -> str:
    """Return a text whose nested lists have at least four spaces, as Python-Markdown wants."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    parts[::2] = [re.sub(r"^(?=  +\S)", "  ", part, flags=re.M) for part in parts[::2]]
    return "".join(parts)


def reached(starts: Iterable[str], read: Callable[[str], str] = content) -> list[str]:
    """Return `starts` and all existing paths that they link to, and so on."""
    found = dict.fromkeys(starts)
    waiting = list(found)
    while waiting:
        path = waiting.pop()
        if path.endswith(".md") or (ROOT / path).is_dir():
            base = f"{path}/." if (ROOT / path).is_dir() else path
            new = [to for to in links(read(path), base) if place(to) and to not in found]
            found.update(dict.fromkeys(new))
            waiting += new
    return list(found)


def _target(link: str, path: str) -> str:
    """Return the path of the repository that a link of a file leads to: of a folder its README."""
    target = os.path.normpath(posixpath.join(posixpath.dirname(path), link))
    readme = f"{target}/README.md"
    return readme if (ROOT / readme).exists() else target
