"""The example of docs/twin.md is what the command prints."""

from __future__ import annotations

import re
import shlex

import pytest
from paths import ROOT
from typer.testing import CliRunner

from moesim.cli import app

DOCUMENT = (ROOT / "docs/twin.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def test_the_example_prints_what_the_document_shows() -> None:
    (log,) = re.findall(r"```text\n(.*?)```", DOCUMENT, re.S)
    ((command, shown),) = re.findall(r"```console\n\$ moesim (.*?)\n(.*?)```", DOCUMENT, re.S)
    done = CliRunner().invoke(app, shlex.split(command), input=log)
    assert done.exit_code == 0, done.output
    words, expected = (NUMBER.sub("#", text).split() for text in (done.stdout, shown))
    assert words == expected
    numbers, wanted = (list(map(float, NUMBER.findall(text))) for text in (done.stdout, shown))
    assert numbers == pytest.approx(wanted, rel=0.01, abs=0.11)
