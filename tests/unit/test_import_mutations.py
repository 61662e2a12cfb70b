"""Damaged files of each format end in a typed error with their place, or are read as they stand.

A first family of mutations breaks a rule of each format, so all of it must be refused. A second
one changes bytes at random. What is accepted of it must equal what an independent reader finds in
the damaged file, so nothing is repaired in silence.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from routing_files import IDS, SAMPLES, Sample, npz_bytes

from moesim.errors import SourceError
from moesim.trace import import_trace
from moesim.trace.importers import source

MUTANTS = 200
Random = np.random.Generator


def cut_line(rng: Random, data: bytes) -> bytes:
    """End in the middle of the last line."""
    body = data.rstrip(b"\n")
    last = body.rfind(b"\n") + 1
    tail = body[last:]
    return body[: last + int(rng.integers(1, max(2, len(tail) // 2)))]


def drop_line(rng: Random, data: bytes) -> bytes:
    rows = data.rstrip(b"\n").split(b"\n")
    del rows[int(rng.integers(1, len(rows)))]
    return b"\n".join(rows)


def repeat_line(rng: Random, data: bytes) -> bytes:
    rows = data.rstrip(b"\n").split(b"\n")
    at = int(rng.integers(1, len(rows)))
    return b"\n".join([*rows[:at], rows[at], *rows[at:]])


def empty_line(rng: Random, data: bytes) -> bytes:
    rows = data.rstrip(b"\n").split(b"\n")
    rows.insert(int(rng.integers(1, len(rows))), b"")
    return b"\n".join(rows)


def number(new: bytes) -> Callable[[Random, bytes], bytes]:
    """Replace the last number of a line, an id or a count, by `new`."""

    def change(rng: Random, data: bytes) -> bytes:
        rows = data.rstrip(b"\n").split(b"\n")
        at = int(rng.integers(1, len(rows)))
        found = list(re.finditer(rb"(?<![\w.+/-])\d+(?:\.\d+)?(?![\w.+/=])", rows[at]))
        place = found[-1]
        rows[at] = rows[at][: place.start()] + new + rows[at][place.end() :]
        return b"\n".join(rows)

    return change


def surplus_cell(rng: Random, data: bytes) -> bytes:
    rows = data.rstrip(b"\n").split(b"\n")
    rows[int(rng.integers(1, len(rows)))] += b",5"
    return b"\n".join(rows)


def other_header(rng: Random, data: bytes) -> bytes:
    """Damage the keys of the first line."""
    first, rest = data.split(b"\n", 1)
    names = list(re.finditer(rb"[a-z_]{5,}", first))
    one = names[int(rng.integers(len(names)))]
    return first[: one.start()] + b"odd" + first[one.end() :] + b"\n" + rest


def zero_byte(rng: Random, data: bytes) -> bytes:
    at = int(rng.integers(1, len(data)))
    return data[:at] + b"\0" + data[at:]


def no_utf8(rng: Random, data: bytes) -> bytes:
    at = int(rng.integers(1, len(data)))
    return data[:at] + b"\xff" + data[at:]


def half(rng: Random, data: bytes) -> bytes:
    return data[: int(rng.integers(1, max(2, int(0.9 * len(data)))))]


def flipped_member(rng: Random, data: bytes) -> bytes:
    """Flip a bit of an array, which its checksum shows."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.infolist()[0]
    at = info.header_offset + 30 + len(info.filename) + 20 + int(rng.integers(info.file_size))
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]


ANY: list[Callable[[Random, bytes], bytes]] = [
    lambda rng, data: b"",
    lambda rng, data: b"\n" * int(rng.integers(1, 9)),
    lambda rng, data: gzip.compress(data, mtime=0),
    lambda rng, data: zlib.compress(data),
    lambda rng, data: rng.bytes(int(rng.integers(1, 300))),
    lambda rng, data: b"\x80\x04K\x01.",
    lambda rng, data: b"PK\3\4" + rng.bytes(40),
    lambda rng, data: b"some words\nof a letter\n",
    lambda rng, data: b"[" * 300,
    lambda rng, data: b'{"a": 1}',
]
TEXT = [
    cut_line, empty_line, zero_byte, no_utf8, number(b"NaN"), number(b"-7"), number(b"1e400"),
    number(b"9" * 400), number(b"true"), number(b'"x"'), surplus_cell,
    lambda rng, data: data.decode().encode("utf-16"),
    lambda rng, data: b"\xef\xbb\xbf" + data,
    lambda rng, data: data + b"\xff\n",
    lambda rng, data: data.replace(b",", b";"),
]  # fmt: skip
ROWS = [drop_line, repeat_line]  # a line less or more is a whole request in some formats
BINARY = [half, lambda rng, data: data[:-1]]


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def changed(change: Callable[[Random, np.ndarray], np.ndarray]) -> Callable[[Random, bytes], bytes]:
    """Change the ids of an `.npz`, and pack them again with a right checksum."""

    def pack(rng: Random, data: bytes) -> bytes:
        arrays = arrays_of(data)
        name = "expert_ids" if "expert_ids" in arrays else min(arrays)
        return npz_bytes(**{**arrays, name: change(rng, arrays[name])})

    return pack


