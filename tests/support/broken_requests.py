"""Request files of every format, and mutations after which none of them may be read."""

from __future__ import annotations

import json
from random import Random

from moesim.workload.formats import Columns
from moesim.workload.request_file import Reading

__all__ = ["FORMATS", "broken", "reading", "whole"]

FORMATS = ("plain", "azure", "burstgpt", "vidur", "columns", "mooncake", "sharegpt")
ROWS = 12

_HEADERS = {
    "plain": "arrival_s,prompt_tokens,output_tokens",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens",
    "columns": "when,task,in,out",
}
_OWN = Columns(arrival="when", unit="ms", prompt="in", output="out", domain="task")


def reading(form: str, *, sniffed: bool = True) -> Reading:
    """Return how a file of this module is read, with or without its format's name."""
    if form == "columns":
        return Reading(columns=_OWN)
    tokens = 4.0 if form == "sharegpt" else None
    return Reading("auto" if sniffed else form, characters_per_token=tokens)


def whole(form: str) -> bytes:
    """Return a small valid file of a format; each request arrives after the one above it."""
    if form == "mooncake":
        return "".join(f"{json.dumps(_hashed(row))}\n" for row in range(ROWS)).encode()
    if form == "sharegpt":
        items = ",\n".join(json.dumps(_talk(row)) for row in range(ROWS))
        return f"[\n{items}\n]\n".encode()
    lines = [_HEADERS[form], *(",".join(_cells(form, row)) for row in range(ROWS))]
    return "".join(f"{line}\n" for line in lines).encode()


def _cells(form: str, row: int) -> list[str]:
    prompt, output, seconds = 100 + 7 * row, 5 + row, 10 + row
    return {
        "plain": [f"{row}.25", str(prompt), str(output)],
        "azure": [f"2024-05-10 00:00:{seconds}.009930+00:00", str(prompt), str(output)],
        "burstgpt": [
            str(5 + row), "ChatGPT", str(prompt), str(output), str(prompt + output), "API log",
        ],
        "vidur": [f"{row}.5", str(prompt), str(output)],
        "columns": [str(1000 * row), "code", str(prompt), str(output)],
    }[form]  # fmt: skip


def _hashed(row: int) -> dict[str, object]:
    blocks = list(range(row % 3 + 1))
    return {
        "timestamp": 10 * row,
        "input_length": 512 * len(blocks) - row,
        "output_length": row + 1,
        "hash_ids": blocks,
    }


def _talk(row: int) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"Why is {row} a number?"},
        {"from": "gpt", "value": 'Because it is "one" of {many}, [see] above.'},
    ]
    return {"id": f"t{row}", "conversations": turns}


def broken(form: str, number: int) -> tuple[bytes, int | None]:
    """Return mutation `number` of a format's file, and the line that is wrong, if it is known."""
    rng = Random(f"{form} {number}")
    if form == "mooncake":
        return _broken_lines(rng, _OF_MOONCAKE[number % len(_OF_MOONCAKE)])
    if form == "sharegpt":
        return _broken_talks(rng, _OF_SHAREGPT[number % len(_OF_SHAREGPT)])
    kinds = _OF_CSV
    return _broken_csv(form, rng, kinds[number % len(kinds)])


# --- CSV ------------------------------------------------------------------------------------------

_NO_LENGTHS = (
    "-3",
    "NaN",
    "nan",
    "inf",
    "0",
    "00",
    "12a",
    "3.5",
    "1e3",
    "0x10",
    "1_0",
    "",
    "\uff11",
)
_NO_TIMES = ("-3", "NaN", "inf", "yesterday", "", "1_0", "1;5", "2024-02-30 00:00:00", "12:30")
_OF_CSV = (
    *("length",) * 13, *("time",) * 9, "cell missing", "cell more", "order", "nul", "bytes",
    "quote", "text after quote", "header", "column twice", "no rows", "empty", "huge", "long",
    "other separator",
)  # fmt: skip


