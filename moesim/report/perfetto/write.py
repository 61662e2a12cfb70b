"""Writing the file, event by event, so that a long run needs no memory for it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO, Final

from moesim import __version__
from moesim.files import check_may_write, whole_file
from moesim.report.metrics import run_caption
from moesim.report.perfetto.events import counter_events, lane_events, request_events
from moesim.report.perfetto.works import works_of
from moesim.report.runs import Run

__all__ = ["Written", "check_timeline", "write_perfetto"]

_MARK: Final = b'"otherData": {"generator": "moesim '


@dataclass(frozen=True, slots=True)
class Written:
    """What a file holds: its path, the number of works, and in words the steps that are shown."""

    path: Path
    works: int
    steps: str


def check_timeline(file: Path) -> None:
    """Raise an error, before any work, where the timeline cannot be written.

    Raises:
        UsageError: the name does not end in .json or .json.gz, or is that of a folder.
        OutputError: the file exists, and moesim did not write it.
    """
    check_may_write(file, "--perfetto", "a timeline", (".json", ".json.gz"), _MARK)


def write_perfetto(run: Run, file: Path) -> Written:
    """Write the timeline of a run; compressed if the name ends in `.gz`.

    Lanes have the recorded steps (`timeline:` of the scenario), at most 100,000 works. Requests and
    counters are of the whole run.

    Raises:
        OutputError: the file cannot be written.
        DamagedRun: a table of the run is missing or damaged.
    """
    works, steps, recorded = works_of(run)
    shown = _in_words(steps, recorded, int(run.value("steps")))
    events = chain(lane_events(run, works, steps), request_events(run), counter_events(run))
    about = {
        "generator": f"moesim {__version__}",
        "run": run.text("name"),
        "lanes": shown,
        "caption": run_caption(run),
    }
    with whole_file(file) as partial, _opened(partial, compressed=file.suffix == ".gz") as stream:
        stream.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(about))
        stream.write(', "traceEvents": [\n')
        separator = ""
        for event in events:
            stream.write(separator + json.dumps(event, separators=(",", ":"), allow_nan=False))
            separator = ",\n"
        stream.write("\n]}\n")
    return Written(file, len(works), shown)


@contextmanager
def _opened(file: Path, *, compressed: bool) -> Iterator[IO[str]]:
    if not compressed:
        with file.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    # Without a time and a name inside, equal runs give equal files.
    with (
        file.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
    ):
        yield stream


def _in_words(steps: Sequence[int], recorded: int, total: int) -> str:
    """Return which steps have their works in the file."""
    if not steps:
        return "no step was recorded; set timeline.steps"
    span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    cut = f", cut from the {recorded} recorded ones" if len(steps) < recorded else ""
    return f"{span} of {total}{cut}"
