"""Dumps of SGLang's recorder: logical ids, requests found from positions, statistics as such."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import SourceError
from moesim.trace import import_trace
from moesim.trace.importers import Imported, Options

torch = pytest.importorskip("torch")

LAYERS, EXPERTS, PHYSICAL, K, PLACES = 4, 6, 8, 2, 8
ROUTED = (1, 2, 3)
"""Layer 0 is dense: its places are all -1."""


def physical_map(seed: int = 0) -> np.ndarray:
    """Return the logical expert of each physical one, (layers, physical); two have a replica."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation([*range(EXPERTS), *rng.permutation(EXPERTS)[:2]]) for _ in range(LAYERS)
    ]
    return np.array(rows)


class Server:
    """A server that records as SGLang does: prompts first, then one token for each request."""

    def __init__(self, requests: list[tuple[int, int]], chunk: int = 100, at_once: int = 2) -> None:
        rng = np.random.default_rng(5)
        self.to_logical = physical_map()
        self.logical = [
            rng.random((prompt + output - 1, LAYERS, EXPERTS)).argsort(-1)[..., :K]
            for prompt, output in requests
        ]
        self.records: list[dict[str, Any]] = []
        self.rng = rng
        waiting = list(range(len(requests)))
        running: list[int] = []
        done = dict.fromkeys(waiting, 0)
        while waiting or running:
            if waiting and len(running) < at_once:
                number = waiting[0]
                prompt = requests[number][0]
                size = min(chunk, prompt - done[number])
                self.run([(number, done[number], size)], extend=True)
                done[number] += size
                if done[number] == prompt:
                    running.append(waiting.pop(0))
            else:
                running = [n for n in running if done[n] < len(self.logical[n])]
                if running:
                    self.run([(n, done[n], 1) for n in running], extend=False)
                for number in running:
                    done[number] += 1

    def run(self, spans: list[tuple[int, int, int]], *, extend: bool) -> None:
        rows = np.concatenate([self.logical[n][start : start + size] for n, start, size in spans])
        ids = np.full((LAYERS, len(rows), PLACES), -1, np.int32)
        counts = np.zeros((LAYERS, PHYSICAL), np.int32)
        for layer in ROUTED:
            for token, chosen in enumerate(rows[:, layer]):
                for place, expert in enumerate(chosen):
                    replicas = np.flatnonzero(self.to_logical[layer] == expert)
                    physical = self.rng.choice(replicas)
                    ids[layer, token, place] = physical
                    counts[layer, physical] += 1
        self.records.append(
            {
                "forward_pass_id": len(self.records), "rank": 0, "gatherer_key": "primary",
                "input_ids": [1] * len(rows),
                "positions": [start + n for _, start, size in spans for n in range(size)],
                "extend_seq_lens": [size for *_, size in spans] if extend else None,
                "forward_mode": 1 if extend else 2,
                "topk_ids_of_layer": torch.from_numpy(ids), "misc_objects": [],
                "global_physical_count": torch.from_numpy(counts),
            }
        )  # fmt: skip

    def dump(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "last_physical_to_logical_map": torch.from_numpy(self.to_logical),
        }


def saved(folder: Path, dump: Any) -> Path:
    path = folder / "expert_distribution_recorder_1.pt"
    torch.save(dump, path)
    return path


def read(folder: Path, dump: Any, **options: Any) -> Imported:
    found, imported = import_trace(saved(folder, dump), None, Options(**options))
    assert found.name == "sglang"
    return imported


@pytest.mark.parametrize("chunk", [100, 3])
def test_requests_and_logical_ids_are_found_again(chunk: int, tmp_path: Path) -> None:
    requests = [(5, 4), (2, 6), (7, 1), (10, 3)]
    server = Server(requests, chunk=chunk)
    imported = read(tmp_path, server.dump())
    trace = imported.trace
    truth = np.concatenate(server.logical)[:, list(ROUTED)]
    # The order of places within a token is that of the dump, as it is here.
    assert np.array_equal(trace.expert_ids[:], truth)
    assert trace.requests["prompt_tokens"].tolist() == [prompt for prompt, _ in requests]
    assert trace.requests["output_tokens"].tolist() == [output for _, output in requests]
    assert (trace.num_experts, trace.top_k) == (EXPERTS, K)
    assert trace.meta.layer_map == ROUTED
    assert "layers without routing are left out: 0" in imported.notes


