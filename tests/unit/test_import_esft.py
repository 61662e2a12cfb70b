"""Damaged ESFT texts and damaged counts end in a typed error with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import SourceError
from moesim.trace import import_trace
from moesim.trace.importers import Options

Random = np.random.Generator
IDS = np.random.default_rng(0).random((7, 3, 64)).argsort(-1)[..., :6]
LENGTHS = (4, 3)


def texts() -> list[bytes]:
    """Return the file of each layer as ESFT writes it: a sequence a line."""
    ends = np.cumsum(LENGTHS)
    files = []
    for layer in range(IDS.shape[1]):
        rows = []
        for end, length in zip(ends, LENGTHS, strict=True):
            some = IDS[end - length : end, layer].ravel()
            weights = [f"{(n + 1) / 100:.4f}" for n in range(len(some))]
            rows.append("\t".join(map(str, some)) + "\t\t" + "\t".join(weights))
        files.append(("\n".join(rows) + "\n").encode())
    return files


def write(folder: Path, files: list[bytes]) -> Path:
    for old in folder.glob("*"):
        old.unlink()
    for number, content in enumerate(files, start=1):
        (folder / f"expert_weights_{number}.txt").write_bytes(content)
    return folder


def cell(new: bytes) -> Callable[[Random, bytes], bytes]:
    def change(rng: Random, data: bytes) -> bytes:
        cells = data.rstrip(b"\n").split(b"\t")
        full = [n for n, one in enumerate(cells) if one and b"\n" not in one]
        cells[full[int(rng.integers(len(full)))]] = new
        return b"\t".join(cells)

    return change


def drop_cell(rng: Random, data: bytes) -> bytes:
    cells = data.split(b"\t")
    del cells[int(rng.integers(len(cells) - 1))]
    return b"\t".join(cells)


def repeat_id(rng: Random, data: bytes) -> bytes:
    cells = data.split(b"\t")
    at = 6 * int(rng.integers(LENGTHS[0]))
    cells[at + 1] = cells[at]
    return b"\t".join(cells)


BREAKS: list[Callable[[Random, bytes], bytes]] = [
    *map(cell, (b"NaN", b"-1", b"1e400", b"9" * 400, b"x", b"66000", b"true", b"1_0")),
    drop_cell, repeat_id,
    lambda rng, data: b"",
    lambda rng, data: data[: int(rng.integers(1, len(data) - 3))],
    lambda rng, data: data.split(b"\n", 1)[1],
    lambda rng, data: data + data,
    lambda rng, data: data.replace(b"\t\t", b"\t"),
    lambda rng, data: data.replace(b"\t", b","),
    lambda rng, data: b"\n" + data,
    lambda rng, data: b"\xef\xbb\xbf" + data,
    lambda rng, data: data.decode().encode("utf-16"),
    lambda rng, data: data[:9] + b"\0" + data[9:],
    lambda rng, data: b"\x1f\x8b" + data,
]  # fmt: skip


def test_200_broken_folders_are_refused_with_file_and_line(tmp_path: Path) -> None:
    good = texts()
    trace = import_trace(write(tmp_path, good))[1].trace
    assert np.array_equal(trace.expert_ids[:], IDS)
    rng = np.random.default_rng(1)
    placed = 0
    for turn in range(200):
        files = list(good)
        number = int(rng.integers(len(files)))
        data = BREAKS[turn % len(BREAKS)](rng, files[number])
        files[number] = data
        write(tmp_path, files)
        with pytest.raises(SourceError) as caught:
            pytest.fail(f"{turn}: {import_trace(tmp_path, 'esft')[1].trace} {data!r}")
        assert "expert_weights_" in str(caught.value)
        assert "cannot be read as" not in str(caught.value)
        placed += caught.value.where.startswith("line")
    assert placed > 120


def counts_csv() -> bytes:
    rows = [f"{layer},{expert},{10 + expert}" for layer in range(3) for expert in range(8)]
    return ("\n".join(["layer,expert,count", *rows]) + "\n").encode()


def row(change: Callable[[list[bytes], int], None]) -> Callable[[Random, bytes], bytes]:
    def mutate(rng: Random, data: bytes) -> bytes:
        rows = data.rstrip(b"\n").split(b"\n")
        change(rows, int(rng.integers(1, len(rows))))
        return b"\n".join(rows)

    return mutate


def with_last(new: bytes) -> Callable[[Random, bytes], bytes]:
    return row(lambda rows, at: rows.__setitem__(at, rows[at].rsplit(b",", 1)[0] + b"," + new))


COUNTS: list[Callable[[Random, bytes], bytes]] = [
    *map(with_last, (b"NaN", b"-1", b"1e3", b"9" * 30, b"", b"x", b"2.5", b"true", b"900000000")),
    row(lambda rows, at: rows.insert(at, rows[at])),
    row(lambda rows, at: rows.insert(at, b"")),
    row(lambda rows, at: rows.__setitem__(at, rows[at] + b",1")),
    row(lambda rows, at: rows.__setitem__(at, b"99999999," + rows[at].split(b",", 1)[1])),
    row(lambda rows, at: rows.__setitem__(at, b"0,70000,3")),
    row(lambda rows, at: rows.__setitem__(0, b"layer,expert,uses")),
    row(lambda rows, at: rows.__setitem__(0, b"layer,layer,count")),
    lambda rng, data: b"",
    lambda rng, data: data.split(b"\n")[0],
    lambda rng, data: data.rstrip(b"\n")[:-3],
    lambda rng, data: b"\xff\xfe" + data,
    lambda rng, data: data[:30] + b"\0" + data[30:],
    lambda rng, data: data.replace(b",1", b",0").replace(b",2", b",0"),
]


def test_200_broken_tables_of_counts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_bytes(counts_csv())
    options = Options(top_k=2, num_experts=8)
    assert import_trace(path, None, options)[1].trace.meta.synthetic
    rng = np.random.default_rng(2)
    placed = 0
    for turn in range(200):
        path.write_bytes(COUNTS[turn % len(COUNTS)](rng, counts_csv()))
        with pytest.raises(SourceError) as caught:
            pytest.fail(f"{turn}: {import_trace(path, 'counts', options)} {path.read_bytes()!r}")
        assert str(path) in str(caught.value)
        assert "cannot be read as" not in str(caught.value)
        placed += "line" in caught.value.where or "layer" in caught.value.where
    assert placed > 120