def with_value(value: int) -> Callable[[Random, np.ndarray], np.ndarray]:
    def put(rng: Random, ids: np.ndarray) -> np.ndarray:
        ids = ids.astype(np.int64)
        ids[tuple(int(rng.integers(n)) for n in ids.shape)] = value
        return ids

    return put


def repeated(rng: Random, ids: np.ndarray) -> np.ndarray:
    ids = ids.copy()
    row = int(rng.integers(len(ids)))
    ids[row, 0, 1] = ids[row, 0, 0]
    return ids


ARRAYS = [
    flipped_member,
    *map(changed, (
        with_value(99), with_value(-7), with_value(2**40), repeated,
        lambda rng, ids: ids.astype(np.float64), lambda rng, ids: ids[0], lambda rng, ids: ids[:0],
        lambda rng, ids: ids.astype("U9"), lambda rng, ids: ids > 2,
    )),
]  # fmt: skip


def mutators(name: str) -> list[Callable[[Random, bytes], bytes]]:
    sample = SAMPLES[name]
    if not sample.text:
        return [*ANY, *BINARY, *(ARRAYS if sample.suffix == ".npz" else [])]
    kinds = [*ANY, *TEXT]
    if name not in ("sglang_routed", "vllm", "jsonl"):
        kinds += ROWS
    if name not in ("csv", "jsonl uses"):  # there the last number is a weight, which may be large
        kinds += [number(b"99"), number(b"2.5")]
    if sample.suffix == ".csv":  # JSON may have further keys
        kinds.append(other_header)
    return kinds


def check_named(error: SourceError) -> None:
    """Fail where an importer met a fault that none of its checks names."""
    assert "cannot be read as" not in str(error)


def read(sample: Sample, folder: Path, content: bytes) -> np.ndarray:
    path = sample.write(folder, content)
    trace = import_trace(path, sample.format, sample.options)[1].trace
    ids = np.asarray(trace.expert_ids[:], np.int64)
    return np.where(ids == trace.meta.unused, -1, ids)


