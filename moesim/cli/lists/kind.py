"""A kind of things that a scenario or a command can name, and how its list is read and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer

__all__ = ["Kind", "Listing", "figures_of", "show_rows"]

Listing = dict[str, dict[str, Any]]
"""What `--json` prints, by name; the tables show the same data."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One list: `what` it holds, `where` such a name is written, how to read and to show it.

    `nested`: the listing has groups of names, not names.
    """

    what: str
    where: str
    read: Callable[[], Listing]
    show: Callable[[Listing], None]
    show_one: Callable[[str], None] | None = None
    nested: bool = False

    def names(self) -> list[str]:
        """Return the names in the list."""
        listing = self.read()
        if self.nested:
            return [name for group in listing.values() for name in group]
        return list(listing)

    def only(self, listing: Listing, name: str) -> Listing:
        """Return the part of the listing with one name, or with one group of names."""
        if not self.nested or name in listing:
            return {name: listing[name]}
        return {group: {name: of[name]} for group, of in listing.items() if name in of}


def figures_of(
    section: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each figure of a profile by its dotted key: value, kind and source."""
    for key, value in section.items():
        if isinstance(value, Mapping) and "value" in value:
            yield prefix + key, dict(value)
        elif isinstance(value, Mapping):
            yield from figures_of(value, f"{prefix}{key}.")


def show_rows(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows of text below a header, each column as wide as its longest cell."""
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(f"  {'  '.join(cells)}".rstrip())
