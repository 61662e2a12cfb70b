"""The extra `html`: packages that only a page needs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from moesim.errors import MissingExtra

__all__ = ["require_html"]

_PACKAGES: Final = ("altair", "jinja2", "vl_convert")


def require_html() -> None:
    """Raise `MissingExtra`, which says what to install, where a package is missing."""
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtra("html", "a report as an HTML page")