@pytest.mark.parametrize("name", SAMPLES)
def test_files_that_break_a_rule_are_refused_in_one_line_with_their_place(
    name: str, tmp_path: Path
) -> None:
    sample, kinds = SAMPLES[name], mutators(name)
    rng = np.random.default_rng(len(name))
    placed = 0
    for turn in range(MUTANTS):
        data = kinds[turn % len(kinds)](rng, sample.content)
        with pytest.raises(SourceError) as caught:
            pytest.fail(f"mutant {turn} was read: {data[:200]!r} {read(sample, tmp_path, data)}")
        message = str(caught.value)
        assert message.startswith(str(tmp_path / f"sample{sample.suffix}"))
        assert "\n" not in message
        check_named(caught.value)
        assert caught.value.exit_code == 2
        assert caught.value.where or "other formats: --from" in message or "--" in message, message
        placed += "line" in caught.value.where or "record" in caught.value.where
    if sample.text:
        assert placed > MUTANTS / 3


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_accepted_of_random_damage_is_what_the_file_says(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    rng = np.random.default_rng(7 + len(name))
    accepted = 0
    for _ in range(MUTANTS):
        data = bytearray(sample.content)
        for _ in range(int(rng.integers(1, 3))):
            data[int(rng.integers(len(data)))] = int(rng.integers(32, 127 if sample.text else 256))
        if rng.random() < 0.3:
            del data[int(rng.integers(len(data) // 2, len(data))) :]
        try:
            ids = read(sample, tmp_path, bytes(data))
        except SourceError as error:
            check_named(error)
            continue
        assert np.array_equal(ids, sample.oracle(bytes(data))), bytes(data)
        accepted += 1
    assert accepted < MUTANTS


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    7,
    10**9,
    2.5,
    "x",
    "",
    [],
    {},
    [[]],
    [[[]]],
    [[[1]]],
    {"a": 1},
)


def spoiled(rng: Random, value: Any) -> Any:
    """Return a JSON value with one of its parts replaced, left out or given twice."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: spoiled(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.integers(len(value)))
        if rng.random() < 0.15:
            return value[:at] + value[at + 1 :]
        if rng.random() < 0.15:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], spoiled(rng, value[at]), *value[at + 1 :]]
    return VALUES[int(rng.integers(len(VALUES)))]


@pytest.mark.parametrize("name", [name for name in SAMPLES if "json" in SAMPLES[name].suffix])
def test_json_of_another_structure_is_refused_or_read_as_it_stands(
    name: str, tmp_path: Path
) -> None:
    sample = SAMPLES[name]
    rng = np.random.default_rng(11)
    records = [json.loads(line) for line in sample.content.splitlines()]
    refused = 0
    for _ in range(MUTANTS):
        at = int(rng.integers(len(records)))
        some = [*records[:at], spoiled(rng, records[at]), *records[at + 1 :]]
        data = b"\n".join(json.dumps(one).encode() for one in some)
        try:
            ids = read(sample, tmp_path, data)
        except SourceError as error:
            check_named(error)
            refused += 1
            continue
        assert np.array_equal(ids, sample.oracle(data)), some[at]
    assert refused > MUTANTS / 4


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_BYTES", 1 << 16)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("expert_ids.npy", bytes(1 << 20))
        archive.writestr("seq_len.npy", bytes(8))
    assert path.stat().st_size < 1 << 12
    for name in ("npz", "esft", "vllm"):
        with pytest.raises(SourceError, match="unpacks to 1,048,584 bytes"):
            import_trace(path, name)


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    from numpy.lib import format as npy

    path = tmp_path / "claims.npy"
    with path.open("wb") as file:
        npy.write_array_header_1_0(
            file, {"descr": "<i2", "fortran_order": False, "shape": (10**9, 10**3, 8)}
        )
        file.write(bytes(64))
    with pytest.raises(SourceError, match="must hold 16,000,000,000,000 bytes of numbers, not 64"):
        import_trace(path, "vllm")


def test_a_large_text_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_BYTES", 100)
    for name in ("llama_cpp", "moearc", "jsonl", "csv", "vllm"):
        with pytest.raises(SourceError, match="larger than 100 bytes"):
            import_trace(SAMPLES[name].write(tmp_path), name, SAMPLES[name].options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08" + bytes(9), "gzip data (unpack it first)"),
        (b"\x80\x04K\x01.", "a pickle, which could run code"),
        ("a,b\n".encode("utf-16"), "UTF-16 text"),
        (b"\xef\xbb\xbfa,b\n", "byte-order mark"),
        (b"PAR1....", "a Parquet file"),
        (b"\x00\x01\x02", "binary data"),
        (b"hello\n", "text that starts with 'hello'"),
        (b'{"loss": 1}\n', "JSON with the keys 'loss'"),
    ],
)
def test_an_unknown_file_is_said_to_be_what_it_is(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "unknown"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        import_trace(path)
    message = str(caught.value)
    assert words in message
    assert "name it with --from NAME (npz, esft, sglang," in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [name for name in SAMPLES if SAMPLES[name].text])
def test_text_in_another_encoding_is_named_as_such(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    for content, words in (
        (b"\xef\xbb\xbf" + sample.content, "is text with a byte-order mark"),
        (sample.content.decode().encode("utf-16"), "is UTF-16 text"),
        (gzip.compress(sample.content), "is gzip data"),
    ):
        with pytest.raises(SourceError, match=words):
            import_trace(sample.write(tmp_path, content), sample.format, sample.options)


def test_a_missing_file_and_a_foreign_zip_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing \(no such file\)"):
        import_trace(tmp_path / "absent.csv")
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(50):
            archive.writestr(f"text{number}.txt", "x")
    with pytest.raises(SourceError, match="is a zip archive of 50 files, which fits no format"):
        import_trace(path)


def test_a_bit_of_each_layer_counts(tmp_path: Path) -> None:
    """The oracles see single ids, so that a silent repair could not hide from them."""
    for sample in SAMPLES.values():
        assert np.array_equal(sample.oracle(sample.content), IDS)
