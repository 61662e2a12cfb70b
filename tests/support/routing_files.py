"""Files of routing as other programs write them, with the arrays that they hold.

Each format has a small file, and an oracle: a reader of a few lines that trusts its input. What an
importer accepts must be what the oracle reads.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moesim.trace.importers import Options

LAYERS, EXPERTS, K = (1, 3), 8, 2
"""Layer numbers as a file names them, experts a layer, and experts a token."""


def routing(tokens: int, seed: int = 0) -> np.ndarray:
    """Return distinct random ids (tokens, layers, k)."""
    rng = np.random.default_rng(seed)
    return rng.random((tokens, len(LAYERS), EXPERTS)).argsort(axis=-1)[..., :K]


IDS = routing(9)
FIRST, SECOND = IDS[:5], IDS[5:]


@dataclass(frozen=True)
class Sample:
    """One file of a format: its content, its ids, and how to read it independently.

    `oracle` takes the bytes and returns ids (rows, layers, k) in the order of the rows.
    """

    format: str
    suffix: str
    content: bytes
    ids: np.ndarray
    oracle: Callable[[bytes], np.ndarray]
    options: Options = field(default_factory=lambda: Options(num_experts=EXPERTS))
    lengths: tuple[int, ...] = (9,)
    text: bool = True

    def write(self, folder: Path, content: bytes | None = None) -> Path:
        path = folder / f"sample{self.suffix}"
        path.write_bytes(self.content if content is None else content)
        return path


def by_key(rows: list[tuple[Any, int, int]]) -> np.ndarray:
    """Return ids from (token key, layer, expert), tokens in the order of their first row."""
    tokens: dict[Any, dict[int, list[int]]] = {}
    for key, layer, expert in rows:
        tokens.setdefault(key, {}).setdefault(layer, []).append(expert)
    return np.array([[layers[n] for n in sorted(layers)] for layers in tokens.values()])


def lines(data: bytes) -> list[str]:
    return data.decode().replace("\r\n", "\n").strip("\n").split("\n")


# llama.cpp: two passes of prompt (4 tokens) and five passes of one token.
def passes_csv() -> bytes:
    rows = ["layer,expert"]
    for tokens in (IDS[:4], *(IDS[n : n + 1] for n in range(4, 9))):
        for place, layer in enumerate(LAYERS):
            rows += [f"{layer},{expert}" for token in tokens for expert in token[place]]
    return ("\n".join(rows) + "\n").encode()


def read_passes(data: bytes) -> np.ndarray:
    cells = [tuple(map(int, line.split(","))) for line in lines(data)[1:]]
    rows, done, seen, last = [], 0, dict.fromkeys(LAYERS, 0), -1
    for layer, expert in cells:
        if layer < last:
            done, seen = done + max(seen.values()) // K, dict.fromkeys(LAYERS, 0)
        rows.append((done + seen[layer] // K, layer, expert))
        seen[layer], last = seen[layer] + 1, layer
    return by_key(rows)


def lists_csv() -> bytes:
    rows = ["layer_id,expert_ids"]
    for tokens in (IDS[:4], *(IDS[n : n + 1] for n in range(4, 9))):
        for place, layer in enumerate(LAYERS):
            rows += [f"{layer},{' '.join(map(str, token[place]))}" for token in tokens]
    return ("\n".join(rows) + "\n").encode()


def read_lists(data: bytes) -> np.ndarray:
    flat = ["layer,expert"]
    for line in lines(data)[1:]:
        layer, ids = line.split(",")
        flat += [f"{layer},{one}" for one in ids.split()]
    return read_passes("\n".join(flat).encode())


def numbered_csv() -> bytes:
    rows = ["phase,token,layer,rank,expert"]
    for token, ids in enumerate(IDS):
        phase = "prefill" if token < 4 else "decode"
        for place, layer in enumerate(LAYERS):
            rows += [f"{phase},{token},{layer},{r},{e}" for r, e in enumerate(ids[place])]
    return ("\n".join(rows) + "\n").encode()


def read_numbered(data: bytes) -> np.ndarray:
    cells = [line.split(",") for line in lines(data)[1:]]
    return by_key([(int(token), int(layer), int(expert)) for _, token, layer, _, expert in cells])


def calls_csv() -> bytes:
    rows = ["call,phase,row,layer,expert"]
    for call, tokens in enumerate((IDS[:4], *(IDS[n : n + 1] for n in range(4, 9)))):
        for place, layer in enumerate(LAYERS):
            rows += [
                f"{call},{'d' if call else 'p'},{row},{layer},{expert}"
                for row, token in enumerate(tokens)
                for expert in token[place]
            ]
    return ("\n".join(rows) + "\n").encode()


def read_calls(data: bytes) -> np.ndarray:
    cells = [line.split(",") for line in lines(data)[1:]]
    rows = [((int(c), int(row)), int(layer), int(expert)) for c, _, row, layer, expert in cells]
    return by_key(sorted(rows, key=lambda row: (row[0], row[1])))


def moearc_ndjson() -> bytes:
    header = {
        "format": "moearc-trace-v1", "phase": "decode", "n_layer": 4, "n_layers_routed": 2,
        "n_expert_used": K, "n_expert": EXPERTS, "n_prompt_tokens": 6, "n_decode_steps": 9,
        "model_file": "tiny-Q4_K_M.gguf", "prompt_name": "prose",
    }  # fmt: skip
    steps = [
        {
            "step": step, "phase": "decode", "pos": 6 + step,
            "e": [int(n) for place, layer in enumerate(LAYERS) for e in ids[place]
                  for n in (layer, e)],
        }
        for step, ids in enumerate(IDS)
    ]  # fmt: skip
    return b"".join(json.dumps(one).encode() + b"\n" for one in (header, *steps))


def read_moearc(data: bytes) -> np.ndarray:
    steps = [json.loads(line) for line in lines(data)[1:]]
    return by_key(
        [
            (step["step"], layer, expert)
            for step in steps
            for layer, expert in zip(step["e"][::2], step["e"][1::2], strict=True)
        ]
    )


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def read_npz(data: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(data))["expert_ids"])


def read_npy(data: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(data)))


def read_npz_all(data: bytes) -> np.ndarray:
    with np.load(io.BytesIO(data)) as arrays:
        return np.concatenate([arrays[name] for name in arrays.files])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sglang_answers() -> bytes:
    answers = [
        {
            "text": "hello", "output_ids": [1, 2],
            "meta_info": {
                "prompt_tokens": prompt, "completion_tokens": len(ids) + 1 - prompt,
                "routed_experts": b64(ids.astype("<i4").tobytes()),
            },
        }
        for prompt, ids in ((3, FIRST), (2, SECOND))
    ]  # fmt: skip
    return b"".join(json.dumps(one).encode() + b"\n" for one in answers)


def read_sglang_answers(data: bytes) -> np.ndarray:
    parts = [
        np.frombuffer(
            base64.b64decode(json.loads(line)["meta_info"]["routed_experts"]), "<i4"
        ).reshape(-1, 2, K)
        for line in lines(data)
    ]
    return np.concatenate(parts)


def vllm_answers() -> bytes:
    answers = [
        {
            "id": "cmpl-1", "choices": [{"index": 0, "text": "hello",
                                         "routed_experts": b64(npy_bytes(ids.astype(np.int16)))}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(ids) + 1 - prompt},
        }
        for prompt, ids in ((3, FIRST), (2, SECOND))
    ]  # fmt: skip
    return b"".join(json.dumps(one).encode() + b"\n" for one in answers)


def read_vllm_answers(data: bytes) -> np.ndarray:
    parts = []
    for line in lines(data):
        answer = json.loads(line)
        usage = answer.get("usage", {})
        for choice in answer["choices"]:
            ids = np.load(io.BytesIO(base64.b64decode(choice["routed_experts"])))
            if len(answer["choices"]) == 1 and {"prompt_tokens", "completion_tokens"} <= set(usage):
                ids = ids[: usage["prompt_tokens"] + usage["completion_tokens"] - 1]
            parts.append(ids)  # without the last token, which is not fed back
    return np.concatenate(parts)


def jsonl_requests() -> bytes:
    records = [
        {"expert_ids": ids.tolist(), "prompt_tokens": prompt, "domain": domain}
        for ids, prompt, domain in ((FIRST, 3, "law"), (SECOND, 2, "code"))
    ]
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


def read_jsonl_requests(data: bytes) -> np.ndarray:
    return np.concatenate([np.array(json.loads(line)["expert_ids"]) for line in lines(data)])


def jsonl_uses() -> bytes:
    records = [
        {
            "request": name, "token": token, "layer": layer,
            "experts": row[place].tolist(), "weights": [0.5, 0.25],
        }
        for name, ids in (("a", FIRST), ("b", SECOND))
        for token, row in enumerate(ids)
        for place, layer in enumerate(LAYERS)
    ]  # fmt: skip
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


def read_jsonl_uses(data: bytes) -> np.ndarray:
    rows = [json.loads(line) for line in lines(data)]
    order = list(dict.fromkeys(str(row["request"]) for row in rows))
    rows.sort(key=lambda row: (order.index(str(row["request"])), row["token"], row["layer"]))
    return by_key([((r["request"], r["token"]), r["layer"], e) for r in rows for e in r["experts"]])


def plain_csv() -> bytes:
    rows = ["request,token,layer,expert,weight"]
    rows += [
        f"{name},{token},{layer},{expert},{0.5 / (1 + place)}"
        for name, ids in (("a", FIRST), ("b", SECOND))
        for token, row in enumerate(ids)
        for at, layer in enumerate(LAYERS)
        for place, expert in enumerate(row[at])
    ]
    return ("\n".join(rows) + "\n").encode()


def read_plain_csv(data: bytes) -> np.ndarray:
    names = [name.strip() for name in lines(data)[0].split(",")]
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines(data)[1:]]
    order = list(dict.fromkeys(row["request"].strip() for row in rows))
    rows.sort(key=lambda r: (order.index(r["request"].strip()), int(r["token"]), int(r["layer"])))
    return by_key(
        [
            ((row["request"].strip(), int(row["token"])), int(row["layer"]), int(row["expert"]))
            for row in rows
        ]
    )


SAMPLES: dict[str, Sample] = {
    "npz": Sample(
        "npz", ".npz", npz_bytes(expert_ids=IDS, seq_len=np.array([5, 4])), IDS, read_npz,
        lengths=(5, 4), text=False,
    ),
    "llama_cpp": Sample(
        "llama_cpp", ".csv", passes_csv(), IDS, read_passes,
        Options(num_experts=EXPERTS, top_k=K),
    ),
    "llama_cpp lists": Sample("llama_cpp", ".csv", lists_csv(), IDS, read_lists),
    "llama_cpp numbered": Sample("llama_cpp", ".csv", numbered_csv(), IDS, read_numbered),
    "llama_cpp calls": Sample("llama_cpp", ".csv", calls_csv(), IDS, read_calls),
    "moearc": Sample("moearc", ".ndjson", moearc_ndjson(), IDS, read_moearc),
    "sglang_routed": Sample(
        "sglang_routed", ".jsonl", sglang_answers(), IDS, read_sglang_answers,
        Options(num_experts=EXPERTS, top_k=K), lengths=(5, 4),
    ),
    "vllm": Sample("vllm", ".jsonl", vllm_answers(), IDS, read_vllm_answers, lengths=(5, 4)),
    "vllm npy": Sample(
        "vllm", ".npy", npy_bytes(IDS.astype(np.int16)), IDS, read_npy, text=False,
    ),
    "vllm npz": Sample(
        "vllm", ".npz",
        npz_bytes(routed_experts_0=FIRST, routed_experts_1=SECOND),
        IDS, read_npz_all, lengths=(5, 4), text=False,
    ),
    "jsonl": Sample(
        "jsonl", ".jsonl", jsonl_requests(), IDS, read_jsonl_requests, lengths=(5, 4)
    ),
    "jsonl uses": Sample("jsonl", ".jsonl", jsonl_uses(), IDS, read_jsonl_uses, lengths=(5, 4)),
    "csv": Sample("csv", ".csv", plain_csv(), IDS, read_plain_csv, lengths=(5, 4)),
}  # fmt: skip
"""One small file of each format and form that is one file and not a pickle."""
