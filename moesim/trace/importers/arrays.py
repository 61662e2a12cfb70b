"""Arrays in NumPy's files, read without pickle and only up to a size.

A header may claim any shape, and a small archive may unpack to a large one. So sizes are compared
with the file before anything is read.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError
from moesim.inputs import open_regular
from moesim.trace.importers import source
from moesim.trace.importers.source import Glimpse, nature

__all__ = ["arrays_in_zip", "check_zip", "npy_array", "npy_header", "read_npy"]


def check_zip(path: Path) -> None:
    """Refuse a zip archive that is damaged or unpacks to more than `MOST_BYTES`.

    Every member is read once, so that its checksum is known to hold.

    Raises:
        SourceError: it is damaged or too large.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            _check_sizes(path, archive)
            damaged = archive.testzip()
    except SourceError:
        raise
    except Exception as error:  # zip, zlib and struct each raise their own on a damaged file
        raise SourceError(path, "", f"is a damaged zip archive: {error}") from None
    if damaged is not None:
        raise SourceError(path, damaged, "is damaged: its checksum does not hold")


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if len(members) > source.MOST_MEMBERS or total > source.MOST_BYTES:
        raise SourceError(
            path,
            "",
            f"unpacks to {total:,} bytes in {len(members):,} files; at most "
            f"{source.MOST_BYTES:,} bytes in {source.MOST_MEMBERS:,} files are read",
        )
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise SourceError(path, "", "is a damaged zip archive: it names a file twice")


def arrays_in_zip(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an `.npz` by name.

    Raises:
        SourceError: the file is no `.npz`, is damaged, too large, or holds Python objects.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            _check_sizes(path, archive)
            return {
                member.filename.removesuffix(".npy"): _member(path, archive, member)
                for member in archive.infolist()
            }
    except SourceError as error:
        where = error.where
        raise SourceError(path, where, f"is not a readable .npz: {error.reason}") from None
    except Exception as error:  # zip, zlib and numpy each raise their own on a damaged file
        reason = str(error) if path.is_file() and Glimpse(path).members else nature(path)
        raise SourceError(path, "", f"is not a readable .npz: it is {reason}") from None


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    if not member.filename.endswith(".npy"):
        raise SourceError(path, member.filename, "is no array (.npy)")
    with archive.open(member) as file:
        return read_npy(path, member.filename, file, member.file_size)


def npy_array(path: Path) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file. Raise `SourceError` where it is none."""
    try:
        with open_regular(path) as file:
            size = path.stat().st_size
            if size > source.MOST_BYTES:
                raise SourceError(
                    path, "", f"has {size:,} bytes; at most {source.MOST_BYTES:,} are read"
                )
            return read_npy(path, "", file, size)
    except SourceError:
        raise
    except Exception as error:
        reason = str(error) if Glimpse(path).npy_shape else nature(path)
        raise SourceError(path, "", f"is not a readable .npy: it is {reason}") from None


def read_npy(path: Path, where: str, file: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Return the array of `size` bytes in the `.npy` format. Raise where they are none."""
    shape, fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise SourceError(path, where, "holds Python objects (a pickle), which could run code")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != size - file.tell():
        raise SourceError(
            path, where, f"must hold {nbytes:,} bytes of numbers, not {size - file.tell():,}"
        )
    data = file.read(nbytes)
    if file.read(1) or len(data) != nbytes:  # also checks the sum of a zip's member
        raise SourceError(path, where, "ends early or late")
    array = np.frombuffer(data, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns come first, and type. Raise `ValueError` for another file."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format is unknown")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError(f"shape {shape} is impossible")
    return shape, fortran, dtype
