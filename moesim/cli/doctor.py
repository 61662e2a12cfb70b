"""`moesim doctor`: is the installation whole, what is this machine, does moesim work here?"""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer

from moesim.cli.options import JsonOption

if TYPE_CHECKING:
    from moesim.doctor import Check

__all__ = ["register"]

_WIDTH: Final = 110
_INDENT: Final = 28


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(doctor)


def doctor(
    as_json: JsonOption = False,
) -> None:
    """Check the installation and this machine, and run a scenario whose result is known.

    An extra that is absent is no fault. The exit code is 1 if something that must work is broken.
    """
    from moesim.cli.output import echo_json
    from moesim.doctor import examine, worst

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            _show(check)
    state = worst(checks)
    if as_json:
        echo_json({"state": state, "checks": [asdict(check) for check in checks]})
    else:
        typer.echo(f"\n{_verdict(checks)}")
    if state == "broken":
        raise typer.Exit(1)


def _show(check: Check) -> None:
    head = f"{check.state:<9}{check.name:<{_INDENT - 9}}"
    typer.echo(_wrapped(head, check.found))
    if check.remedy:
        typer.echo(
            _wrapped(" " * _INDENT, f"{'try: ' if check.state != 'ok' else ''}{check.remedy}")
        )


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(checks: list[Check]) -> str:
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        return f"broken: {', '.join(broken)}"
    warned = sum(check.state == "warning" for check in checks)
    limits = f", with {warned} warning{'s' if warned > 1 else ''}" if warned else ""
    return f"moesim works here{limits}. A first scenario: moesim init"
