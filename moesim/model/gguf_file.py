"""The header of a GGUF file: its metadata, and the name, size and type of each tensor.

The data of tensors is never read: the file is mapped, and the header lies at its start. A file in
parts (`...-00001-of-00003.gguf`) is read with all its parts, from the folder of the first.
Source: docs/gguf.md of ggml.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from moesim.errors import MissingExtra, UsageError

__all__ = ["Header", "Tensor", "read_header"]

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its name, its number of weights, and the name of its type, like `Q4_K`."""

    name: str
    params: int
    type: str


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its data."""

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]


def read_header(path: str | Path) -> Header:
    """Return the header of a GGUF file; metadata is that of its first part.

    Raises:
        MissingExtra: the gguf package is not installed.
        UsageError: the file or a part of it is missing, or is no GGUF file.
    """
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "reading the header of a .gguf file")
    headers = [_read(part) for part in _parts(Path(path))]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return Header(headers[0].metadata, tensors)


def _parts(path: Path) -> list[Path]:
    match = _PART.search(path.name)
    if match is None:
        return [path]
    start, number = path.name[: match.start()], match[2]
    return [path.with_name(f"{start}-{i:05d}-of-{number}.gguf") for i in range(1, int(number) + 1)]


def _read(path: Path) -> Header:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    # The package raises whatever a damaged or unknown file leads to.
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise UsageError(f"the header of {path} cannot be read: {error}") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return Header(
        metadata,
        tuple(
            Tensor(tensor.name, prod(map(int, tensor.shape)), tensor.tensor_type.name)
            for tensor in reader.tensors
        ),
    )
