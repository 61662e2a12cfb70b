"""The error of replaying a batch's experts one by one instead of as one layer event.

    python studies/replay_contrast.py [TRACE.npz ...] [--batch 8]

For each task and capacity it prints the misses of LRU under both replays, and the inflation by the
sequential one. It prints the same for a static placement, where both replays agree. The default
traces are the ESFT recordings (DeepSeek-V2-Lite) in ../shared/data/routing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moesim.simulate.curve import curve
from moesim.trace import from_esft

SHARED = Path(__file__).resolve().parents[2] / "shared/data/routing/esft_deepseek_v2_lite"
TASKS = [SHARED / f"{task}.npz" for task in ("intent", "law", "summary", "translation")]
CAPACITIES = range(16, 49, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="*", type=Path, default=TASKS)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    print(f"misses per access at batch {options.batch}, experts per layer in the first column")
    for path in options.traces:
        trace = from_esft(path)
        atomic, sequential = (
            curve(
                trace,
                ["lru", "static"],
                capacities=CAPACITIES,
                batch=options.batch,
                replay=replay,
            )
            for replay in ("atomic", "sequential")
        )
        print(f"\n{path.stem:>11} |  LRU atomic  sequential  inflated | static atomic  sequential")
        for capacity in CAPACITIES:
            # Misses, not hits: in hits the inflation of a small miss rate is hard to see.
            lru, worse = (1 - rates["lru"][capacity] for rates in (atomic, sequential))
            static, same = (1 - rates["static"][capacity] for rates in (atomic, sequential))
            print(
                f"{capacity:>11} | {lru:>11.4f} {worse:>11.4f} {worse / lru - 1:>+9.1%} "
                f"| {static:>13.4f} {same:>11.4f}"
            )


if __name__ == "__main__":
    main()
