"""Input files are read exactly, up to a size, and only if they are regular files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.files import write_parquet
from moesim.inputs import open_regular, read_bytes, read_json, read_table


@given(st.floats(allow_nan=False) | st.integers(-(2**70), 2**70))
def test_numbers_of_json_are_read_exactly(number: float) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_text(json.dumps([number]))
        assert read_json(path) == [number]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "EOF"),
        ("[" * 1000, "recursion limit exceeded at line 1 column 202"),
        ("[\n1,]", "at line 2 column 3"),
        ("9" * 5000, "number out of range"),
        ('"\\ud800"', "hex escape"),
    ],
)
def test_what_is_no_json_is_a_value_error_with_its_place(
    text: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_json(tmp_path / "x.json")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "is a folder, not a regular file"),
        (tmp_path / "pipe", "is a named pipe, not a regular file"),
        (Path("/dev/zero"), "is a device, not a regular file"),
        (tmp_path / "absent", "No such file"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(OSError, match=says):
            open_regular(path)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="is larger than 4 bytes, the most that is read"):
        read_bytes(tmp_path / "x", 4)


def test_a_table_names_the_column_that_it_lacks(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {"a": [1, 2]})
    assert read_table(tmp_path / "x.parquet").to_pydict() == {"a": [1, 2]}
    with pytest.raises(KeyError, match="b"):
        read_table(tmp_path / "x.parquet", ["a", "b"])
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_table(tmp_path / "x.parquet")


def test_arrow_holds_no_python_object_that_its_threads_release_after_python_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, original = [], pyarrow.parquet.ParquetFile

    def listen(source: Any) -> Any:
        opened.append(source)
        return original(source)

    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", listen)
    assert read_table(tmp_path / "a.parquet").to_pydict() == {"a": [1]}
    assert [type(source) for source in opened] == [pyarrow.OSFile]
