"""The options of every command that draws figures, and the command line that draws them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from moesim.cli.command_line import command_line

if TYPE_CHECKING:
    from moesim.report.drawing import Drawing

__all__ = ["draws", "this_command"]

Captions = Literal["outside", "inside"]

_PANEL: Final = "Figures"
_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "size": (
        Annotated[
            str,
            typer.Option(
                metavar="SIZE",
                help="Size of figures: column, page, slide, or like 8.5x6cm.",
                rich_help_panel=_PANEL,
            ),
        ],
        "page",
    ),
    "style": (
        Annotated[
            str,
            typer.Option(
                metavar="STYLE",
                help="Style of figures: paper, serif, grey, dark, or a style of matplotlib.",
                rich_help_panel=_PANEL,
            ),
        ],
        "paper",
    ),
    "captions": (
        Annotated[
            Captions,
            typer.Option(
                help="Captions in a text file beside the figure, or in it.", rich_help_panel=_PANEL
            ),
        ],
        "outside",
    ),
    "formats": (
        Annotated[
            str,
            typer.Option(
                metavar="LIST",
                help="File formats of figures, of png, svg and pdf.",
                rich_help_panel=_PANEL,
            ),
        ],
        "png,svg",
    ),
}


_CONTEXT: Final = "context"


def draws(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of figures to a command, and draw the command's figures as they say."""

    @functools.wraps(command)
    def with_options(*arguments: Any, **options: Any) -> None:
        context = options.pop(_CONTEXT)
        chosen = {name: options.pop(name) for name in _OPTIONS}
        from moesim.report.drawing import drawn_as

        with drawn_as(_drawing(context, **chosen)):
            command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(_CONTEXT, keyword, annotation=typer.Context)]
    added += [
        inspect.Parameter(name, keyword, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    whole = signature.replace(parameters=[*signature.parameters.values(), *added])
    with_options.__signature__ = whole  # type: ignore[attr-defined]
    with_options.__annotations__ = {
        name: parameter.annotation for name, parameter in whole.parameters.items()
    }
    return with_options


def _drawing(
    context: typer.Context, size: str, style: str, captions: Captions, formats: str
) -> Drawing:
    """Return what the options say, before anything is simulated; raise `UsageError`."""
    from moesim.report.drawing import Drawing, parse_formats, parse_size
    from moesim.report.figure_styles import check_style

    check_style(style)
    return Drawing(parse_size(size), style, captions, parse_formats(formats), command_line(context))


def this_command() -> str:
    """Return the command line of a command that `draws`: what makes its pages and figures again."""
    from moesim.report.drawing import current

    return current().command
