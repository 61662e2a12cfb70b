"""Files of requests: the time, the lengths and the token blocks of each, with every line checked.

A file is read as it is, or refused with the first wrong line. Three kinds of lines may be repaired
instead, each only if the user names the repair, and each is counted.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TextIO, get_args

from moesim.errors import UsageError, WorkloadError
from moesim.inputs import open_regular
from moesim.workload.cells import TIME_UNITS, block_ids, length, moment_ns
from moesim.workload.conversations import conversation_lengths
from moesim.workload.formats import (
    FORMATS,
    Columns,
    Container,
    Format,
    check_header,
    own_format,
    sniff,
    with_columns,
)
from moesim.workload.records import BadLine, Record, csv_records, json_items, json_lines

__all__ = ["MOST_REQUESTS", "REPAIRS", "FileRequest", "Reading", "RequestFile", "read_requests"]

MOST_REQUESTS: Final = 1_000_000
"""The most requests of a workload; each takes about a kilobyte before anything is simulated."""

REPAIRS: Final = {
    "sort": "requests out of order were sorted by time",
    "drop_empty": "requests without prompt or output tokens were left out",
    "drop_surplus": "lines had cells beyond the header, which were left out",
}
"""What may be repaired, and how a note says it."""

_NOTHING_BEFORE: Final = -1


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a file.

    `format` is a key of `FORMATS`, or `auto`. `columns` replace the format's own. `block_tokens`
    are those of a block id. `characters_per_token` turns texts into lengths. `repair` holds keys
    of `REPAIRS`. `limit`: read the first requests only.
    """

    format: str = "auto"
    columns: Columns = field(default_factory=Columns)
    block_tokens: int | None = None
    characters_per_token: float | None = None
    repair: frozenset[str] = frozenset()
    limit: int | None = None


class FileRequest(NamedTuple):
    """One request. `arrival_ns` counts from the first arrival; None without times.

    `blocks` are the ids of its prompt's token blocks, or None. `domain` is "" without one.
    """

    line: int
    arrival_ns: int | None
    prompt_tokens: int
    output_tokens: int
    domain: str = ""
    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class RequestFile:
    """The requests of a file, in order of arrival.

    `block_tokens` is None if they have no block ids. `repaired` has the number of repaired lines
    and the first of them, by repair.
    """

    format: Format
    requests: Sequence[FileRequest]
    block_tokens: int | None
    repaired: dict[str, tuple[int, int]]

    @property
    def timed(self) -> bool:
        """Whether the file says when requests arrive."""
        return self.requests[0].arrival_ns is not None

    def notes(self) -> list[str]:
        """Return what was repaired, each with the number of lines and the first one."""
        return [
            f"{count:,} {REPAIRS[name]}, the first on line {line}"
            for name, (count, line) in self.repaired.items()
        ]


def read_requests(path: Path, how: Reading | None = None) -> RequestFile:
    """Return the requests of a file. Raise `WorkloadError` for the first wrong line.

    Raise `UsageError` for options that do not exist or contradict one another.
    """
    how = how or Reading()
    _check_options(how)
    try:
        # "-sig", because spreadsheets write a byte order mark in front of the header.
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as handle:
            return _Reader(handle, how).read()
    except OSError as error:
        raise WorkloadError(path, 1, f"cannot be read: {error.strerror}") from None
    except BadLine as error:
        raise WorkloadError(path, error.line, error.reason) from None


def _check_options(how: Reading) -> None:
    if how.format != "auto" and how.format not in FORMATS:
        names = ", ".join(["auto", *FORMATS])
        raise UsageError(f"there is no format {how.format!r} of request files; write {names}")
    if unknown := sorted(how.repair - REPAIRS.keys()):
        raise UsageError(f"there is no repair {unknown[0]!r}; write {', '.join(REPAIRS)}")
    units = (*TIME_UNITS, "date")
    if how.columns.unit is not None and how.columns.unit not in units:
        raise UsageError(f"there is no unit {how.columns.unit!r}; write {', '.join(units)}")