def test_idle_passes_of_a_rank_hold_no_token(tmp_path: Path) -> None:
    server = Server([(5, 4), (2, 6)])
    idle = {
        **server.records[0], "forward_mode": 4, "input_ids": [], "positions": [],
        "extend_seq_lens": None,
        "topk_ids_of_layer": torch.zeros((LAYERS, 0, PLACES), dtype=torch.int32),
        "global_physical_count": torch.zeros((LAYERS, PHYSICAL), dtype=torch.int32),
    }  # fmt: skip
    plain = read(tmp_path, server.dump()).trace
    server.records.insert(3, idle)
    assert np.array_equal(read(tmp_path, server.dump()).trace.expert_ids[:], plain.expert_ids[:])


def test_requests_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    server = Server([(4, 5), (4, 3)])
    for record in server.records:  # as if both prompts had come in one pass
        record["rank"] = 0
    first, second = server.records[:2]
    both = {
        **first,
        "input_ids": first["input_ids"] * 2,
        "positions": first["positions"] * 2,
        "extend_seq_lens": [4, 4],
        "topk_ids_of_layer": torch.cat(
            [first["topk_ids_of_layer"], second["topk_ids_of_layer"]], dim=1
        ),
        "global_physical_count": first["global_physical_count"] + second["global_physical_count"],
    }
    dump = {**server.dump(), "records": [both, *server.records[2:]]}
    with pytest.raises(SourceError, match=r"two requests stand at position 6 .*--guess-requests"):
        read(tmp_path, dump)
    imported = read(tmp_path, dump, guess_requests=True)
    assert any(note.startswith("GUESSED: in 1 passes") for note in imported.notes)
    truth = [logical[:, list(ROUTED)] for logical in server.logical]
    assert np.array_equal(imported.trace.expert_ids[:], np.concatenate(truth))


def test_a_cached_prefix_is_refused(tmp_path: Path) -> None:
    server = Server([(6, 3)], chunk=4)
    dump = {**server.dump(), "records": server.records[1:]}
    with pytest.raises(SourceError, match=r"record 0: a prompt continues at position 4.*cached"):
        read(tmp_path, dump)


def test_counts_of_passes_become_a_synthetic_trace_of_logical_experts(tmp_path: Path) -> None:
    server = Server([(40, 30)] * 4)
    dump = server.dump()
    keys = ("forward_pass_id", "rank", "gatherer_key", "global_physical_count")
    dump["records"] = [{key: record[key] for key in keys} for record in server.records]
    with pytest.raises(SourceError, match="--top-k"):
        read(tmp_path, dump)
    trace = read(tmp_path, dump, top_k=K, requests=60).trace
    assert trace.meta.synthetic
    assert trace.meta.provenance["mode"] == "per_pass"
    truth = np.concatenate(server.logical)
    for place, layer in enumerate(ROUTED):
        wanted = np.bincount(truth[:, layer].ravel(), minlength=EXPERTS) / truth[:, layer].size
        drawn = np.asarray(trace.expert_ids[:, place]).ravel()
        assert np.allclose(np.bincount(drawn, minlength=EXPERTS) / drawn.size, wanted, atol=0.02)


def test_a_stat_dump_is_statistics_in_either_form(tmp_path: Path) -> None:
    counts = np.arange(48).reshape(2, 4, 6)
    stat = {"rank": 0, "logical_count": torch.from_numpy(counts),
            "average_utilization_rate_over_window": None}  # fmt: skip
    trace = read(tmp_path, stat, top_k=K).trace
    assert trace.meta.synthetic
    assert trace.num_experts == 6
    path = tmp_path / "logical_count.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    again = import_trace(path, None, Options(top_k=K))[1].trace
    assert np.array_equal(trace.expert_ids[:], again.expert_ids[:])


def test_a_pickle_of_objects_is_refused_in_a_line_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = saved(tmp_path, {"records": Evil(), "last_physical_to_logical_map": 1})
    with pytest.raises(SourceError, match=r"refused: a .pt file is a pickle.*weights_only=True"):
        import_trace(path)
    legacy = tmp_path / "legacy.pt"
    legacy.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SourceError, match="is a pickle, which could run code"):
        import_trace(legacy, "sglang")
    assert not (tmp_path / "ran").exists()


def test_a_foreign_pt_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"keys \['weight'\]; expected a dump of SGLang's"):
        read(tmp_path, {"weight": torch.zeros(2)})
    with pytest.raises(SourceError, match="holds a Tensor; expected"):
        read(tmp_path, torch.zeros(2))


def record(change: Callable[[Any, dict[str, Any]], object]) -> Callable[[Any, Any], Any]:
    """Change one record of a dump that is read anew."""

    def mutate(rng: Any, dump: Any) -> Any:
        change(rng, dump["records"][int(rng.integers(len(dump["records"])))])
        return dump

    return mutate


def put(name: str, value: Any) -> Callable[[Any, Any], Any]:
    return record(lambda rng, one: one.__setitem__(name, value))


