"""The fenced blocks of a page of Markdown, and a folder in which they run as for a reader.

- `sh` runs, in the order of the page. A `text` block right after it is its output.
- `python` runs too. All blocks of a page share their names, and print into the next `text` block.
- A block with `title="NAME"` is a file that the reader writes: it is written and not run.
- `<!-- not run: REASON -->` before a block keeps it from running. `<!-- slow: REASON -->` puts its
  page among the slow tests.

In an expected output `...` stands for any text, and white space counts as one blank.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from command_line import write_program
from paths import ROOT
from typer.testing import CliRunner

__all__ = ["Block", "Folder", "blocks", "commands"]

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>not run|slow): ?(?P<reason>[^\n]*?) ?-->\n+)?"
    r"(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)^ *```$",
    re.M | re.S,
)
_NEEDS_SHELL = re.compile(r"[|<>$&]")
_CHECK = doctest.OutputChecker()
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FOLDERS = ("docs", "examples", "moesim", "reports", "scenarios", "traces")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its text, and the output that the page shows for it (None for no output)."""

    language: str
    text: str
    line: int
    title: str | None = None
    mark: str | None = None
    reason: str = ""
    output: str | None = None


def blocks(markdown: str) -> list[Block]:
    """Return the blocks of a page; an output belongs to the block that it follows."""
    found: list[Block] = []
    for match in _FENCE.finditer(markdown):
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.M)
        line = markdown.count("\n", 0, match.start("language")) + 1
        shown = match["language"] == "text" and match["title"] is None
        if shown and found and found[-1].language in ("sh", "python"):
            found.append(replace(found.pop(), output=text))
        else:
            reason = match["reason"] or ""
            found.append(
                Block(match["language"], text, line, match["title"], match["mark"], reason)
            )
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a `sh` block; `\\` at an end of a line continues it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for control, group in groupby(words, key=lambda word: set(word) <= set("|&<>;")):
            if not control:
                yield list(group)


class Folder:
    """A copy of what pages name, in which the blocks of one page run in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, Any] = {"__name__": "page"}
        for name in FOLDERS:
            (path / name).mkdir()  # real folders: what a block writes stays in the copy
            for file in (ROOT / name).iterdir():
                (path / name / file.name).symlink_to(file)
        write_program(path / "bin/moesim")
        (path / "bin/python").symlink_to(sys.executable)

    def run(self, block: Block) -> str:
        """Run a block, or write its file, and return what it prints."""
        if block.title is not None:
            file = self.path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            return ""
        return {"sh": self._shell, "python": self._python}[block.language](block.text)

    def differs(self, block: Block) -> str:
        """Run a block; return how its output differs from the page's, "" if it does not."""
        got = self.run(block)
        if block.output is None or _CHECK.check_output(block.output, got, _OPTIONS):
            return ""
        return _CHECK.output_difference(doctest.Example("", block.output), got, _OPTIONS)

    def _shell(self, text: str) -> str:
        """Run commands of moesim in this process, which starts faster; all others in a shell."""
        lines = list(commands(text))
        if not _NEEDS_SHELL.search(text) and all(words[0] == "moesim" for words in lines):
            return "".join(map(self._moesim, lines))
        environment = os.environ | {
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.path),
            "COLUMNS": "100",
            "MPLBACKEND": "agg",
        }
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise AssertionError(f"exit code {done.returncode}:\n{text}\n{done.stderr}")
        return done.stdout

    def _moesim(self, words: list[str]) -> str:
        from moesim.cli import app

        environment = {"COLUMNS": "100", "HOME": str(self.path)}  # nothing is left in a home
        with contextlib.chdir(self.path):
            done = CliRunner().invoke(app, words[1:], env=environment)
        if done.exit_code:
            raise AssertionError(f"exit code {done.exit_code}:\n{words}\n{done.output}")
        return done.stdout

    def _python(self, text: str) -> str:
        printed = io.StringIO()
        with contextlib.chdir(self.path), contextlib.redirect_stdout(printed):
            exec(compile(text, "page", "exec"), self.names)  # the project's own text
        return printed.getvalue()
