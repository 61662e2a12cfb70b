"""The options of every command that draws figures, and the command line that draws them again."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

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
_CHANGE_NOTHING: Final = frozenset({"as_json", "as_markdown", "force", "on", "watch", "workers"})
"""Options that change no figure and no number."""


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
    return Drawing(
        parse_size(size), style, captions, parse_formats(formats), _command_line(context)
    )


def this_command() -> str:
    """Return the command line of a command that `draws`: what makes its pages and figures again."""
    from moesim.report.drawing import current

    return current().command


def _command_line(context: typer.Context) -> str:
    """Return the command line in progress, with the options that were given, in one spelling."""
    words: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if value is None or not given or parameter.name in _CHANGE_NOTHING:
            continue
        if parameter.param_type_name == "argument":
            words += _texts(value)
        else:
            options += _option(parameter, value)
    return shlex.join([*_path(context), *words, *options])


def _path(context: typer.Context) -> list[str]:
    """Return the names of the commands, like `moesim trace info`."""
    # The first word is the program, which may be spelt as `python -m moesim`.
    return ["moesim", *context.command_path.removeprefix(_program(context)).split()]


def _program(context: typer.Context) -> str:
    return context.find_root().info_name or ""


def _option(parameter: Any, value: Any) -> list[str]:
    name = max(parameter.opts, key=len)
    if value is True:
        return [name]
    if value is False:
        return [max(parameter.secondary_opts, key=len)] if parameter.secondary_opts else []
    return [word for text in _texts(value) for word in (name, text)]


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(getattr(each, "value", each)) for each in values]
