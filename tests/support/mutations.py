"""A spot check of the tests: does each of some single-line mutations make one fail?

    python tests/support/mutations.py [--workers 2] [--only kv.py]

`mutations.yaml` lists them. Each is applied to a copy of the tree, and the tests named there run
until one fails (killed) or all pass (survived). Exit code 1 if a mutation survives that has no
explanation there, or is killed although one says that it survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml
from paths import ROOT

TABLE = Path(__file__).with_name("mutations.yaml")
HANGS_S = 300  # a mutation may make a loop endless
_LEFT_OUT = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "runs", "reports")


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` becomes `new` in `file`; `survives` says why no test notices, if none should."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.old.splitlines()[0].strip()} -> {_changed_line(self)}"


def _changed_line(mutation: Mutation) -> str:
    pairs = zip(mutation.old.splitlines(), mutation.new.splitlines(), strict=True)
    return next(new.strip() for old, new in pairs if old != new)


def read_table(table: Path = TABLE) -> list[Mutation]:
    """Return all mutations of a table."""
    return [
        Mutation(group["file"], tests=tuple(group["tests"]), **mutation)
        for group in yaml.safe_load(table.read_text())
        for mutation in group["mutations"]
    ]


@contextmanager
def copied_trees(count: int) -> Iterator[SimpleQueue[Path]]:
    """Yield copies of the tree, with the shared data beside them as beside the tree itself."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        if (ROOT.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        for number in range(count):
            tree = Path(folder) / str(number)
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            trees.put(tree)
        yield trees


def passes(tree: Path, tests: Sequence[str]) -> bool:
    """Return whether tests pass in a tree; tests that hang fail."""
    # Bytecode is found by size and time of its source, which a mutation may leave as they are.
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, timeout=HANGS_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def survives(mutation: Mutation, trees: SimpleQueue[Path]) -> tuple[bool, float]:
    """Return whether all tests pass with a mutation, and how many seconds they took."""
    tree = trees.get()
    file = tree / mutation.file
    text = file.read_text()
    began_s = time.monotonic()
    try:
        file.write_text(text.replace(mutation.old, mutation.new))
        return passes(tree, mutation.tests), time.monotonic() - began_s
    finally:
        file.write_text(text)
        trees.put(tree)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="mutations of files whose path holds this")
    options = parser.parse_args(arguments)
    mutations = [mutation for mutation in read_table() if options.only in mutation.file]
    wrong = 0
    with copied_trees(options.workers) as trees, ThreadPoolExecutor(options.workers) as pool:
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        tree = trees.get()
        if not passes(tree, tests):
            print("the tests fail without any mutation")
            return 1
        trees.put(tree)
        running = {pool.submit(survives, mutation, trees): mutation for mutation in mutations}
        for done in as_completed(running):
            mutation, (alive, spent_s) = running[done], done.result()
            wrong += alive != bool(mutation.survives)
            word = "SURVIVED" if alive else "killed"
            note = f" ({mutation.survives})" if mutation.survives else ""
            print(f"{word:8} {spent_s:5.0f} s  {mutation}{note}", flush=True)
    print(f"{len(mutations)} mutations; {wrong} not as the table says")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
