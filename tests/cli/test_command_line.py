"""The command line that a result keeps repeats the command, and shows no folder of the machine."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from moesim.cli.command_line import command_line, full_command_line


class Kind(Enum):
    SET = "set"
    TOP = "top"


def typed(*words: str) -> str:
    """The command line that a command with these words of `moesim` says of itself."""
    app = typer.Typer()
    group = typer.Typer()

    @group.command()
    def draw(
        context: typer.Context,
        file: Path,
        overrides: Annotated[list[str] | None, typer.Option("--set", "-s")] = None,
        kind: Kind = Kind.SET,
        seed: int = 0,
        plots: Annotated[bool, typer.Option("--plots/--no-plots")] = True,
        force: Annotated[bool, typer.Option("--force")] = False,
        workers: int = 1,
    ) -> None:
        typer.echo(command_line(context))

    @group.callback()
    def trace() -> None:
        pass

    app.add_typer(group, name="trace")
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["trace", "draw", *words])
    assert done.exit_code == 0, done.output
    return done.stdout.rstrip("\n")


def test_what_was_typed_is_repeated_in_one_spelling_without_what_changes_nothing() -> None:
    words = ("-s", "a=1", "my file", "--no-plots", "--kind", "top", "--set", "b=[1, 2]",
             "--seed", "0", "--force", "--workers", "9")  # fmt: skip
    line = typed(*words)
    assert line == (
        "moesim trace draw 'my file' --set a=1 --set 'b=[1, 2]' --kind top --seed 0 --no-plots"
    )
    assert typed(*shlex.split(line)[3:]) == line
    assert typed("x") == "moesim trace draw x"


def test_provenance_has_defaults_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    line = full_command_line(
        ["models", "train"],
        {
            "out": tmp_path / "my model",
            "text": ["a/b", str(tmp_path / "c")],
            "seed": 0,
            "gate": None,
            "force": False,
            "long": True,
        },
    )
    assert line == "moesim models train --out 'my model' --text a/b --text c --seed 0 --long"
