"""The documents say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def commands(text: str) -> list[str]:
    return [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()
    ]


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    test = next(line for line in commands((ROOT / "README.md").read_text()) if "pytest" in line)
    assert test in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.parametrize("name", ["README.md", "docs/design.md"])
def test_files_that_a_document_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(r"`((?:moesim|docs|scenarios|tests|examples|traces)/[\w./-]+)`", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert named
    assert missing == []


def test_policies_named_in_the_changelog_exist() -> None:
    from moesim.policies import names

    text = (ROOT / "CHANGELOG.md").read_text()
    for family in ("eviction", "prefetch", "batching"):
        for policy in names(family):
            assert policy in text
