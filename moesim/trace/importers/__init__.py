"""Importers: routing that other programs recorded, turned into traces. One module each.

`import_trace` reads a file by the name of its format, or finds the format from the content. The
reader of a format checks everything it reads, and refuses what it would have to guess.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from moesim.config.suggest import suggest
from moesim.errors import MissingExtra, SourceError, TraceError, UsageError
from moesim.files import as_path
from moesim.trace.importers import (
    counts,
    csv,
    esft,
    jsonl,
    llama_cpp,
    moearc,
    npz,
    sglang,
    sglang_routed,
    vllm,
)
from moesim.trace.importers.base import Format, Imported, Options
from moesim.trace.importers.esft import from_esft
from moesim.trace.importers.npz import from_npz
from moesim.trace.importers.source import Glimpse, nature
from moesim.trace.trace import Trace

__all__ = [
    "FORMATS",
    "IMPORTERS",
    "Format",
    "Imported",
    "Options",
    "find_format",
    "from_esft",
    "from_npz",
    "import_trace",
    "sniffed",
]

FORMATS: Final[dict[str, Format]] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        npz, esft, sglang, sglang_routed, vllm, llama_cpp, moearc, jsonl, csv, counts,
    )
}  # fmt: skip
"""The formats by name, in the order in which a message lists them."""

IMPORTERS: dict[str, Callable[..., Trace]] = {"npz": from_npz, "esft": from_esft}
"""Importers of arrays, for Python: they take fields of the header as further keywords."""


def import_trace(
    path: str | Path, name: str | None = None, options: Options | None = None
) -> tuple[Format, Imported]:
    """Return the format of a source and the trace in it. None finds the format by the content.

    Raises:
        UsageError: no format has this name.
        SourceError: the source fits none or several formats, or breaks the rules of its own.
        MissingExtra: the format needs a package that is not installed.
    """
    file = as_path(path)
    found = sniffed(file) if name is None else find_format(name)
    try:
        return found, found.read(file, Options() if options is None else options)
    except SourceError as error:
        raise _explained(error, file, found) from None
    except TraceError as error:
        where = ", ".join(part for part in (error.file, error.where) if part)
        raise SourceError(file, where, error.reason) from None
    except (UsageError, MissingExtra):
        raise
    except Exception as error:  # a file must not end in a traceback, whatever it holds
        reason = f"cannot be read as {found.name} ({type(error).__name__}: {error})"
        raise SourceError(file, "", reason) from error


def find_format(name: str) -> Format:
    """Return a format by name; `-` and `.` equal `_`. Raise `UsageError` for another name."""
    plain = name.lower().replace("-", "_").replace(".", "_")
    if plain not in FORMATS:
        raise UsageError(
            f"--from {name!r} is no format{suggest(plain, FORMATS)}; there are {', '.join(FORMATS)}"
        )
    return FORMATS[plain]


def sniffed(path: Path) -> Format:
    """Return the one format that a source's content fits. Raise `SourceError` otherwise."""
    glimpse = Glimpse(path)
    fits = [candidate for candidate in FORMATS.values() if candidate.sniff(glimpse)]
    if len(fits) == 1:
        return fits[0]
    names = ", ".join(candidate.name for candidate in fits or FORMATS.values())
    what = "fits several formats" if fits else "fits no format that is known"
    raise SourceError(
        path, "", f"is {nature(path)}, which {what}; name it with --from NAME ({names})"
    )


def _explained(error: SourceError, path: Path, found: Format) -> SourceError:
    """Return an error about a whole file with what was expected and how to name the format."""
    if error.where or error.file != str(path) or "--" in error.reason:
        return error
    reason = error.reason
    if "expected" not in reason:
        reason = f"{reason}; --from {found.name} expects {found.expects}"
    others = ", ".join(name for name in FORMATS if name != found.name)
    return SourceError(path, "", f"{reason}; other formats: --from {others}")
