"""What this folder's studies share: options, progress, figures with intervals, clear errors."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from moesim.cli.ending import run_to_its_end
from moesim.errors import MoesimError
from moesim.report.statistics import Estimate

T = TypeVar("T")


def at_least_one(text: str) -> int:
    """Return an option's whole number. Raise `ArgumentTypeError` if it is not 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def run_main(main: Callable[[], None]) -> None:
    """Run a study and end as a command does; the last line on stderr follows that of progress."""

    def lined() -> None:
        try:
            main()
        except (MoesimError, KeyboardInterrupt):
            print(file=sys.stderr)
            raise

    run_to_its_end(lined)


def command(study: str) -> str:
    """Return the command of this process, as the head of a report."""
    return f"```sh\n{shlex.join(['python', f'studies/readme/{study}.py', *sys.argv[1:]])}\n```\n"


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items, and count them in a line on stderr."""
    for done, item in enumerate(items, 1):
        # On stderr, because stdout is the report.
        print(f"\r{what}: {done} of {len(items)} ", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


def spread(value: Estimate, *, digits: int = 2, scale: float = 1, sign: bool = False) -> str:
    """Return a mean and half its 95 % interval over seeds, as text."""
    text = f"{scale * value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {scale * value.half:.{digits}f}"


def interval(values: Iterable[float], *, digits: int = 2) -> str:
    """Return the range from the least to the largest value, as text."""
    numbers = list(values)
    return f"{min(numbers):.{digits}f} to {max(numbers):.{digits}f}"
