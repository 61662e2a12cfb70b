"""Options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AgainOption", "JsonOption", "PlotsIntoOutOption", "PlotsOption", "ReplaceOption"]
__all__ += ["SetOption"]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, like cache.policy=lru."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
PlotsOption = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw figures.")]
PlotsIntoOutOption = Annotated[
    bool, typer.Option("--plots/--no-plots", help="Draw figures into --out.")
]
AgainOption = Annotated[bool, typer.Option("--force", help="Run finished points again.")]
ReplaceOption = Annotated[bool, typer.Option("--force", help="Replace an existing --out.")]
