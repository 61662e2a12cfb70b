"""Rooms of the package import downwards only, as pyproject.toml states."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytest.importorskip("importlinter", reason="import-linter is in the dev extra")

LINT = (
    "import sys; from importlinter.cli import lint_imports; "
    "sys.exit(lint_imports(config_filename=sys.argv[1], no_cache=True))"
)


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of a configuration, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", LINT, str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_rooms_import_downwards_only_and_no_machine_imports_a_papers_folder() -> None:
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 2 kept, 0 broken." in done.stdout


def test_an_import_upwards_breaks_the_contract(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    swapped = text.replace('  "serving",\n', "").replace('  "cli",\n', '  "serving",\n  "cli",\n')
    config = tmp_path / "pyproject.toml"
    config.write_text(swapped, encoding="utf-8")
    done = lint(config)
    assert done.returncode == 1
    assert "Rooms import downwards only BROKEN" in done.stdout
