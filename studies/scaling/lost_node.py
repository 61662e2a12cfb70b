"""A sweep on two nodes, one of which is killed: are all runs there, and are they the same bytes?

    python studies/scaling/lost_node.py runs/lost_node

Two Ray nodes of one processor each are started on this machine. `moesim compare --on ray://auto`
sweeps over them. When a third of the runs is there, all processes of the second node are killed. A
second sweep, of a local process, is compared with the first: every file, but for the time that a
run took. The report is `lost_node.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
SCENARIO: Final = ROOT / "scenarios/quickstart.yaml"
SWEEP: Final = "sweep={cache.policy: [lru, lfu], cache.slots: [2/layer, 4/layer], seed: SEEDS}"
PATIENCE_S: Final = 600.0


def command(out: Path, seeds: int, *options: str) -> list[str]:
    """Return the sweep's command line; a number of seeds gives four times as many points."""
    sweep = SWEEP.replace("SEEDS", str(list(range(seeds))))
    changes = ("workload.requests=8", "workload.order=resampled", sweep)
    sets = [part for change in changes for part in ("--set", change)]
    start = [sys.executable, "-m", "moesim", "compare", str(SCENARIO)]
    return [*start, *sets, "--no-plots", "--out", str(out), *options]


def environment() -> dict[str, str]:
    """Return the variables of all processes: no usage reports, and a token for this cluster."""
    private = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TQDM": "0", **private}


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """Yield a cluster of two nodes of this machine, with one processor each, and its second node.

    Each stands for a machine.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def runs(out: Path) -> list[Path]:
    """Return the finished runs of a sweep."""
    return sorted(out.glob("runs/*/manifest.json"))


def workers(node: Any) -> dict[int, bytes]:
    """Return the worker processes of a node, with what each is called: the function it runs."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if int(after_name[1]) == raylet(node):
            found[int(folder.name)] = name
    return found


def raylet(node: Any) -> int:
    """Return the process of a node that starts its workers."""
    return int(node.all_processes["raylet"][0].process.pid)


def is_busy(node: Any) -> bool:
    """Return whether a node runs a task."""
    return any(name.startswith(b"ray::_call") for name in workers(node).values())


def kill(node: Any) -> None:
    """Kill all processes of a node at once, as when its machine loses power."""
    for process in (raylet(node), *workers(node)):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def wait_for(out: Path, number: int, node: Any, sweep: subprocess.Popen[str]) -> None:
    """Wait until a number of runs is there and the node is busy. Raise if the sweep ends first."""
    deadline = time.monotonic() + PATIENCE_S
    while len(runs(out)) < number or not is_busy(node):
        if sweep.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the sweep ended before {number} runs were there")
        time.sleep(0.01)


def content(out: Path) -> dict[str, str]:
    """Return the hash of every file of the runs, without the time in a manifest."""
    hashes = {}
    for file in sorted(out.glob("runs/*/*")):
        text = file.read_bytes()
        if file.name == "manifest.json":
            text = json.dumps({**json.loads(text), "wall_s": None}).encode()
        hashes[file.relative_to(out).as_posix()] = sha256(text).hexdigest()
    return hashes


def with_lost_node(out: Path, seeds: int, env: Mapping[str, str]) -> tuple[int, str]:
    """Sweep over two nodes, and kill the second one; return the runs before, and the messages."""
    with two_nodes() as (cluster, second):
        there = {**env, "RAY_ADDRESS": cluster.address}
        line = command(out, seeds, "--on", "ray://auto")
        pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(line, env=there, text=True, **pipes) as sweep:
            wait_for(out, 4 * seeds // 3, second, sweep)
            before = len(runs(out))
            kill(second)
            cluster.remove_node(second, allow_graceful=False)
            _, messages = sweep.communicate()
        if sweep.returncode:
            raise RuntimeError(messages)
    return before, messages


def report(before: int, messages: str, there: Path, here: Path) -> str:
    """Return the report: what was killed when, and whether the results are the same."""
    ours, local = content(there), content(here)
    differ = sorted(
        name for name in ours.keys() | local.keys() if ours.get(name) != local.get(name)
    )
    tables = all(
        (there / name).read_bytes() == (here / name).read_bytes()
        for name in ("compare.csv", "runs.csv")
    )
    again = [line for line in messages.splitlines() if "began again" in line]
    lines = [
        "# A sweep that loses one of two nodes",
        "",
        "`python studies/scaling/lost_node.py` makes this file.",
        "",
        "| | |",
        "|---|---|",
        f"| runs of the sweep | {len(runs(here))} |",
        f"| runs that were there when the second node was killed | {before} |",
        f"| {again[0].replace(': ', ' | ') if again else 'runs that began again | 0'} |",
        f"| runs at the end | {len(runs(there))} |",
        f"| files of runs | {len(ours)} |",
        f"| files that differ from a local sweep's (but for the time a run took) | {len(differ)} |",
        f"| compare.csv and runs.csv are the same | {'yes' if tables else 'no'} |",
    ]
    return "\n".join([*lines, *(f"- {name} differs" for name in differ)]) + "\n"


def main() -> None:
    """Sweep twice, compare, and write the report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=8, help="a quarter of the runs")
    asked = parser.parse_args()
    env = environment()
    os.environ.update(env)  # before Ray is imported
    there, here = asked.out / "there", asked.out / "here"
    before, messages = with_lost_node(there, asked.seeds, env)
    line = command(here, asked.seeds, "--workers", "1")
    subprocess.run(line, env=env, check=True, stdout=subprocess.DEVNULL)
    text = report(before, messages, there, here)
    (asked.out / "lost_node.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