class _Reader:
    """Reads one open file."""

    def __init__(self, handle: TextIO, how: Reading) -> None:
        self._handle = handle
        self._how = how
        self._form: Format | None = None
        self._has_blocks: bool | None = None
        self._timed: bool | None = None
        self._repaired: dict[str, tuple[int, int]] = {}

    def read(self) -> RequestFile:
        container = self._container()
        requests = self._in_order(self._requests(self._records(container)))
        if not requests:
            raise BadLine(1, "holds no requests; write one a line")
        form = self._form
        assert form is not None
        if requests[0].arrival_ns is not None:
            first_ns = requests[0].arrival_ns
            requests = [it._replace(arrival_ns=(it.arrival_ns or 0) - first_ns) for it in requests]
        return RequestFile(
            form, requests, self._block_tokens if self._has_blocks else None, self._repaired
        )

    def _container(self) -> Container:
        """Return the container of the format, or that which the first character shows."""
        how = self._how
        if how.format != "auto":
            return FORMATS[how.format].container
        try:
            start = self._handle.read(4096).lstrip()[:1]
        except UnicodeDecodeError as error:
            raise BadLine(1, f"cannot be read: {error}") from None
        self._handle.seek(0)
        if not start:
            raise BadLine(1, "is empty; write one request a line, below a header")
        assert set(get_args(Container)) == {"csv", "jsonl", "json"}
        return {"{": "jsonl", "[": "json"}.get(start, "csv")  # type: ignore[return-value]

    def _records(self, container: Container) -> Iterator[Record]:
        if container == "csv":
            return csv_records(self._handle, partial(self._settle, container))
        if container == "json":
            return self._settled_by_first(container, json_items)
        return self._settled_by_first(container, json_lines)

    def _settled_by_first(
        self, container: Container, records: Callable[[TextIO], Iterator[Record]]
    ) -> Iterator[Record]:
        """Yield JSON records; the keys of the first one are the header."""
        for record in records(self._handle):
            if self._form is None:
                try:
                    self._settle(container, list(record.values))
                except ValueError as error:
                    raise BadLine(record.line, str(error)) from None
            yield record

    def _settle(self, container: Container, header: Sequence[str]) -> None:
        """Decide the format by a header. Raise `ValueError` if it lacks a column."""
        how = self._how
        if how.format != "auto":
            form = with_columns(FORMATS[how.format], how.columns)
        elif how.columns.complete:
            form = own_format(container, how.columns)
        else:
            form = with_columns(sniff(container, header), how.columns)
        check_header(form, header)
        self._form = form
        self._has_blocks = form.blocks is not None and form.blocks in header
        self._timed = form.arrival is not None and form.arrival in header

    def _requests(self, records: Iterator[Record]) -> Iterator[FileRequest]:
        """Yield the requests of the records, without those that a repair leaves out."""
        number = 0
        for record in records:
            try:
                request = self._request(record)
                if request is None:
                    continue
                number += 1
                if number > MOST_REQUESTS:
                    raise ValueError(
                        f"is request {number:,}; at most {MOST_REQUESTS:,} are simulated at once: "
                        "give workload.requests (or --requests) a number"
                    )
            except ValueError as error:
                raise BadLine(record.line, str(error)) from None
            yield request

    def _request(self, record: Record) -> FileRequest | None:
        """Return the request of a record; None if it is left out. Raise `ValueError`."""
        form = self._form
        assert form is not None
        if record.surplus and not self._repair("drop_surplus", record.line):
            cells = len(record.values) + record.surplus
            raise ValueError(f"has {cells} cells, and the header has {len(record.values)}")
        if form.name == "sharegpt":
            prompt, output = conversation_lengths(record.values, self._how.characters_per_token)
        else:
            prompt, output = (
                length(self._value(record, name)) for name in (form.prompt, form.output)
            )
        if not (prompt and output):
            if self._repair("drop_empty", record.line):
                return None
            raise ValueError(
                f"has {prompt} prompt and {output} output tokens, and each must be at least 1; "
                "`repair: [drop_empty]` leaves such requests out"
            )
        for name, known in ((form.arrival, self._timed), (form.blocks, self._has_blocks)):
            if name in record.values and not known:
                raise ValueError(f"has {name!r}, and the first request has none")
        arrival_ns = None
        if self._timed:
            arrival_ns = moment_ns(self._value(record, form.arrival or ""), form.unit)
        blocks = self._blocks(record, prompt) if self._has_blocks else None
        return FileRequest(record.line, arrival_ns, prompt, output, self._domain(record), blocks)

    def _value(self, record: Record, name: str) -> object:
        """Return a value of a record. Raise `ValueError` if it is missing or empty."""
        if name not in record.values:
            raise ValueError(f"has no {name!r}")
        value = record.values[name]
        if value == "":
            raise ValueError(f"column {name!r} is empty")
        return value

    def _domain(self, record: Record) -> str:
        form = self._form
        assert form is not None
        value = record.values.get(form.domain, "")
        if not isinstance(value, str) or (form.named_domain and not value):
            raise ValueError(f"domain {value!r} must be a text")
        return str(value)

    @property
    def _block_tokens(self) -> int:
        form = self._form
        assert form is not None
        return self._how.block_tokens or form.block_tokens or 0

    def _blocks(self, record: Record, prompt: int) -> tuple[int, ...]:
        """Return the block ids of a record. Raise `ValueError` if their number does not fit."""
        form = self._form
        assert form is not None
        blocks, size = block_ids(self._value(record, form.blocks or "")), self._block_tokens
        # Some tools leave out the last block, which is not full.
        if len(blocks) not in (prompt // size, -(-prompt // size)):
            raise ValueError(
                f"has {len(blocks)} block ids for {prompt} prompt tokens, and blocks of {size} "
                f"tokens would be {-(-prompt // size)}; state the tokens of a block by "
                "`block_tokens`"
            )
        return blocks

    def _in_order(self, requests: Iterator[FileRequest]) -> list[FileRequest]:
        """Return the first requests by time. Raise `BadLine` for one that is out of order."""
        limit = self._how.limit
        if "sort" in self._how.repair:
            every = list(requests)
            self._count_late(every)
            # A stable sort: requests of the same time keep their order.
            return sorted(every, key=lambda it: it.arrival_ns or 0)[:limit]
        return list(islice(self._ascending(requests), limit))

    def _ascending(self, requests: Iterator[FileRequest]) -> Iterator[FileRequest]:
        before = _NOTHING_BEFORE
        for request in requests:
            if request.arrival_ns is not None:
                if request.arrival_ns < before:
                    raise BadLine(
                        request.line,
                        "arrives before the request above it; sort the lines by time, or let "
                        "`repair: [sort]` do it",
                    )
                before = request.arrival_ns
            yield request

    def _count_late(self, requests: Sequence[FileRequest]) -> None:
        latest = _NOTHING_BEFORE
        for request in requests:
            arrival_ns = latest if request.arrival_ns is None else request.arrival_ns
            if arrival_ns < latest:
                self._repair("sort", request.line)
            latest = max(latest, arrival_ns)

    def _repair(self, name: str, line: int) -> bool:
        """Count a repaired line; return whether the user asked for this repair."""
        if name not in self._how.repair:
            return False
        count, first = self._repaired.get(name, (0, line))
        self._repaired[name] = count + 1, first
        return True
