"""The inputs of a run on another machine: which it needs, and the copies that this machine has.

An input is a file, a trace or a folder that a scenario names. It counts by its content. A machine
that has the content at the same path reads it there. Another machine gets the bytes once and keeps
them in a private folder of its temporary folder, by their hash.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.errors import MoesimError, UsageError
from moesim.files import whole_folder
from moesim.locks import exclusive
from moesim.scenario import Scenario
from moesim.simulate.rundir import hash_of, named_paths, policy_inputs
from moesim.sweep.backend import Shared

__all__ = ["Input", "inputs_of", "packed", "private_folder", "settle"]

MOST_SHIPPED: Final = 4 << 30
"""Bytes of the largest input that is sent to machines that lack it."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its path as the scenario spells it, its absolute path here, and its hash."""

    path: str
    place: str
    digest: str


def inputs_of(scenario: Scenario, hashes: dict[Path, str | None]) -> tuple[Input, ...]:
    """Return the inputs of a scenario. `hashes` keeps those of paths that were hashed before."""
    found: dict[str, Input] = {}
    named = [*named_paths(scenario).values(), *(path for _, path in policy_inputs(scenario))]
    for path in named:
        if path not in hashes:
            hashes[path] = hash_of(path, whole=True)
        digest = hashes[path]
        if digest is not None:
            found.setdefault(str(path), Input(str(path), os.path.abspath(path), digest))
    return tuple(found.values())


def packed(given: Input) -> list[tuple[str, Any]]:
    """Return the files of an input: their paths inside it and their bytes, as arrays.

    Raises:
        UsageError: the input is too large to send.
    """
    place = Path(given.place)
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file())
    nbytes = sum(file.stat().st_size for file in files)
    if nbytes > MOST_SHIPPED:
        raise UsageError(
            f"{given.place}: has {nbytes:,} bytes, and a worker's machine lacks it; at most "
            f"{MOST_SHIPPED:,} are sent. Put it on a shared disk, at the same path everywhere"
        )
    return [
        # An array travels through Ray's object store without a copy in memory.
        (file.relative_to(place).as_posix(), np.fromfile(file, np.uint8))
        for file in files
    ]


def settle(
    inputs: Iterable[Input], shared: Mapping[str, Shared]
) -> tuple[dict[str, str], list[Input]]:
    """Return where this machine has each input, by its path, and the inputs that it lacks.

    `shared` holds the files of inputs by hash. What is in it is fetched once for each machine.
    """
    copies: dict[str, str] = {}
    lacking = []
    for given in inputs:
        copy = _here(given.place, given.digest) or _stored(given, shared)
        if copy is None:
            lacking.append(given)
        else:
            copies[given.path] = copy
    return copies, lacking


def _here(place: str, digest: str) -> str | None:
    """Return a path if this machine has the same content there."""
    try:
        return place if hash_of(Path(place), whole=True) == digest else None
    except OSError:
        return None


def _stored(given: Input, shared: Mapping[str, Shared]) -> str | None:
    """Return the path of a stored copy, which is fetched if it is shared; None if there is none."""
    folder = private_folder() / given.digest[:32]
    # The name stays: its ending may say what the file is.
    copy = folder / os.path.basename(given.place)
    if not copy.exists() and given.digest in shared:
        with exclusive(folder.with_name(f"{folder.name}-fetch"), wait=True):
            if not copy.exists():
                with whole_folder(folder, force=True) as partial:
                    _unpack(shared[given.digest].get(), partial / copy.name)
                    if hash_of(partial / copy.name, whole=True) != given.digest:
                        raise MoesimError(f"{given.place} has changed since the sweep began")
    return str(copy) if copy.exists() else None


def _unpack(files: Iterable[tuple[str, Any]], place: Path) -> None:
    for name, content in files:
        target = place if name == "." else place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(target)


@cache
def private_folder() -> Path:
    """Return this user's folder for copies on this machine; only the user may read it."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"moesim-sweep-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if hasattr(os, "getuid") and (status.st_uid != user or folder.is_symlink()):
        return Path(tempfile.mkdtemp(prefix="moesim-sweep-"))  # another user made it
    return folder
