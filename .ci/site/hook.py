"""A hook of mkdocs: the README is the home page, and the reference is made from the code."""

from __future__ import annotations

import reference
import repository
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_paths: dict[str, str] = {}
"""The path in the repository of each page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the reference, and all files outside docs/ that pages link to."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    documents = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    existing = [path for path in documents if repository.place(path)]
    for path in repository.reached([*existing, "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]):
        place = repository.place(path)
        assert place is not None
        _paths[place] = path
        if not path.startswith("docs/"):
            files.append(_file(path, place, config))
    return files


def _file(path: str, place: str, config: MkDocsConfig) -> File:
    if place.endswith(".md"):
        return File.generated(config, place, content=repository.content(path))
    return File.generated(config, place, abs_src_path=str(repository.ROOT / path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to places of the site. The search leaves out files of other folders."""
    uri = page.file.src_uri
    path = _paths.get(uri, f"docs/{uri}")
    if "/" in path and not path.startswith("docs/"):
        page.meta["search"] = {"exclude": True}
    base = f"{path}/." if (repository.ROOT / path).is_dir() else path
    return repository.nested(repository.relink(markdown, base, uri))
