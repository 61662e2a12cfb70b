"""Runs on other machines: a point travels as an order, and its run directory returns as bytes.

The caller is the only writer of the output folder. A worker simulates into a temporary folder of
its own machine, by the same functions as `moesim run`. It writes the same bytes: the text of
`scenario.yaml`, in which paths start at the output folder, travels with the order. The caller
compares the fingerprint of each run with its own, so that other code or another trace is found.
"""

from __future__ import annotations

import platform
import secrets
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim import __version__
from moesim.errors import MoesimError
from moesim.files import clean_up
from moesim.inputs import parse_json, read_copies
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_of
from moesim.simulate.rundir import MANIFEST, code_hash, fingerprint, put, write
from moesim.sweep.backend import Cluster, Shared, TaskResult, UnlikeMachine
from moesim.sweep.inputs import Input, inputs_of, packed, private_folder, settle

if TYPE_CHECKING:
    from moesim.sweep.points import Point

__all__ = ["simulate_away"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs for one run; `code` is the hash of the caller's moesim."""

    scenario: Scenario
    values: Mapping[str, Any]
    text: str
    code: str
    inputs: tuple[Input, ...]
    shared: Mapping[str, Shared] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lacking:
    """The answer of a machine that has no copy of some inputs."""

    inputs: list[Input]


def simulate_away(
    points: Sequence[Point], cluster: Cluster, *, force: bool
) -> Generator[TaskResult]:
    """Simulate points on a cluster; put each run into its folder, then yield its result.

    Raises:
        UnlikeMachine: a machine of the cluster has another moesim.
        UsageError: a machine lacks an input that is too large to send.
    """
    desk = _Desk(points, cluster)
    answers = cluster.answers(simulate_order, desk.orders(), desk.again)
    try:
        for answer in answers:
            yield TaskResult(answer.index, answer.error or desk.receive(answer, force=force))
    finally:
        answers.close()


class _Desk:
    """The caller's side: it makes orders, shares inputs that a machine lacks, and stores runs."""

    def __init__(self, points: Sequence[Point], cluster: Cluster) -> None:
        self._points = points
        self._cluster = cluster
        self._hashes: dict[Path, str | None] = {}
        self._shared: dict[str, Shared] = {}
        self._expected: dict[int, str] = {}

    def orders(self) -> Iterator[Order]:
        """Yield the order of each point; ten thousand take minutes, so they are made one by one."""
        for index in range(len(self._points)):
            yield self._order(index)

    def _order(self, index: int) -> Order:
        point = self._points[index]
        self._expected[index] = fingerprint(point.scenario)
        return Order(
            point.scenario,
            point.values,
            point.text(),
            code_hash(),
            inputs_of(point.scenario, self._hashes),
            dict(self._shared),
        )

    def again(self, index: int, value: Any) -> Order | None:
        """Return the order once more, with the inputs that a machine lacked."""
        if not isinstance(value, Lacking):
            return None
        for given in value.inputs:
            if given.digest not in self._shared:
                self._shared[given.digest] = self._cluster.share(packed(given))
        return self._order(index)

    def receive(self, answer: TaskResult, *, force: bool) -> Exception | None:
        """Put the files of a run into its folder; return the error, if any."""
        point = self._points[answer.index]
        made, expected = _made_from(answer.value), self._expected.pop(answer.index)
        if made != expected:
            return MoesimError(
                "its worker made another run: an input, a policy's code or a package that it "
                "imports is not the same there, or has changed during the sweep"
            )
        try:
            put(answer.value, point.folder, force=force)
        except Exception as error:  # a full disk, say, is the error of this point
            return error
        return None


def _made_from(files: Mapping[str, bytes]) -> object:
    """Return the fingerprint in the manifest of a run."""
    return parse_json(files[MANIFEST])["fingerprint"]


def simulate_order(order: Order) -> dict[str, bytes] | Lacking:
    """Simulate one order on a worker; return the files of its run directory.

    Raise `UnlikeMachine` where moesim is another here.
    """
    if order.code != code_hash():
        raise UnlikeMachine(
            f"{platform.node()}, a machine of the cluster, has another moesim ({__version__} in "
            f"{Path(__file__).parents[1]}); install the same version on all machines"
        )
    copies, lacking = settle(order.inputs, order.shared)
    if lacking:
        return Lacking(lacking)
    with read_copies(copies):
        return _files_of_run(order, _runs_folder() / secrets.token_hex(8))


def _files_of_run(order: Order, out: Path) -> dict[str, bytes]:
    """Simulate an order into the temporary folder `out`; return the files."""
    plan = prepare(order.scenario)
    try:
        write(order.scenario, out, partial(result_of, plan), point=order.values, text=order.text)
        return {file.name: file.read_bytes() for file in sorted(out.iterdir())}
    finally:
        shutil.rmtree(out, ignore_errors=True)


@cache
def _runs_folder() -> Path:
    """Return the folder for runs of this machine, without what killed workers left there."""
    folder = private_folder() / "runs"
    clean_up(folder)
    return folder
