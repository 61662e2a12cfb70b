"""CPU time of `moesim --help`, compared with a bare typer application of two commands.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

ROUNDS = 15
BARE = """
import typer
app = typer.Typer()
@app.command()
def one(name: str) -> None: ...
@app.command()
def two(name: str) -> None: ...
app()
"""


def cpu_s(*arguments: str) -> float:
    """Return the CPU seconds of one child process."""
    before = os.times()
    command = [sys.executable, *arguments, "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main() -> None:
    """Measure both in turn; print the median of the ratios and their spread."""
    ours, bare = [], []
    for _ in range(ROUNDS):
        # In turn, so that a busy machine disturbs both alike.
        ours.append(cpu_s("-m", "moesim"))
        bare.append(cpu_s("-c", BARE))
        time.sleep(0)
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    print(f"ratio {statistics.median(ratios):.2f}")
    print(f"ratio over {ROUNDS} rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(f"moesim --help: {statistics.median(ours) * 1e3:.0f} ms of CPU")
    print(f"bare typer --help: {statistics.median(bare) * 1e3:.0f} ms of CPU")


if __name__ == "__main__":
    main()
