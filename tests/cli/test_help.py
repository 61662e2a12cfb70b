"""Help of all commands: examples that parse, groups by purpose, `-h`, and completion in bash."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from typing import Any

import pytest
import typer
from command_line import COMMANDS, ROOT_COMMAND, write_program
from paths import ROOT
from typer.testing import CliRunner

from moesim.cli import app
from moesim.cli.help_texts import EXAMPLES, PANELS


def shown(*arguments: str) -> str:
    """Return what a command prints, without colours and line breaks."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def test_the_lines_of_a_help_text_are_as_wide_as_the_terminal() -> None:
    """Typer keeps the line breaks of a docstring; in another width each would break a line."""
    for name, command in COMMANDS.items():
        paragraphs = command.help.split("\n\n")
        assert not [text for text in paragraphs if "\n" in text], name


def test_every_command_has_two_examples_of_its_own() -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    for name, examples in EXAMPLES.items():
        assert len(set(examples)) >= 2, name
        assert all(line.split(" | ")[0].startswith(f"moesim {name}") for line in examples)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_options_that_exist(name: str) -> None:
    for line in EXAMPLES[name]:
        words = shlex.split(re.split(r" [|>] ", line)[0])
        arguments = words[1 + len(name.split()) :]
        with typer.Context(ROOT_COMMAND, info_name="moesim") as above:
            context = COMMANDS[name].make_context(name, arguments, parent=above)
        assert not context.args


def test_files_of_examples_that_look_shipped_are_shipped() -> None:
    named = {
        word
        for lines in EXAMPLES.values()
        for line in lines
        for word in shlex.split(line)
        if re.match(r"scenarios/|traces/(deep|shallow|gates|readme)", word)
    }
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["run", "list", "trace convert", "compare"])
def test_the_help_of_a_command_shows_its_examples_as_they_are_typed(name: str) -> None:
    short = shown(*name.split(), "-h")
    assert short == shown(*name.split(), "--help")
    lines = [line.strip() for line in short.splitlines()]
    for example in EXAMPLES[name]:
        assert example in lines


def test_the_first_page_groups_all_commands_by_purpose() -> None:
    page = shown("-h")
    first = {name.split()[0] for name in COMMANDS}
    assert {name for names in PANELS.values() for name in names} == first
    places = [page.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert " Commands " not in page
    assert "Exit codes: 0 done, 1 failed, 2 usage or scenario error, 3 a stated threshold" in page


# --- completion -----------------------------------------------------------------------------------

_TRY = """
source <({moesim} --show-completion)
try() {{ COMP_WORDS=("$@"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
  _moesim_completion {name}; echo "${{COMPREPLY[*]}}"; }}
"""


def completed(tmp_path: Any, *lines: str) -> list[list[str]]:
    """Return what bash offers for the last word of each line."""
    program = tmp_path / "moesim"
    write_program(program)
    name = shlex.quote(str(program))
    script = _TRY.format(moesim=name, name=name) + "".join(f"try {line}\n" for line in lines)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
def test_bash_completes_commands_options_and_names(tmp_path: Any) -> None:
    first, options, kinds, systems, cards, files = completed(
        tmp_path,
        "moesim tr",
        "moesim run --forc",
        "moesim list sys",
        "moesim list systems fid",
        "moesim init --gpu rtx-4060-",
        "moesim run scen",
    )
    assert first == ["trace"]
    assert options == ["--force"]
    assert kinds == ["systems"]
    assert systems == ["fiddler"]
    assert "rtx-4060-laptop" in cards
    assert files == []  # bash then completes files itself (`complete -o default`)