def poke(name: str, value: Any) -> Callable[[Any, Any], Any]:
    """Set one element of a tensor of a record."""

    def change(rng: Any, one: dict[str, Any]) -> None:
        tensor = one[name]
        at = [int(rng.integers(n)) for n in tensor.shape[:2]]
        if tensor.ndim == 3:
            at = [max(1, at[0]), at[1], int(rng.integers(K))]
        old = tensor[tuple(at)].clone()
        tensor[tuple(at)] = value if not callable(value) else value(int(old))

    return record(change)


def map_changed(change: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def mutate(rng: Any, dump: Any) -> Any:
        name = "last_physical_to_logical_map"
        return {**dump, name: change(rng, dump[name])}

    return mutate


BREAKS: list[Callable[[Any, Any], Any]] = [
    lambda rng, dump: [],
    lambda rng, dump: {},
    lambda rng, dump: {**dump, "records": []},
    lambda rng, dump: {**dump, "records": None},
    lambda rng, dump: {**dump, "records": [1, 2]},
    lambda rng, dump: {**dump, "records": dump["records"][1:]},
    map_changed(lambda rng, to: None),
    map_changed(lambda rng, to: to.float()),
    map_changed(lambda rng, to: to[:, :5]),
    map_changed(lambda rng, to: to[0]),
    map_changed(lambda rng, to: to[1:]),
    map_changed(lambda rng, to: to - 1),
    map_changed(lambda rng, to: to + 70_000),
    map_changed(lambda rng, to: to * 0),
    put("positions", None),
    put("positions", [0.5]),
    put("positions", [-1]),
    put("positions", [10**9]),
    put("input_ids", []),
    put("extend_seq_lens", "three"),
    put("extend_seq_lens", [99]),
    put("topk_ids_of_layer", torch.full((LAYERS, 1, PLACES), float("nan"))),
    put("topk_ids_of_layer", torch.zeros(LAYERS, 1)),
    put("topk_ids_of_layer", None),
    put("global_physical_count", None),
    put("global_physical_count", torch.zeros(LAYERS, PHYSICAL)),
    put("global_physical_count", torch.full((LAYERS, PHYSICAL), float("inf"))),
    put("gatherer_key", "child_a"),
    put("rank", 3),
    put("forward_mode", 5),
    put("forward_mode", 3),
    put("odd", 1),
    record(lambda rng, one: one.pop("positions")),
    lambda rng, dump: {
        **dump,
        "records": [
            {
                key: item
                for key, item in one.items()
                if key not in ("global_physical_count", "topk_ids_of_layer")
            }
            for one in dump["records"]
        ],
    },
    record(lambda rng, one: one.pop("global_physical_count")),
    poke("topk_ids_of_layer", 99),
    poke("topk_ids_of_layer", -7),
    poke("topk_ids_of_layer", -1),
    poke("topk_ids_of_layer", lambda old: (old + 1) % PHYSICAL),
    poke("global_physical_count", lambda old: old + 1),
    poke("global_physical_count", -1),
]


def test_200_broken_dumps_are_refused_with_their_place(tmp_path: Path) -> None:
    good = saved(tmp_path, Server([(5, 4), (3, 6)]).dump())
    content = good.read_bytes()
    rng = np.random.default_rng(3)
    for turn in range(200):
        kind = turn % (len(BREAKS) + 3)
        if kind < len(BREAKS):
            path = saved(tmp_path, BREAKS[kind](rng, torch.load(good, weights_only=True)))
            good.write_bytes(content) if path != good else None
        elif kind == len(BREAKS):
            path = tmp_path / "cut.pt"
            path.write_bytes(content[: int(rng.integers(1, len(content)))])
        elif kind == len(BREAKS) + 1:
            path = tmp_path / "flip.pt"
            at = content.index(b"topk_ids_of_layer") + int(rng.integers(200))
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        else:
            path = tmp_path / "noise.pt"
            path.write_bytes(b"PK\3\4" + rng.bytes(200))
        with pytest.raises(SourceError) as caught:
            pytest.fail(f"{turn}: {import_trace(path, 'sglang')[1].trace}")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "cannot be read as" not in str(caught.value)
        good.write_bytes(content)


def test_random_damage_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    good = saved(tmp_path, Server([(5, 4), (3, 6)]).dump())
    content = good.read_bytes()
    truth = np.asarray(import_trace(good)[1].trace.expert_ids[:])
    rng = np.random.default_rng(4)
    path = tmp_path / "damaged.pt"
    refused = 0
    for _ in range(200):
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            ids = import_trace(path, "sglang")[1].trace.expert_ids[:]
        except SourceError:
            refused += 1
            continue
        assert np.array_equal(ids, truth)
    assert refused > 50
