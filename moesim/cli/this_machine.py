"""`--this-machine`: detected parts and measured rates, told as they become known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from moesim.advice.detect import detect
from moesim.advice.probe import probe
from moesim.advice.this_machine import described, measured_lines, with_measured
from moesim.cli.progress import progress

if TYPE_CHECKING:
    from moesim.advice.question import Parts, Question

__all__ = ["OwnMachine"]


class OwnMachine:
    """This machine: `parts` of it, which a probe makes more exact.

    Texts that are given replace what is detected; `gpu` is None where none is given. With `quiet`
    nothing is printed.
    """

    def __init__(
        self, gpu: str | None, cpu: str, ram: str, pcie: str, *, quiet: bool = False
    ) -> None:
        self._quiet = quiet
        self._found = detect()
        self._described = described(self._found, gpu=gpu, cpu=cpu, ram=ram, pcie=pcie)
        self._measured: tuple[str, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._tell("found", self._described.lines)

    @property
    def parts(self) -> Parts:
        """What was found."""
        return self._described.parts

    def probed(self, question: Question) -> Question:
        """Return a question about `parts` with what a probe of some seconds has measured."""
        reads, card = self._described.probes_reads, self._described.probes_card
        if not reads and card is None:
            return question  # all rates are given
        with progress() as show:
            if show is None:
                typer.echo("measuring for about ten seconds (--no-probe skips it)", err=True)
            reached = probe(self._found, card, reads=reads, progress=show)
        self._measured, self._notes = tuple(measured_lines(reached)), reached.notes
        self._tell("measured", self._measured)
        self._tell("note", self._notes)
        return replace(question, parts=with_measured(question.parts, reached))

    def plain(self) -> dict[str, Any]:
        """Return what was found and measured, and what was not, in sentences."""
        return {
            "found": list(self._described.lines),
            "measured": list(self._measured),
            "notes": list(self._notes),
        }

    def _tell(self, kind: str, lines: tuple[str, ...]) -> None:
        if not self._quiet:
            for line in lines:
                typer.echo(f"{kind}: {line}")
