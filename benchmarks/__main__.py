"""Run all benchmarks with one command, and write their table and their history.

    python -m benchmarks                  # all; on an idle machine
    python -m benchmarks served scale     # some; the others keep their figures
    python -m benchmarks --quick --out /tmp/benchmarks.md --history /tmp/history

Each script runs in a process of its own. One that fails is reported at the end, and its earlier
figures stay. All together take about half an hour; `served`, `scale` and `sweep` take most of it.
`curve` needs libcachesim (the extra `test`); `gates` and `real_time` need torch. Without numba or
Ray (the extras `fast` and `ray`) their figures are left out, or are those of the reference back
end. Two inputs are not part of moesim: the variables AZURE_CODE_CSV and LAW_NPZ name them.

The table goes between the marks of `docs/benchmarks.md`, and all numbers to
`benchmarks/history/VERSION.json`. `benchmarks/gpu` is apart, because it needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))  # scripts import the modules beside them

from figures import ROOT, Figure, device, table  # noqa: E402

from moesim import __version__  # noqa: E402
from moesim.files import whole_file, write_json  # noqa: E402

SCRIPTS = (
    "served",
    "scale",
    "events",
    "curve",
    "sweep",
    "files",
    "startup",
    "real_time",
    "gates",
    "recording",
)
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def measured(script: str, quick: bool) -> list[Figure]:
    """Return the figures of one script. Raise `CalledProcessError` if it fails."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--json"]
    done = subprocess.run(
        command + ["--quick"] * quick, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [Figure(**each) for each in json.loads(done.stdout.splitlines()[-1])]


def read_history(file: Path) -> dict[str, Any]:
    """Return what was measured of this version so far."""
    if not file.exists():
        return {"version": __version__, "scripts": {}}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def in_words(machine: dict[str, Any]) -> str:
    """Return a machine as a phrase."""
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}"
    )


def section(history: dict[str, Any]) -> str:
    """Return the part of the document that this program writes."""
    by_machine: dict[str, dict[str, list[Figure]]] = {}
    for script in sorted(history["scripts"], key=_place):
        entry = history["scripts"][script]
        machine = in_words(entry["device"]) + (", a quick trial" if entry["quick"] else "")
        figures = [Figure(**each) for each in entry["figures"]]
        by_machine.setdefault(machine, {})[script] = figures
    parts = [
        f"moesim {history['version']} on {machine}:\n\n{table(groups)}"
        for machine, groups in by_machine.items()
    ]
    return "\n\n".join(parts)


def _place(script: str) -> int:
    return SCRIPTS.index(script) if script in SCRIPTS else len(SCRIPTS)


def with_section(document: str, text: str) -> str:
    """Return a document with a new text between the marks."""
    before, _, rest = document.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"error: the document has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; return 1 if a script failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scripts", nargs="*", metavar="SCRIPT", help=f"Some of {', '.join(SCRIPTS)} (default: all)."
    )
    parser.add_argument("--quick", action="store_true", help="Few rounds and small sizes.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--history", type=Path, default=FOLDER / "history")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.scripts) - set(SCRIPTS)):
        parser.error(f"no script {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    document = ROOT / "docs/benchmarks.md"
    source = options.out if options.out.exists() else document
    file = options.history / f"{__version__}.json"
    history, failed = read_history(file), []
    for script in options.scripts or SCRIPTS:
        print(f"{script} ...", flush=True)
        try:
            figures = measured(script, options.quick)
        except (subprocess.CalledProcessError, ValueError) as error:
            failed.append(script)
            print(f"{script} failed: {error}")
            continue
        print(table({script: figures}), flush=True)
        history["scripts"][script] = {
            "device": device(),
            "quick": options.quick,
            "figures": [asdict(each) for each in figures],
        }
        # After each script, so that nothing is lost if a later one is stopped.
        options.history.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            write_json(partial, history)
        text = with_section(source.read_text(encoding="utf-8"), section(history))
        with whole_file(options.out) as partial:
            partial.write_text(text, encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
