"""A page: the answer as one HTML file that needs no server, network, or other file.

The answer is in the HTML itself. A script evaluates the formulas of `moesim.advice.formulas` for
other settings. The page forbids all loading by a content security policy, which names the hashes of
its own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

from moesim import __version__
from moesim.advice.advice import Advice
from moesim.advice.cached import Cached
from moesim.advice.flags import flags_of, left_out
from moesim.advice.formulas import Formulas, formulas_of
from moesim.advice.grounds import Grounds
from moesim.advice.heading import heading
from moesim.advice.page_controls import control_names, controls
from moesim.advice.page_flags import flag_forms
from moesim.advice.tables import (
    cache_lines,
    cliff_lines,
    front_table,
    memory_table,
    place_of,
    span,
    terms_table,
    upgrade_table,
)
from moesim.advice.terms import Term
from moesim.advice.upgrades import Cliff, Upgrade
from moesim.errors import MoesimError, UsageError, shown
from moesim.files import PAGE, as_path, check_may_write, whole_file
from moesim.measured.predict import Declined
from moesim.report.tabular import Table

__all__ = ["Shown", "check_page_path", "page_of", "shown_of", "write_page"]

_SIGNS: Final = {"best": " ▲ recommended"}
_RULE: Final = (
    "The browser computes these with formulas that were fitted to simulations on the machine that "
    "made this page, and checked against {number} further ones: the largest difference was "
    "{error:.2g} %. Speeds where no formula holds within 0.1 % are left out."
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows beside the advice."""

    terms: Sequence[Term]
    cliff: Cliff
    upgrades: Sequence[Upgrade]
    grounds: Grounds
    cached: Cached | Declined


def shown_of(advice: Advice) -> Shown:
    """Return what the page of an advice shows, computed from it."""
    return Shown(advice.terms, advice.cliff, advice.upgrades, advice.grounds, advice.cached)


def check_page_path(path: str) -> None:
    """Raise an error, before the work begins, for a path that a page is not written to.

    Raises:
        UsageError: the path is none for a page.
        OutputError: the file exists, and moesim did not write it.
    """
    file = as_path(path)
    check_may_write(file, "--html", *PAGE)
    if not file.parent.is_dir():
        raise UsageError(f"--html {shown(path)}: there is no folder {shown(str(file.parent))}")