def _broken_csv(form: str, rng: Random, kind: str) -> tuple[bytes, int | None]:
    rows = [_cells(form, row) for row in range(ROWS)]
    header = _HEADERS[form].split(",")
    # Not the first, so that a mutation of the order has something before it.
    at = rng.randrange(1, ROWS)
    cells = rows[at]
    time, lengths = 0, {"burstgpt": (2, 3), "columns": (2, 3)}.get(form, (1, 2))
    line: int | None = at + 2
    match kind:
        case "length":
            cells[rng.choice(lengths)] = rng.choice(_NO_LENGTHS)
        case "time":
            cells[time] = rng.choice(_NO_TIMES)
        case "cell missing":
            del cells[rng.randrange(len(cells))]
        case "cell more":
            cells.insert(rng.randrange(len(cells) + 1), "7")
        case "order":
            rows[at], rows[at - 1] = rows[at - 1], rows[at]
        case "nul":
            cells[rng.choice(lengths)] = "1\0"
        case "quote":
            cells[-1], line = f'"{cells[-1]}', None
        case "text after quote":
            cells[-1] = f'"{cells[-1]}"x'
        case "header":
            place = rng.choice((time, *lengths) if form != "vidur" else lengths)
            header[place], line = "what", 1
        case "column twice":
            header.append(header[rng.choice(lengths)])
            rows, line = [[*row, "1"] for row in rows], 1
        case "no rows":
            rows, line = [], 1
        case "empty":
            return b"", 1
        case "huge":
            cells[rng.choice(lengths)] = "9" * rng.choice((9, 20, 5000))
        case "long":
            cells[rng.choice(lengths)] = "1" * 200_000
        case "other separator":
            text = "\n".join(";".join(row) for row in [header, *rows])
            return text.encode(), 1
    text = "".join(f"{','.join(row)}\n" for row in [header, *rows])
    if kind == "bytes":
        # The decoder reads ahead, so the line of the wrong byte is not exact.
        return _with_bytes(text.encode(), rng), None
    return text.encode(), line


