"""The field's contradictory claims: where each holds, where it flips, and the border between.

    python studies/claims/claims.py                        # all claims, in about five minutes
    python studies/claims/claims.py --only pinning         # some; the others stay as they are
    python studies/claims/claims.py --small --out /tmp/x   # tiny grids, to try the code

Routing is read from the folder of shared data (`--shared`). The study writes `claims.md`, a picture
for each claim, and `claims.json`, from which `--page` writes the page again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from finding import read_findings, save_png, write_findings
from routing import SHARED

from moesim.cli.ending import run_to_its_end
from moesim.report.style import house_style

ROOT: Final = Path(__file__).resolve().parents[2]
CLAIMS: Final = (
    "hot_set", "pinning", "lru_prefetch", "hits_and_time", "working_set", "templates", "uniform",
    "scope", "prefill",
)  # fmt: skip
"""The module of each claim, in the order of the page."""


def main() -> None:
    """Try the claims asked for, and write page and pictures."""
    options = parse()
    findings = read_findings(options.out)
    for name in [] if options.page else options.only or CLAIMS:
        began = time.perf_counter()
        module = importlib.import_module(name)
        settings = module.SMALL if options.small else module.Grid()
        with house_style():
            found, chart = module.find(replace(settings, shared=options.shared))
        save_png(chart, options.out)
        findings[name] = found
        # After each claim, so that an interrupted study keeps what is done.
        write_findings(options.out, findings, CLAIMS)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    write_findings(options.out, findings, CLAIMS)


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CLAIMS, help="try these claims")
    parser.add_argument("--small", action="store_true", help="sweep tiny grids")
    parser.add_argument("--page", action="store_true", help="write the page from claims.json")
    parser.add_argument("--out", type=Path, default=ROOT / "reports/claims")
    parser.add_argument("--shared", type=Path, default=SHARED)
    return parser.parse_args()


if __name__ == "__main__":
    run_to_its_end(main)
