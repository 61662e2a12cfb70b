"""Policy: the members that the policies of all families share.

A policy declares what a reader of its results must know: its options, the files it learns from
(`Policy.inputs`), and a sentence for the notes of a result (`Policy.note`). Both are methods of the
class, because they are called where no policy is built: for the fingerprint of a run, for the
checks before it, and for reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from moesim.policies.registry import NoOptions

__all__ = ["Input", "Policy", "hindsight_note"]


@dataclass(frozen=True, slots=True)
class Input:
    """A file or a folder whose content decides what a policy does.

    `option` is the name of the option that holds the path, if one does; error messages then give
    the option's line. With `trace`, the path is the folder of a trace to learn from. That trace
    must have the layers and experts of the replayed one. The path None stands for the replayed
    trace itself, from which a policy learns in hindsight.

    `part` is the part of the trace's requests to learn from, as two shares: (0, 0.5) is the first
    half. With it, a run may not serve these requests, so learning from them is no hindsight.
    """

    path: Path | None
    option: str = ""
    trace: bool = False
    part: tuple[float, float] | None = None


class Policy:
    """Base class of the base classes of all families.

    Class attributes, of which `register` sets the first:

    - `name`: the name in scenarios;
    - `clairvoyant`: sees the future, so it is a bound and no real policy;
    - `Options`: the dataclass of the options.
    """

    name: ClassVar[str]
    clairvoyant: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        """Return the files and folders from which a policy with these options learns.

        They must exist, and a run with other content is another run. By default they are the paths
        among the options. A relative path starts at the working directory.
        """
        values = [(field.name, getattr(options, field.name)) for field in fields(options)]
        return [Input(value, name) for name, value in values if isinstance(value, Path)]

    @classmethod
    def note(cls, options: Any) -> str | None:
        """Return a sentence on what a policy has learnt or assumes; None if there is nothing.

        The notes of a result contain it. Paths among the options are as the scenario spells them.
        """
        return None


def hindsight_note(name: str) -> str:
    """Return the note of a policy that has learnt on the trace that is replayed."""
    return f"{name} was learnt on the replayed trace itself: hindsight, an oracle"
