"""What a file is, by its content: the first look of every importer, and safe ways to read it.

Sizes are bounded before anything is unpacked or parsed. Compressed text and UTF-16 are refused
with a sentence that says so. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from moesim.errors import SourceError
from moesim.inputs import open_regular, parse_json, read_bytes
from moesim.progress import Counter

__all__ = [
    "MOST_BYTES",
    "MOST_MEMBERS",
    "Glimpse",
    "lines_of",
    "nature",
    "read_document",
]

MOST_BYTES: Final = 1 << 30
"""Bytes of the largest source that is read, as stored and as unpacked."""
MOST_MEMBERS: Final = 100_000
"""Files of the largest archive that is read."""
_MOST_LINE: Final = 1 << 26
_HEAD: Final = 1 << 16
_LINES_AT_ONCE: Final = 1 << 16
HEADER: Final = "trace.json"
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip data (unpack it first)"),
    (b"\xfd7zXZ", "xz data (unpack it first)"),
    (b"\x28\xb5\x2f\xfd", "zstd data (unpack it first)"),
    (b"PAR1", "a Parquet file"),
    (b"\xff\xfe", "UTF-16 text (save it as UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (save it as UTF-8)"),
    (b"\xef\xbb\xbf", "text with a byte-order mark (save it as UTF-8 without one)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x80", "a pickle, which could run code"),
)


@dataclass(frozen=True)
class Glimpse:
    """A first look at a source: its start, and what its container lists. It never raises."""

    path: Path

    @cached_property
    def head(self) -> bytes:
        """Return the first bytes; none of a folder or of a file that cannot be read."""
        try:
            with open_regular(self.path) as file:
                return file.read(_HEAD)
        except OSError:
            return b""

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Return the names inside a zip archive; none where it is no readable one."""
        if not self.head.startswith(b"PK"):
            return ()
        try:
            with open_regular(self.path) as file, zipfile.ZipFile(file) as archive:
                return tuple(archive.namelist()[:MOST_MEMBERS])
        except Exception:
            return ()

    @property
    def is_torch(self) -> bool:
        """Return whether the file is a zip archive of `torch.save`."""
        return any(name.endswith("/data.pkl") for name in self.members)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Return the names of the arrays of an `.npz`; none where it is none."""
        names = self.members
        if not names or not all(name.endswith(".npy") for name in names):
            return ()
        return tuple(name.removesuffix(".npy") for name in names)

    @cached_property
    def npy_shape(self) -> tuple[int, ...]:
        """Return the shape of a `.npy` file; () where it is none."""
        if not self.head.startswith(b"\x93NUMPY"):
            return ()
        from moesim.trace.importers.arrays import npy_header

        try:
            with open_regular(self.path) as file:
                return npy_header(file)[0]
        except Exception:
            return ()

    @property
    def first_line(self) -> str:
        """Return the first line of a text, "" of anything else."""
        if _magic(self.head) or b"\0" in self.head:
            return ""
        return self.head.split(b"\n", 1)[0].decode("utf-8", "replace").strip()

    @cached_property
    def first_object(self) -> dict[str, Any]:
        """Return the first JSON object: of the first line, of the document, or of its list."""
        if self.head.lstrip()[:1] not in (b"{", b"["):
            return {}
        for text in (_first_line, _whole):
            try:
                value = parse_json(text(self.path))
            except (OSError, ValueError):
                continue
            if isinstance(value, list) and value:
                value = value[0]
            return value if isinstance(value, dict) else {}
        return {}


def _first_line(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.readline(_MOST_LINE)


def _whole(path: Path) -> bytes:
    return read_bytes(path, MOST_BYTES)


def _magic(head: bytes) -> str:
    return next((name for start, name in _MAGIC if head.startswith(start)), "")


def nature(path: Path) -> str:
    """Return what a file is, in words that complete "it is ..."."""
    glimpse = Glimpse(path)
    if path.is_dir():
        return "a trace already" if (path / HEADER).is_file() else "a folder"
    if not path.exists():
        return "missing (no such file)"
    head = glimpse.head
    if not head:
        return "empty" if path.is_file() else "no regular file"
    if name := _magic(head):
        return name
    if head.startswith(b"PK"):
        return _zip_nature(glimpse)
    if b"\0" in head:
        return "binary data"
    return _text_nature(glimpse)


def _zip_nature(glimpse: Glimpse) -> str:
    if not glimpse.members:
        return "a damaged zip archive"
    if glimpse.is_torch:
        return "a PyTorch file (.pt)"
    if glimpse.arrays:
        return f"an .npz of {', '.join(sorted(glimpse.arrays)[:8])}"
    return f"a zip archive of {len(glimpse.members)} files"


def _text_nature(glimpse: Glimpse) -> str:
    line = glimpse.first_line
    if glimpse.first_object:
        return f"JSON with the keys {', '.join(map(repr, list(glimpse.first_object)[:6]))}"
    if line[:1] in ("{", "["):
        return "text like JSON, without an object that can be read"
    short = line if len(line) <= 60 else f"{line[:57]}..."
    return f"text that starts with {short!r}"


def lines_of(path: Path, progress: Counter | None = None) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line of a UTF-8 text, without its line end.

    `progress(done, total)` counts lines.

    Raises:
        SourceError: the file is no such text, or a line is empty.
    """
    data = _bytes_of(path)
    if name := _magic(data[:16]):
        raise SourceError(path, "", f"is {name}; expected plain text")
    if not data.strip():
        raise SourceError(path, "", "is empty")
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, raw in enumerate(lines, start=1):
        if progress is not None and number % _LINES_AT_ONCE == 0:
            progress(number, len(lines))
        if b"\0" in raw:
            raise SourceError(path, f"line {number}", "holds a zero byte: this is no text")
        try:
            text = raw.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            where = f"line {number}, byte {error.start + 1}"
            raise SourceError(path, where, "is not UTF-8") from None
        if not text.strip():
            raise SourceError(path, f"line {number}", "is empty")
        yield number, text


def _bytes_of(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise SourceError(path, "", f"cannot be read: {error.strerror}") from None


def read_document(path: Path) -> list[tuple[str, Any]]:
    """Return the place and the value of each record of a JSON or JSON-lines file.

    A list is its items. A file whose first line is a whole value is JSON lines.

    Raises:
        SourceError: the file is no such text.
    """
    from moesim.trace.importers.json_text import check_keys

    lines = list(lines_of(path))
    try:
        first = parse_json(lines[0][1].encode())
    except ValueError as error:
        if len(lines) == 1:
            raise _bad_json(path, lines[0][0], error) from None
        first = None
    if len(lines) > 1 and first is not None:
        records = []
        for number, text in lines:
            try:
                records.append((f"line {number}", parse_json(text.encode())))
            except ValueError as error:
                raise _bad_json(path, number, error) from None
            check_keys(path, f"line {number}", text)
        return records
    whole = "\n".join(text for _, text in lines)
    try:
        value = parse_json(whole.encode())
    except ValueError as error:
        raise _bad_json(path, None, error) from None
    check_keys(path, "", whole)
    if isinstance(value, list):
        return [(f"item {number}", item) for number, item in enumerate(value)]
    return [("line 1" if len(lines) == 1 else "", value)]


def _bad_json(path: Path, line: int | None, error: ValueError) -> SourceError:
    where = "" if line is None else f"line {line}"
    return SourceError(path, where, f"is not readable JSON ({error})")