def _with_bytes(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(1, len(data))
    return data[:at] + rng.choice((b"\xff", b"\xc3\x28", b"\x80")) + data[at:]


# --- JSON -----------------------------------------------------------------------------------------

_NO_NUMBERS = ("-1", "NaN", "Infinity", '"7"', "true", "null", "[]", "{}", "1.5", "1e400", "0x1")
_OF_MOONCAKE = (
    *("length",) * 11, *("time",) * 8, "zero", "cut", "key missing", "key twice", "id less",
    "id more", "id wrong", "ids wrong", "two objects", "list", "order", "bytes", "nul", "deep",
    "text", "empty", "first key",
)  # fmt: skip


def _broken_lines(rng: Random, kind: str) -> tuple[bytes, int | None]:
    rows = [_hashed(row) for row in range(ROWS)]
    texts = [json.dumps(row) for row in rows]
    at = rng.randrange(1, ROWS)
    row, line = rows[at], at + 1
    key = rng.choice(("input_length", "output_length"))
    blocks = row["hash_ids"]
    assert isinstance(blocks, list)

    def with_value(name: str, value: str) -> str:
        return json.dumps({**row, name: "VALUE"}).replace('"VALUE"', value)

    match kind:
        case "length":
            texts[at] = with_value(key, rng.choice(_NO_NUMBERS))
        case "time":
            wrong = [text for text in _NO_NUMBERS if text != "1.5"]  # times may have fractions
            texts[at] = with_value("timestamp", rng.choice(wrong))
        case "zero":
            texts[at] = with_value(key, "0")
        case "cut":
            texts[at] = texts[at][: rng.randrange(1, len(texts[at]))]
        case "key missing":
            texts[at] = json.dumps({k: v for k, v in row.items() if k != key})
        case "key twice":
            texts[at] = texts[at].replace("{", f'{{"{key}": 3, ', 1)
        case "id less":
            texts[at] = with_value("hash_ids", json.dumps([0] * (len(blocks) + 1)))
        case "id more":
            texts[at] = with_value("hash_ids", json.dumps([0] * (len(blocks) + 5)))
        case "id wrong":
            ids = [*blocks[:-1], "VALUE"]
            text = json.dumps({**row, "hash_ids": ids})
            texts[at] = text.replace('"VALUE"', rng.choice(_NO_NUMBERS))
        case "ids wrong":
            texts[at] = with_value("hash_ids", rng.choice(("7", "{}", '"[1]"', "null")))
        case "two objects":
            texts[at] += " " + texts[at]
        case "list":
            texts[at] = f"[{texts[at]}]"
        case "order":
            texts[at], texts[at - 1] = texts[at - 1], texts[at]
        case "nul":
            texts[at] = texts[at].replace(":", ":\0", 1)
        case "deep":
            texts[at] = with_value("hash_ids", "[" * 100_000)
        case "text":
            texts[at] = rng.choice(("soon", "7", '"x"', "#"))
        case "empty":
            return rng.choice((b"", b" \n\n")), 1
        case "first key":
            texts[0] = texts[0].replace("hash_ids", rng.choice(("hashes", "timestamps")))
            line = 2  # the first request without ids decides
    data = "".join(f"{text}\n" for text in texts).encode()
    if kind == "bytes":
        return _with_bytes(data, rng), None
    return data, line


_OF_SHAREGPT = (
    *("speaker",) * 6, *("value",) * 6, "turns missing", "no turns", "no answer", "no prompt",
    "empty text", "turn is text", "cut", "cut", "cut", "comma less", "comma more", "text after",
    "object", "key twice", "nan", "deep", "bytes", "empty", "item is text", "item is number",
)  # fmt: skip


def _broken_talks(rng: Random, kind: str) -> tuple[bytes, int | None]:
    texts = [json.dumps(_talk(row)) for row in range(ROWS)]
    at = rng.randrange(1, ROWS)
    line: int | None = at + 2
    turn = '{"from": "gpt", "value"'
    match kind:
        case "speaker":
            texts[at] = texts[at].replace('"gpt"', rng.choice(('"me"', "null", "7", '""', "[]")))
        case "value":
            wrong = rng.choice(("null", "7", "[]", "{}", "true", "1.5"))
            texts[at] = texts[at].split(turn)[0] + f"{turn}: {wrong}}}]}}"
        case "turns missing":
            texts[at] = texts[at].replace("conversations", "talks")
        case "no turns":
            texts[at] = '{"conversations": []}'
        case "no answer":
            texts[at] = texts[at].split(", " + turn)[0] + "]}"
        case "no prompt":
            texts[at] = texts[at].replace('"human"', '"gpt"')
        case "empty text":
            texts[at] = texts[at].split(turn)[0] + f'{turn}: ""}}]}}'
        case "turn is text":
            texts[at] = texts[at].replace("[", '["Hello", ', 1)
        case "key twice":
            texts[at] = texts[at].replace('"from"', '"from": "gpt", "from"', 1)
        case "nan":
            texts[at] = texts[at].replace('"id"', '"n": NaN, "id"', 1)
        case "deep":
            texts[at] = "[" * 100_000 + "]" * 100_000
        case "item is text":
            texts[at] = '"conversations"'
        case "item is number":
            texts[at] = rng.choice(("7", "null", "x"))
    data = "[\n" + ",\n".join(texts) + "\n]\n"
    match kind:
        case "cut":
            data, line = data[: rng.randrange(1, len(data) - 2)], None
        case "comma less":
            data, line = data.replace("]},\n", "]}\n", 1), None
        case "comma more":
            data, line = data.replace("]}\n]", "]},\n]"), ROWS + 2
        case "text after":
            data, line = data + rng.choice(("x", "[]", "{}")), ROWS + 3
        case "object":
            data, line = f'{{"talks": {data}}}', None
        case "empty":
            data, line = rng.choice(("", "[]", "[ \n]")), 1
        case "bytes":
            return _with_bytes(data.encode(), rng), None
    return data.encode(), line
