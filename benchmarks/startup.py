"""CPU time of `moesim --help`, and the wait for compilers in the first command of the README.

`moesim --help` is compared with a bare typer application of two commands. The first command runs
with an empty cache of compiled code, and again with a full one. The difference is the wait.

    python benchmarks/startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from figures import ROOT, Figure, child_cpu_s, main

ROUNDS = 15
FIRST_ROUNDS = 3
FIRST = ["run", str(ROOT / "scenarios/quickstart.yaml"), "--no-plots"]
BARE = """
import typer
app = typer.Typer()
@app.command()
def one(name: str) -> None: ...
@app.command()
def two(name: str) -> None: ...
app()
"""


def cpu_s(*arguments: str, **environment: str) -> float:
    """Return the CPU seconds of one child process."""

    def run() -> None:
        command = [sys.executable, *arguments]
        env = {**os.environ, **environment}
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=env)

    return child_cpu_s(run)


def first_waits_s() -> float:
    """Return how much longer the first command takes when nothing is compiled yet."""
    with tempfile.TemporaryDirectory() as folder:
        spent = [
            cpu_s("-m", "moesim", *FIRST, "--out", f"{folder}/{name}", NUMBA_CACHE_DIR=folder)
            for name in ("first", "second")
        ]
    return spent[0] - spent[1]


def measure(quick: bool) -> list[Figure]:
    """Return the figures of both."""
    ours, bare = [], []
    cpu_s("-m", "moesim", "--help")  # Python compiles its own files in the first round
    for _ in range(3 if quick else ROUNDS):
        # In turn, so that a busy machine disturbs both alike.
        ours.append(cpu_s("-m", "moesim", "--help"))
        bare.append(cpu_s("-c", BARE, "--help"))
    waits = [first_waits_s() for _ in range(1 if quick else FIRST_ROUNDS)]
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    return [
        Figure.of("`moesim --help`", ours, "CPU s", "under 0.4"),
        Figure.of("`moesim --help` over a bare typer application", ratios),
        Figure.of("the first command of the README, wait for compilers", waits, "CPU s", "under 1"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