def write_page(path: str, advice: Advice, facts: Shown) -> None:
    """Write the page of an advice to a file, which is whole or not there.

    Raises:
        UsageError: the path is none for a page.
        OutputError: the file cannot be written, or is none of moesim's.
    """
    check_page_path(path)
    text = page_of(advice, facts)
    with whole_file(as_path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def page_of(advice: Advice, facts: Shown) -> str:
    """Return the page of an advice. Where no formula holds, it has the answer alone."""
    reason, formulas = "", None
    try:
        formulas = formulas_of(advice)
    except MoesimError as error:
        reason = str(error)
    style = _file("page.css")
    if formulas is None:
        script = scripts = ""
        settings = f"<p>No other settings are computed: {escape(reason)}.</p>"
    else:
        data = _data(advice, formulas)
        script, settings = _file("page.js"), _settings(advice, formulas, data["flags"])
        scripts = (
            f'<script type="application/json" id="data">{_json(data)}</script>\n'
            f"<script>{script}</script>"
        )
    return Template(_file("page.html")).substitute(
        _answer_parts(advice, facts),
        version=__version__,
        style=style,
        style_hash=_hash(style),
        script_hash=_hash(script),
        settings=settings,
        scripts=scripts,
    )


def _settings(advice: Advice, formulas: Formulas, flags: Iterable[str]) -> str:
    """Return the section whose numbers the script fills in."""
    return Template(_file("page_settings.html")).substitute(
        rule=escape(_rule(formulas)),
        controls=controls(advice, formulas),
        changed_flags=_flags(dict.fromkeys(flags, ""), "changed"),
    )


def _file(name: str) -> str:
    return (files("moesim.advice") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(value: Any) -> str:
    """Return JSON that no text can end the element of."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rule(formulas: Formulas) -> str:
    number, error = formulas.checks
    text = _RULE.format(number=number, error=100 * error)
    return " ".join([text, *(f"Left out: {each}." for each in formulas.refused)])


def _data(advice: Advice, formulas: Formulas) -> dict[str, Any]:
    question, best = advice.question, advice.best.choice
    hardware = question.machine.hardware
    host = None if hardware.unified else hardware.host_memory_bytes
    names = [
        part
        for each in formulas.memory.values()
        for place in ("gpu", "host")
        for part in each[place]
    ]
    return {
        **formulas.plain(),
        "base": {
            "format": best.format,
            "kv": best.kv,
            "ubatch": best.ubatch,
            **formulas.space.base,
            "vram": hardware.vram_bytes / 2**30 if hardware.has_gpu else 0,
            "ram": None if host is None else host / 2**30,
        },
        "layers": len(question.model.shape.moe_layers) if formulas.divides else best.cpu_layers,
        "load": question.load,
        "names": control_names(),
        "parts": list(dict.fromkeys(names)),
        **flag_forms(advice, formulas),
    }


# The parts of the answer


def _answer_parts(advice: Advice, facts: Shown) -> dict[str, str]:
    title, *goal = heading(advice.question).split("\n")
    front = front_table(advice)
    best = advice.best
    form = best.choice.format or "the file as it is"
    longest = facts.terms[0]
    flags = _static_flags(advice)
    return {
        "title": escape(title),
        "goal": escape(" ".join(goal)),
        "recommended": escape(
            f"{form}, experts on the CPU: {_place(advice)}. Decode: {span(best.decode)} tokens/s. "
            f"First token after {span(best.first_token_s)} s."
        ),
        "limit": escape(
            f"Limited by: {longest.name} ({longest.share:.0%} of the time of a token)."
        ),
        "flags": _flags(flags, "flags"),
        "left_out": _left_out(advice),
        "memory": _bars(advice) + _table(memory_table(best.memory), keys=_part_names(advice)),
        "front_title": escape(front.title.capitalize()),
        "front": _table(front),
        "terms": _table(terms_table(facts.terms)),
        "cliff": _lines(cliff_lines(advice, facts.cliff)),
        "cache": _lines(cache_lines(facts.cached)),
        "upgrades": _upgrades(advice, facts),
        "grounds": _list(facts.grounds.lines()),
        "made": escape(f"Made by moesim {__version__}."),
    }


def _place(advice: Advice) -> str:
    return place_of(advice.best.choice, advice.question.model.shape)


def _lines(lines: Iterable[str]) -> str:
    """Return lines as sentences, a paragraph each."""
    texts = (line.strip() for line in lines)
    return "".join(f"<p>{escape(text[:1].upper() + text[1:])}.</p>" for text in texts)


def _upgrades(advice: Advice, facts: Shown) -> str:
    if not facts.upgrades:
        return "<p>No upgrade that was simulated saves time.</p>"
    return _table(upgrade_table(advice, facts.upgrades))


def _static_flags(advice: Advice) -> dict[str, str]:
    return flags_of(advice.question, advice.best.choice)


def _left_out(advice: Advice) -> str:
    reasons = left_out(advice.question, advice.best.choice)
    return "".join(
        f'<p class="soft">{escape(name)}: not given, because {escape(reason)}.</p>'
        for name, reason in reasons.items()
    )


def _flags(flags: Mapping[str, str], prefix: str) -> str:
    """Return the flags of each engine with a button that copies them; a script fills in ""."""
    lines = []
    for number, (engine, text) in enumerate(flags.items()):
        name = f"{prefix}-{number}"
        mark = "" if text else f' data-engine="{escape(engine)}"'
        lines.append(
            f'<div class="flags"><b>{escape(engine)}</b>'
            f'<code id="{name}"{mark}>{escape(text)}</code>'
            f'<button type="button" data-copies="{name}" data-script hidden '
            f'aria-label="copy the flags of {escape(engine)}">copy</button></div>'
        )
    return "\n".join(lines)


def _part_names(advice: Advice) -> list[str]:
    memory = advice.best.memory
    return list(dict.fromkeys((*memory.gpu, *memory.host)))


def _bars(advice: Advice) -> str:
    memory, names = advice.best.memory, _part_names(advice)
    bars = []
    for place, parts, has in (
        ("GPU", memory.gpu, memory.gpu_has),
        ("host", memory.host, memory.host_has or 0),
    ):
        if not parts:
            continue
        total = max(has, sum(parts.values())) or 1
        rects, start = [], 0.0
        for name, size in parts.items():
            wide = 100 * size / total
            rects.append(
                f'<rect class="part-{names.index(name)}" x="{start:.3f}" y="0" height="10" '
                f'width="{wide:.3f}"/>'
            )
            start += wide
        size_text = f" of {has / 2**30:.4g} GiB" if has else ""
        label = f"{place} memory: {sum(parts.values()) / 2**30:.2f} GiB{size_text}"
        bars.append(
            f'<p>{escape(label)}</p><svg class="bar" viewBox="0 0 100 10" '
            f'preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
            f"{''.join(rects)}</svg>"
        )
    return "\n".join(bars)


def _list(lines: Iterable[str]) -> str:
    """Return lines as a list; the word at the start that says a line's kind becomes a mark."""
    items = []
    for line in lines:
        kind, _, rest = line.partition(": ")
        if kind == "assumed" and rest:
            items.append(f'<li><span class="mark">assumed</span> {escape(rest)}</li>')
        else:
            items.append(f"<li>{escape(line)}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _table(table: Table, keys: Sequence[str] = ()) -> str:
    """Return a table; rows named in `keys` show the colour of their part of a bar."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = []
    for label, *cells in table.rows:
        text = escape(label.text + _SIGNS.get(label.mark, ""))
        key = f' class="key-{keys.index(label.text)}"' if label.text in keys else ""
        best = ' class="best"' if label.mark == "best" else ""
        data = "".join(f"<td>{escape(cell.text)}</td>" for cell in cells)
        rows.append(f'<tr{best}><th scope="row"{key}>{text}</th>{data}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
