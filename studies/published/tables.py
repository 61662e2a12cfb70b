"""The tables of docs/published.md: published figures beside moesim's.

    python studies/published/tables.py                  # all tables, in a few minutes
    python studies/published/tables.py --only resident  # one table; the others stay as they are

Published figures are read from the folder of shared data (`--shared`). The study writes
`studies/published/rows.json`, and the tables of the document between their marks. `--tables` writes
the document again from `rows.json` alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from mixtral_offloading import latency_row, offloading_rows
from moe_infinity import infinity_rows
from pre_gated import pre_gated_rows
from recent_models import recent_rows
from resident_points import resident_rows
from results import TABLES, Results, read_results, tables_of, write_results
from system_hits import lru_by_slots, mixtral_locality, system_rows

from moesim.cli.ending import run_to_its_end
from moesim.errors import UsageError
from moesim.files import output_errors
from moesim.report.tabular import with_tables

ROOT: Final = Path(__file__).resolve().parents[2]
ROWS: Final = Path(__file__).with_name("rows.json")
DOCUMENT: Final = ROOT / "docs/published.md"


def main() -> None:
    """Compute the tables asked for, and write rows and document."""
    options = parse()
    if not options.tables:
        wanted = [options.only] if options.only else list(TABLES)
        earlier = read_results(ROWS) if options.only else Results()
        write_results(updated(earlier, wanted, options.shared), ROWS)
    # From the file, so that the document shows its rounded figures.
    text = with_tables(DOCUMENT.read_text(encoding="utf-8"), tables_of(read_results(ROWS)))
    with output_errors(DOCUMENT):
        DOCUMENT.write_text(text, encoding="utf-8")


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(TABLES), help="compute one table")
    parser.add_argument("--tables", action="store_true", help="write the document from rows.json")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    return parser.parse_args()


def updated(results: Results, wanted: list[str], shared: Path) -> Results:
    """Return the results with the wanted tables computed anew."""
    published = _published(shared)
    rows = {name: [row for row in results.rows if row.table == name] for name in TABLES}
    found = {each.group: each for each in results.found}
    fits, slots, layers = results.fits, results.lru_by_slots, dict(results.layer_ns)
    if "resident" in wanted:
        tell("resident", 0, 1)
        rows["resident"] = resident_rows(shared)
    if "pre_gated" in wanted:
        tell("Pre-gated MoE", 0, 1)
        rows["pre_gated"], layers["Pre-gated MoE"] = pre_gated_rows(published)
    if "offloading" in wanted or "systems" in wanted:
        tell("routing of Mixtral", 0, 1)
        mixtral = mixtral_locality(published)
        found[mixtral.group] = mixtral
        if "offloading" in wanted:
            tell("mixtral-offloading", 0, 1)
            rows["offloading"], fits = offloading_rows(published, mixtral.knobs)
            latency = [each for each in published if each["metric"] == "per_token_latency"]
            rows["offloading"] += [latency_row(each, fits, mixtral.knobs) for each in latency]
        if "systems" in wanted:
            tell("hit rates of systems", 0, 1)
            rows["systems"] = system_rows(published, mixtral, shared)
            slots = lru_by_slots(mixtral)
    if "recent" in wanted:
        rows["recent"], knobs = recent_rows(shared, tell)
        found |= {each.group: each for each in knobs}
    if "infinity" in wanted:
        tell("MoE-Infinity", 0, 1)
        routings = {each.group.partition(",")[0]: each.knobs for each in found.values()}
        rows["infinity"], layers["MoE-Infinity"] = infinity_rows(routings, shared)
    print(file=sys.stderr)
    every = [row for name in TABLES for row in rows[name]]
    return Results(every, list(found.values()), fits, slots, layers)


def _published(shared: Path) -> list[dict[str, Any]]:
    path = shared / "reference/published_numbers.json"
    if not path.exists():
        raise UsageError(
            f"the published figures are read from {path}, which does not exist; name their folder "
            "with --shared, or write the document from rows.json with --tables"
        )
    read: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return read


def tell(what: str, done: int, total: int) -> None:
    """Show on stderr what is being computed."""
    count = f": {done} of {total}" if total > 1 else ""
    print(f"\r{what}{count}{' ' * 20}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_to_its_end(main)
