"""Random damage to files: to bytes, JSON values and tables."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NONSENSE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 10**9, 2**63, 10**400, -(10**30), 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "nan", "1_0", "\u0663", [], [[]], [None], {}, {"x": 1}, [1] * 3, "a\nb", "../../etc",
)  # fmt: skip
"""Values that are wrong for most keys, and some that many keys take."""


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with a piece cut, flipped, repeated, replaced, or filled with zeros."""
    at, length = rng.randrange(max(1, len(data))), rng.randint(1, 16)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[: at + length] + data[at:]
    if kind == 3:
        return data[:at] + bytes(length) + data[at + length :]
    if kind == 4:
        return data[:at] + rng.randbytes(length) + data[at:]
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else b""


def damaged_value(value: Any, rng: random.Random, nonsense: tuple[Any, ...] = NONSENSE) -> Any:
    """Return a copy of plain data in which one key or entry is missing, or holds nonsense."""
    value = copy.deepcopy(value)
    path = rng.choice(list(paths_in(value)))
    if not path:
        return rng.choice(nonsense)
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    if rng.random() < 0.25:
        del inner[path[-1]]
    else:
        inner[path[-1]] = rng.choice(nonsense)
    return value


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside plain data, the whole first."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(inner, (*path, key))


def damage_table(file: Path, rng: random.Random) -> None:
    """Drop, rename, repeat or fill with nonsense one column of a table, or change its rows."""
    table = pq.read_table(file)
    name = rng.choice(table.column_names)
    place, count = table.column_names.index(name), table.num_rows
    fillings: tuple[Any, ...] = (
        None, 0, -1, 2**62, -(2**62), float("nan"), float("inf"), 1e300, "x", "", True, [1],
        [-(2**62), 2**62], [None], {"x": 1}, b"x",
    )  # fmt: skip
    match rng.randrange(6):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.rename_columns({name: "other"})
        case 2:
            table = table.append_column(name, table.column(name))
        case 3:
            table = table.slice(0, rng.randrange(count + 1))
        case 4:
            table = pa.concat_tables([table, table])
        case _:
            values = table.column(name).to_pylist()
            filling = rng.choice(fillings)
            values = [filling] * count if rng.random() < 0.5 else [filling, *values[1:]]
            try:
                table = table.set_column(place, name, pa.array(values))
            except pa.ArrowException:  # no Arrow type holds both kinds: fill all rows
                table = table.set_column(place, name, pa.array([filling] * count))
    pq.write_table(table, file)
