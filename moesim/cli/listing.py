"""`moesim list`: what a scenario or a command can name (GPUs, models, policies, ...)."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from moesim.cli.complete import of_kinds, of_listed
from moesim.cli.options import JsonOption

__all__ = ["register"]

_OTHER_NAMES: Final = {
    "hardware": "'gpus' or 'cards'",
    "shapes": "'models'",
    "prefetch": "'policies'",
}
"""Words of a scenario that are no kind, and the kinds which list what they can name."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command("list")(list_kind)
    # Their names before `list` had all kinds; scripts may still use them.
    app.command(hidden=True)(policies)
    app.command(hidden=True)(systems)


def list_kind(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="What to list: gpus, cards, cpus, models, formats, engines, policies, systems, "
            "arrivals, workloads, importers, metrics or extras (default: these kinds).",
            show_default=False,
            autocompletion=of_kinds,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="One entry of the list, like `moesim list systems fiddler`.",
            show_default=False,
            autocompletion=of_listed,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what a scenario or a command can name, with figures, units and sources."""
    from moesim.cli.lists import KINDS
    from moesim.cli.output import echo_json
    from moesim.config.suggest import suggest
    from moesim.errors import UsageError

    if kind is None:
        _list_kinds(as_json)
        return
    if kind not in KINDS:
        hint = _OTHER_NAMES.get(kind)
        meant = f"; did you mean {hint}?" if hint else suggest(kind, KINDS)
        raise UsageError(f"there is no list of {kind!r}; the kinds are {', '.join(KINDS)}{meant}")
    found = KINDS[kind]
    listing = found.read()
    if name is not None:
        known = [*found.names(), *(listing if found.nested else ())]
        name = next((each for each in known if _plain(each) == _plain(name)), name)
        if name not in known:
            hint = suggest(name, known, rest="there are")
            raise UsageError(f"moesim list {kind}: there is no {name!r}{hint}")
        listing = found.only(listing, name)
    if as_json:
        echo_json(listing)
    elif name is not None and found.show_one is not None:
        found.show_one(name)
    else:
        found.show(listing)


def _plain(name: str) -> str:
    """Return a name without what people leave out: `RTX 4090` is rtx-4090."""
    return re.sub(r"[\s_-]", "", name).lower()


def _list_kinds(as_json: bool) -> None:
    """Print the kinds, each with its number of names, one of them, and where it is written."""
    from moesim.cli.lists import KINDS
    from moesim.cli.lists.kind import show_rows
    from moesim.cli.output import echo_json

    names = {kind: found.names() for kind, found in KINDS.items()}
    if as_json:
        echo_json(
            {
                kind: {"what": found.what, "where": found.where, "names": names[kind]}
                for kind, found in KINDS.items()
            }
        )
        return
    rows = (
        (kind, str(len(names[kind])), found.what, _example(found.where, names[kind]))
        for kind, found in KINDS.items()
    )
    show_rows(("kind", "number", "what", "for example"), rows)
    typer.echo("\nmoesim list KIND shows the names, and moesim list KIND NAME one of them.")


def _example(where: str, names: list[str]) -> str:
    usual = ("rtx-4090", "mixtral-8x7b", "lru", "Q4_K_M", "llama.cpp", "fiddler", "closed", "azure")
    name = next((name for name in usual if name in names), names[0])
    return where.replace("NAME", name)


def policies(as_json: JsonOption = False) -> None:
    """List policies, as `moesim list policies` does."""
    list_kind("policies", None, as_json)


def systems(
    name: Annotated[str | None, typer.Argument(show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """List systems, as `moesim list systems` does."""
    list_kind("systems", name, as_json)
