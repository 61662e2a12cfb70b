"""Sequential against atomic replay: how wrong are misses if a batch's experts are replayed singly?

    python studies/replay/replay.py                 # reports/replay, in about three minutes
    python studies/replay/replay.py --batch 16      # the printed table at another batch

In an engine all experts of a layer are looked up at once, for the whole batch (*atomic*). A replay
one by one evicts in the middle of a layer, so it counts misses that no engine has. The study sweeps
eviction policies, batch and slots on real routing of DeepSeek-V2-Lite (deepseek-ai/ESFT), with the
ids of an event in random or in ascending order. It prints LRU and static placement at one batch,
and writes a page and two pictures. Published figures of moe-cache-eval stand beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from contrast import REPLAYS, Contrast, Grid, Results, contrast, routing
from replay_page import write_page

from moesim.cli.ending import run_to_its_end
from moesim.report.statistics import Estimate

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT.parent / "shared/data/routing/esft_deepseek_v2_lite"


def measure(grid: Grid, folder: Path) -> Results:
    """Return the contrasts of all settings; a task without enough requests for a batch has none."""
    found: dict[tuple[str, str, int], Contrast] = {}
    for task in grid.tasks:
        trace = routing(folder / f"{task}.npz", grid.layers)
        for batch in grid.batches:
            if trace.num_requests < batch:
                continue
            for policy in grid.policies if task == grid.task else grid.quick:
                own = grid.capacities if policy in grid.quick else grid.slow_capacities
                found[task, policy, batch] = contrast(trace, policy, own, batch)
    return Results(grid, found)


def main() -> None:
    """Measure, print the table of one batch, and write the page."""
    options = parse()
    grid = Grid(batches=sorted({*Grid().batches, options.batch}))
    results = measure(grid, options.folder)
    print_table(results, options.batch)
    write_page(results, options.out)


def print_table(results: Results, batch: int) -> None:
    """Print misses of LRU and of a static placement under both replays, by task and capacity."""
    print(f"misses per use at batch {batch}, experts per layer in the first column")
    for task in results.grid.tasks:
        if (task, "lru", batch) not in results.by_setting:
            print(f"\n{task:>11} | fewer than {batch} requests")
            continue
        print(
            f"\n{task:>11} |  LRU atomic  one by one  ascending  inflated "
            "| static atomic  one by one"
        )
        for capacity in results.grid.capacities:
            # Misses, not hits: in hits the inflation of a small miss rate is hard to see.
            lru, static = (
                [each.mean / 100 for each in _misses(results, task, policy, batch, capacity)]
                for policy in ("lru", "static")
            )
            print(
                f"{capacity:>11} | {lru[0]:>11.4f} {lru[1]:>11.4f} {lru[2]:>10.4f} "
                f"{lru[1] / lru[0] - 1:>+9.1%} | {static[0]:>13.4f} {static[1]:>11.4f}"
            )


def _misses(results: Results, task: str, policy: str, batch: int, capacity: int) -> list[Estimate]:
    found = results.at(task, policy, batch, capacity)
    assert found is not None, "the quick policies are tried at all capacities"
    return [found[0].misses[name][found[1]] for name in REPLAYS]


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="of the printed table")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of TASK.npz files")
    parser.add_argument("--out", type=Path, default=ROOT / "reports/replay")
    return parser.parse_args()


if __name__ == "__main__":
    run_to_its_end(main)
