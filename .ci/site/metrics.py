"""Every key of a summary, with its unit, an example and its meaning."""

from __future__ import annotations

import re

from markdown_table import cell, table
from repository import ROOT

import moesim
from moesim.results.metric_names import unit_of

HEAD = """# Metrics

Every key of `summary.json`, in the order of the file. The values are an example: two requests of
`scenarios/quickstart.yaml` with `prefetch: predicted`. They are simulated, with assumed costs.
[What a run writes](../results.md) explains the keys in groups, and the columns of the tables.

"""
UNITS = {"share": "share (0 to 1)", "": "number"}
"""Units that the page shows otherwise than `unit_of` gives them."""
OVERRIDES = ["workload.requests=2", "prefetch=predicted"]


def page() -> str:
    """Return a table of all keys of the summary of a run that prefetches."""
    done = moesim.run(moesim.load_scenario(ROOT / "scenarios/quickstart.yaml", OVERRIDES))
    meanings = meanings_of((ROOT / "docs/results.md").read_text("utf-8"))
    rows = [
        (f"`{key}`", unit(key, value), cell(_short(value)), meanings.get(key, ""))
        for key, value in done.summary.items()
    ]
    return HEAD + table(("key", "unit", "example", "meaning"), rows)


def unit(key: str, value: object) -> str:
    """Return the unit that the ending of a key stands for; "text" for a text."""
    if isinstance(value, str | list):
        return "text"
    if key.endswith("_per_s"):
        return f"{key.removesuffix('_per_s').rpartition('_')[2]} a second"
    found = unit_of(key)
    return UNITS.get(found, found)


def meanings_of(text: str) -> dict[str, str]:
    """Return the meaning of each key that a table of the page on results explains."""
    found: dict[str, str] = {}
    for line in re.sub(r".*\n\|-", "", text).splitlines():  # without heads of tables
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) > 1:
            keys, meaning = _row(cells)
            found |= {key: meaning for key in keys if key not in found}
    return found


def _row(cells: list[str]) -> tuple[list[str], str]:
    """Return the keys of a row, and its last cell that is no list of keys."""
    texts = [part for part in cells[1:] if part and not part.startswith("`")]
    named = [part for part in cells if part.startswith("`")]
    meaning = texts[-1] if texts else cells[-1]
    return re.findall(r"`(\w+)`", " ".join(named)), meaning.replace("](", "](../")


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)
    return text if len(text) < 60 else text[:57] + "..."
