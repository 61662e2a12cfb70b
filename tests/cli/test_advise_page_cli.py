"""`moesim advise --html`: it writes a page, and refuses a wrong name before the work begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.advice.page import check_page_path
from moesim.cli import app
from moesim.errors import OutputError, UsageError

QUESTION = ["advise", "olmoe-1b-7b", "--format", "Q4_K_M", "--gpu", "rtx-3060-12gb"]


@pytest.mark.parametrize("also", [[], ["--json"]])
def test_html_writes_a_page_beside_the_printed_answer(tmp_path: Path, also: list[str]) -> None:
    path = tmp_path / "answer.html"
    done = CliRunner().invoke(app, [*QUESTION, "--html", str(path), *also])
    assert done.exit_code == 0, (done.output, done.exception)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "olmoe-1b-7b on rtx-3060-12gb" in page
    check_page_path(str(path))  # a page of moesim may be written again
    if also:
        flags = json.loads(done.stdout)["recommended"]["flags"]["llama.cpp"]
        assert flags in page
    else:
        assert f"page: {path}" in done.stdout


def test_a_page_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "answer.html"
    path.write_text("<!doctype html><title>My thesis</title>")
    done = CliRunner().invoke(app, [*QUESTION, "--html", str(path)])
    assert isinstance(done.exception, OutputError)
    assert not done.stdout
    assert "My thesis" in path.read_text()


def test_an_empty_name_of_a_page_is_refused() -> None:
    done = CliRunner().invoke(app, [*QUESTION, "--html", ""])
    assert "--html" in str(done.exception)


def test_a_model_is_not_overwritten_by_a_page(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    done = CliRunner().invoke(app, [*QUESTION, "--html", str(model)])
    assert isinstance(done.exception, UsageError)
    assert "--html" in str(done.exception)
    assert model.read_bytes() == b"weights"
    assert not done.stdout
