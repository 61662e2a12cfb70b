"""Making the HTML of a page: one file with its style, its scripts and its data, and no network.

A content security policy names the hashes of the style and the scripts, and forbids all else. So
Vega runs with its interpreter of expressions, which evaluates no text as code. Every text from a
run is escaped by the templates, and inside JSON no `<` is left.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

from moesim import __version__
from moesim.report.page.extra import require_html
from moesim.report.page.parts import Block, Hidden, Page, Plot, Side

__all__ = ["rendered"]

_SIGNS: Final = {"best": "▲", "better": "▲", "worst": "▼", "worse": "▼"}
_ESCAPES: Final = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


def rendered(page: Page) -> str:
    """Return the HTML of a page. Equal pages give equal bytes.

    Raises:
        MissingExtra: the packages of the extra `html` are not installed.
    """
    require_html()
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.filters["prose"] = _prose
    plots = [plot for section in page.sections for plot in _plots(section.blocks)]
    scripts = ([_vega()] if plots else []) + [_part("page.js")]
    style = _part("page.css")
    return environment.get_template("page.html").render(
        page=page,
        plots=_json({plot.name: plot.payload for plot in plots}),
        policy=_policy(style, scripts),
        scripts=scripts,
        signs=_SIGNS,
        style=style,
        version=__version__,
    )


def _prose(text: str) -> Any:
    """Return a sentence as HTML, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    even = len(parts) % 2 == 1  # a single backtick is no mark
    marked = [Markup("<code>{}</code>").format(part) if even and place % 2 else escape(part)
              for place, part in enumerate(parts)]  # fmt: skip
    return Markup("" if even else "`").join(marked)


def _plots(blocks: Any) -> list[Plot]:
    """Return all plots of blocks, also of those inside others."""
    found: list[Plot] = []
    for block in blocks:
        found += [block] if isinstance(block, Plot) else _plots(_inside(block))
    return found


def _inside(block: Block) -> Any:
    return block.blocks if isinstance(block, Side | Hidden) else ()


def _json(value: Any) -> str:
    """Return JSON that no HTML parser takes for the end of its script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _policy(style: str, scripts: list[str]) -> str:
    hashes = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _part(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Return one script with Vega, Vega-Lite and Vega-Embed, in the version of Altair."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return bundle.replace("</script", "<\\/script")
