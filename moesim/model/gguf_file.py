"""The header of a GGUF file: its metadata, and the name, sizes and type of each tensor.

The data of tensors is never read: the file is mapped, and the header lies at its start. A file in
parts (`...-00001-of-00003.gguf`) is read with all its parts, from the folder of the first.
Source: docs/gguf.md of ggml.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from moesim.errors import MissingExtra, UsageError

__all__ = ["Header", "Tensor", "read_header"]

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class Tensor(NamedTuple):
    """A tensor: sizes (the longest run in memory first), bytes, and its type, like `Q4_K`."""

    name: str
    sizes: tuple[int, ...]
    nbytes: int
    type: str

    @property
    def is_matrix(self) -> bool:
        """Whether it is more than a vector."""
        return sum(size > 1 for size in self.sizes) > 1

    @property
    def params(self) -> int:
        """The number of its weights."""
        return prod(self.sizes)


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its data; the tokenizer is left out."""

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    def value(self, key: str) -> Any:
        """Return a value of the file's architecture, such as `block_count`; None without it."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}")


def read_header(path: str | Path) -> Header:
    """Return the header of a GGUF file; metadata is that of its first part.

    Raises:
        MissingExtra: the gguf package is not installed.
        UsageError: the file or a part of it is missing, or is no GGUF file.
    """
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "reading the header of a .gguf file")
    headers = []
    for part in _parts(Path(path)):
        try:
            state = part.stat()
        except OSError as error:
            raise UsageError(f"{part}: cannot be read: {error.strerror or error}") from error
        version = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size)
        headers.append(_read(part, version))
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return Header(headers[0].metadata, tensors)


def _parts(path: Path) -> list[Path]:
    match = _PART.search(path.name)
    if match is None:
        return [path]
    start, number = path.name[: match.start()], match[2]
    return [path.with_name(f"{start}-{i:05d}-of-{number}.gguf") for i in range(1, int(number) + 1)]


# A scenario may name one file as shape and as format, and a sweep reads it at each point.
@lru_cache(maxsize=64)
def _read(path: Path, version: tuple[int, ...]) -> Header:
    """Return the header of one file; `version` is of its content."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.")  # long lists that nothing needs
        }
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the package raises errors of many kinds for damaged files
        raise UsageError(
            f"{path}: is no GGUF file that can be read, or it is cut off or damaged: {error}"
        ) from error
    tensors = (
        Tensor(one.name, tuple(map(int, one.shape)), int(one.n_bytes), one.tensor_type.name)
        for one in reader.tensors
    )
    return Header(metadata, tuple(tensors))
