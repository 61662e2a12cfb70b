"""Each format of other programs becomes the trace of its arrays, and is found by its content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from routing_files import EXPERTS, FIRST, IDS, LAYERS, SAMPLES, SECOND, K, Sample, b64, npy_bytes

from moesim.errors import SourceError, UsageError
from moesim.trace import import_trace
from moesim.trace.importers import FORMATS, Imported, Options, find_format


def read(path: Path, name: str | None = None, **options: Any) -> Imported:
    return import_trace(path, name, Options(**options))[1]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_becomes_the_trace_of_its_arrays(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    found, imported = import_trace(sample.write(tmp_path), None, sample.options)
    trace = imported.trace
    assert found.name == sample.format
    assert np.array_equal(trace.expert_ids[:], sample.ids)
    assert tuple(trace.requests["num_rows"]) == sample.lengths
    assert trace.num_experts == EXPERTS
    assert not trace.meta.synthetic
    assert trace.meta.provenance["format"] == sample.format
    assert np.array_equal(sample.oracle(sample.content), sample.ids)


@pytest.mark.parametrize("name", [name for name in SAMPLES if "llama" in name or name == "csv"])
def test_layer_numbers_of_a_log_are_kept(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    assert import_trace(sample.write(tmp_path), None, sample.options)[1].trace.meta.layer_map == (
        LAYERS
    )


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("llama")])
def test_the_prompt_of_a_llama_log_is_what_came_before_single_tokens(
    name: str, tmp_path: Path
) -> None:
    sample = SAMPLES[name]
    trace = import_trace(sample.write(tmp_path), None, sample.options)[1].trace
    assert trace.requests["prompt_tokens"].tolist() == [4]
    assert trace.requests["output_tokens"].tolist() == [6]


def test_a_log_without_top_k_is_read_by_its_passes_of_one_token_and_says_so(
    tmp_path: Path,
) -> None:
    path = SAMPLES["llama_cpp"].write(tmp_path)
    imported = read(path)
    assert np.array_equal(imported.trace.expert_ids[:], IDS)
    assert any("--top-k" in note for note in imported.notes)
    path.write_text("layer,expert\n1,0\n1,2\n1,3\n1,4\n3,1\n3,2\n3,5\n3,4\n")  # one pass
    with pytest.raises(SourceError, match="--top-k"):
        read(path)
    with pytest.raises(SourceError, match=r"one layer has|no multiple of"):
        read(path, top_k=3)


def test_a_log_of_two_requests_is_refused_at_the_second(tmp_path: Path) -> None:
    path = SAMPLES["llama_cpp"].write(tmp_path)
    text = path.read_text()
    path.write_text(text + text.split("\n", 1)[1])
    with pytest.raises(SourceError, match=r"line 38: .*several requests"):
        read(path, top_k=K)


def ranking_log(path: Path) -> np.ndarray:
    """Write a log as examples/moe-trace does, and return the ids of its decoded tokens.

    It has no header. A prompt's pass holds the whole ranking of the first token, and the last layer
    only one token.
    """
    rng = np.random.default_rng(1)
    rows = []
    for layer in range(6):
        rows += [f"{layer},{expert}" for expert in rng.permutation(32)[: 24 if layer < 5 else 4]]
    decoded = np.array([[rng.permutation(32)[:4] for _ in range(6)] for _ in range(8)])
    for token in decoded:
        rows += [f"{layer},{expert}" for layer in range(6) for expert in token[layer]]
    path.write_text("\n".join(rows) + "\n")
    return decoded


def test_a_prompt_as_llama_moe_trace_writes_it_is_refused_and_its_decoding_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.csv"
    decoded = ranking_log(path)
    with pytest.raises(SourceError, match=r"line 121: layer 5 has 1 tokens in a pass of 6.*only\)"):
        read(path, num_experts=32)
    trace = read(path, num_experts=32, decoded_only=True).trace
    assert np.array_equal(trace.expert_ids[:], decoded)
    assert trace.meta.prompt_rows == "absent"
    assert trace.requests["prompt_tokens"].tolist() == [6]
    assert trace.requests["output_tokens"].tolist() == [9]


def test_a_ranking_that_was_written_for_choices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    ranking_log(path)
    rows = path.read_text().split("\n")
    path.write_text("\n".join([*rows[:120], *rows[124:]]))  # as if the last layer had no experts
    rows = [row for row in path.read_text().split("\n") if not row.startswith("5,")]
    path.write_text("\n".join(rows))
    with pytest.raises(SourceError, match=r"line 1: .*ranking.*--decoded-only"):
        read(path, num_experts=32)
    rng = np.random.default_rng(2)
    chosen = [rng.permutation(32)[:4] for _ in range(6 * 6)]
    truth = [f"{n // 6},{expert}" for n, token in enumerate(chosen) for expert in token]
    path.write_text("\n".join(truth))
    assert read(path, num_experts=32, top_k=4).trace.num_rows == 6


def test_a_log_without_a_header_is_known_too(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(SAMPLES["llama_cpp"].content.decode().split("\n")[1:]))
    assert np.array_equal(read(path, top_k=K).trace.expert_ids[:], IDS)
    path.write_text("374,44\n396,109\n")  # lengths of requests
    with pytest.raises(SourceError, match=r"--from NAME \(npz, .*llama_cpp"):
        read(path)


@pytest.mark.parametrize("name", ["llama_cpp lists", "llama_cpp numbered", "llama_cpp calls"])
def test_the_prompt_of_any_log_can_be_left_out(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name].write(tmp_path)
    trace = read(path, num_experts=EXPERTS, decoded_only=True).trace
    assert np.array_equal(trace.expert_ids[:], IDS[4:])
    assert trace.requests["prompt_tokens"].tolist() == [4]
    assert trace.requests["output_tokens"].tolist() == [6]


def test_a_decode_file_has_its_prompt_but_not_its_rows(tmp_path: Path) -> None:
    trace = read(SAMPLES["moearc"].write(tmp_path)).trace
    assert trace.meta.prompt_rows == "absent"
    assert trace.requests["prompt_tokens"].tolist() == [6]
    assert trace.requests["output_tokens"].tolist() == [10]
    assert trace.meta.model == "tiny-Q4_K_M"
    assert trace.requests["domain"].tolist() == ["prose"]


def moearc(ids: np.ndarray, phase: str, **changes: Any) -> str:
    """Return the lines of one file of a request with four prompt tokens."""
    header = {
        "format": "moearc-trace-v1",
        "phase": phase,
        "n_expert": EXPERTS,
        "n_expert_used": K,
        "n_prompt_tokens": 4,
        f"n_{phase}_steps": len(ids),
        "prompt_name": "one",
        **changes,
    }
    steps = [
        {"step": step, "phase": phase, "pos": step + (4 if phase == "decode" else 0),
         "e": [int(n) for at, layer in enumerate(LAYERS) for e in row[at] for n in (layer, e)]}
        for step, row in enumerate(ids)
    ]  # fmt: skip
    return "".join(f"{json.dumps(one)}\n" for one in (header, *steps))


def test_files_of_prompts_and_decoding_make_requests_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "both.ndjson"
    path.write_text(
        moearc(FIRST[:4], "prefill")
        + moearc(SECOND, "decode")
        + moearc(SECOND, "prefill", prompt_name="two")
        + moearc(FIRST, "decode", prompt_name="two")
    )
    trace = read(path).trace
    assert np.array_equal(trace.expert_ids[:], np.concatenate([FIRST[:4], SECOND, SECOND, FIRST]))
    assert trace.requests["num_rows"].tolist() == [8, 9]
    assert trace.requests["prompt_tokens"].tolist() == [4, 4]
    assert trace.requests["output_tokens"].tolist() == [5, 6]
    assert trace.requests["domain"].tolist() == ["one", "two"]
    assert trace.meta.prompt_rows == "recorded"


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.ndjson"
    prefill = moearc(FIRST[:4], "prefill")
    for second, words in (
        (moearc(SECOND, "decode", prompt_name="two"), "line 6: decodes another prompt"),
        (moearc(SECOND, "decode", n_expert=9), "line 6: n_expert is 9, and the header before"),
        (moearc(SECOND, "decode", n_decode_steps=3), "line 6: says 3 steps, and 4 follow"),
        (moearc(SECOND, "decode") + moearc(SECOND, "decode"), "line 11: starts a request with its"),
    ):
        path.write_text(prefill + second)
        with pytest.raises(SourceError, match=words):
            read(path)
    path.write_text(prefill + moearc(FIRST[:0], "decode"))
    with pytest.raises(SourceError, match="line 6: no step follows this header"):
        read(path)
    path.write_text(moearc(FIRST[:3], "prefill") + moearc(SECOND, "decode"))
    with pytest.raises(SourceError, match="says 4 prompt tokens, and the prefill has 3"):
        read(path)


@pytest.mark.parametrize("name", ["sglang_routed", "vllm"])
def test_answers_say_where_their_prompts_end(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    trace = import_trace(sample.write(tmp_path), None, sample.options)[1].trace
    assert trace.requests["prompt_tokens"].tolist() == [3, 2]
    assert trace.requests["output_tokens"].tolist() == [3, 3]


def answer(ids: np.ndarray, **changes: Any) -> dict[str, Any]:
    info = {"prompt_tokens": 3, "completion_tokens": len(ids) - 2}
    return {"meta_info": {**info, "routed_experts": b64(ids.astype("<i4").tobytes()), **changes}}


def test_dense_layers_of_an_answer_are_left_out_and_named(tmp_path: Path) -> None:
    ids = np.zeros((5, 4, K), int)
    ids[:, list(LAYERS)] = FIRST
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer(ids)))
    imported = read(path, top_k=K, num_experts=EXPERTS)
    assert imported.trace.meta.layer_map == LAYERS
    assert np.array_equal(imported.trace.expert_ids[:], FIRST)
    assert "layers without routing are left out: 0, 2" in imported.notes


def test_an_answer_of_outputs_only_has_no_prompt_rows(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    of_outputs = answer(SECOND, routed_experts_start_len=3, completion_tokens=5)
    path.write_text(json.dumps(of_outputs))
    trace = read(path, top_k=K, num_experts=EXPERTS).trace
    assert trace.meta.prompt_rows == "absent"
    assert trace.requests["output_tokens"].tolist() == [5]


def test_an_answer_needs_the_experts_of_a_token(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer(FIRST)))
    with pytest.raises(SourceError, match="--top-k"):
        read(path)
    with pytest.raises(SourceError, match="no multiple of 5 tokens"):
        read(path, top_k=3)


def test_older_answers_of_vllm_keep_the_prompt_apart(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    one = {
        "prompt_routed_experts": FIRST.tolist(),
        "choices": [{"routed_experts": SECOND.tolist()}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5},
    }
    path.write_text(json.dumps(one, indent=1))
    trace = read(path, num_experts=EXPERTS).trace
    assert np.array_equal(trace.expert_ids[:], IDS)
    assert trace.requests["prompt_tokens"].tolist() == [5]


def test_a_row_of_the_last_generated_token_is_left_out(tmp_path: Path) -> None:
    """It is never fed back, and some versions fill it with zeros."""
    path = tmp_path / "answer.json"
    padded = np.concatenate([FIRST, np.zeros_like(FIRST[:1])])
    one = {
        "choices": [{"routed_experts": padded.tolist()}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3},
    }
    path.write_text(json.dumps(one))
    trace = read(path, num_experts=EXPERTS).trace
    assert np.array_equal(trace.expert_ids[:], FIRST)
    assert trace.requests["output_tokens"].tolist() == [3]


def test_a_repeated_or_wrong_id_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "uses.csv"
    for third, words in (
        ("0,0,3", "line 3: expert id 3 is repeated for one token and layer"),
        ("0,0,8", "line 3: expert id 8 is out of range for 8 experts"),
        ("1,0,6", "line 2: token 0 uses 1 experts at layer 0, and 2 were expected"),
        ("0,1,4", "line 2: token 0 uses 1 experts"),
    ):
        rest = [f"{token},0,{expert}" for token in (1, 2, 3) for expert in (4, 5)]
        rows = ["token,layer,expert", "0,0,3", third, *rest]
        path.write_text("\n".join(rows))
        with pytest.raises(SourceError, match=words):
            read(path, num_experts=EXPERTS)


def test_ids_with_their_shape_are_read_and_null_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    for kind in ("int16", "int32", "uint8"):
        data = b64(FIRST.astype(kind).tobytes())
        shaped = {"data": data, "shape": list(FIRST.shape), "dtype": kind}
        path.write_text(json.dumps({"choices": [{"routed_experts": shaped}]}))
        assert np.array_equal(read(path, num_experts=EXPERTS).trace.expert_ids[:], FIRST)
    path.write_text(json.dumps({"choices": [{"routed_experts": {**shaped, "shape": [5, 2, 3]}}]}))
    with pytest.raises(SourceError, match="holds 20 bytes, and the shape is"):
        read(path)
    path.write_text(json.dumps({"choices": [{"routed_experts": None}]}))
    with pytest.raises(SourceError, match="null: start the server with --enable-return-routed"):
        read(path)


def test_a_cached_prefix_without_routing_is_refused(tmp_path: Path) -> None:
    ids = FIRST.copy()
    ids[0] = -1
    path = tmp_path / "ids.npy"
    path.write_bytes(npy_bytes(ids))
    with pytest.raises(SourceError, match=r"token 0 has no expert at layer 0.*cached prefix"):
        read(path)


def test_request_names_and_weights_of_lines_are_kept(tmp_path: Path) -> None:
    for name in ("jsonl uses", "csv"):
        trace = read(SAMPLES[name].write(tmp_path), num_experts=EXPERTS).trace
        assert trace.gate_weights is not None
        assert float(trace.gate_weights[0, 0, 1]) == 0.25


def test_a_format_goes_by_its_name_with_any_separator() -> None:
    assert find_format("llama.cpp") is FORMATS["llama_cpp"]
    assert find_format("SGLang-routed") is FORMATS["sglang_routed"]
    with pytest.raises(UsageError, match=r"--from 'sglan' .*did you mean 'sglang'.*moearc"):
        find_format("sglan")


def test_a_file_that_fits_two_formats_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(FORMATS, "twin", replace(FORMATS["csv"], name="twin"))
    with pytest.raises(SourceError, match=r"several formats; .*\(csv, twin\)"):
        read(SAMPLES["csv"].write(tmp_path))


def popularity(path: Path, counts: np.ndarray, **options: Any) -> Imported:
    rows = [f"{n},{e},{count}" for n, row in enumerate(counts) for e, count in enumerate(row)]
    path.write_text("\n".join(["layer,expert,count", *rows]))
    return read(path, top_k=K, requests=40, **options)


def test_counts_become_a_synthetic_trace_of_their_popularity(tmp_path: Path) -> None:
    counts = np.array([[400, 300, 200, 100, 50, 50, 50, 50], [1, 2, 3, 4, 5, 6, 7, 8]]) * 10
    imported = popularity(tmp_path / "counts.csv", counts)
    trace = imported.trace
    assert trace.meta.synthetic
    assert "(synthetic)" in repr(trace)
    assert any(note.startswith("SYNTHETIC") for note in imported.notes)
    for layer, row in enumerate(counts):
        uses = np.bincount(np.asarray(trace.expert_ids[:, layer]).ravel(), minlength=EXPERTS)
        share = row / row.sum()
        # Tokens are independent, so a count is binomial around the share of tokens that use it.
        spread = np.sqrt(trace.num_rows * K * share * (1 - K * share)) + 1
        assert (abs(uses - trace.num_rows * K * share) < 4.5 * spread).all()


def test_experts_of_a_synthetic_token_meet_as_by_chance(tmp_path: Path) -> None:
    trace = popularity(tmp_path / "counts.csv", np.full((1, 8), 10)).trace
    pairs = np.sort(np.asarray(trace.expert_ids[:, 0], np.int64), axis=1)
    _, counts = np.unique(pairs @ [8, 1], return_counts=True)
    expected = trace.num_rows / 28
    assert len(counts) == 28
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_an_array_of_counts_is_read_like_their_csv(tmp_path: Path) -> None:
    counts = np.arange(1, 17).reshape(2, 8)
    as_csv = popularity(tmp_path / "counts.csv", counts).trace
    path = tmp_path / "counts.npy"
    path.write_bytes(npy_bytes(counts))
    as_npy = read(path, top_k=K, requests=40).trace
    assert np.array_equal(as_csv.expert_ids[:], as_npy.expert_ids[:])


def test_an_expert_with_more_uses_than_tokens_is_refused(tmp_path: Path) -> None:
    counts = np.array([[90, 5, 5, 0, 0, 0, 0, 0]])
    with pytest.raises(SourceError, match=r"layer 0, expert 0: has 90.0% .*more than 50.0%"):
        popularity(tmp_path / "counts.csv", counts)


def test_layers_without_counts_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"logical_count": [[[0] * 4, [3, 2, 2, 1]], [[0] * 4, [1] * 4]]}))
    found, imported = import_trace(path, None, Options(top_k=1))
    assert found.name == "sglang"
    assert imported.trace.meta.layer_map == (1,)
    assert imported.trace.meta.synthetic


def esft_folder(folder: Path, ids: np.ndarray, lengths: tuple[int, ...]) -> Path:
    folder.mkdir()
    ends = np.cumsum(lengths)
    for layer in range(ids.shape[1]):
        rows = []
        for end, length in zip(ends, lengths, strict=True):
            some = ids[end - length : end, layer].ravel()
            rows.append("\t".join(map(str, some)) + "\t\t" + "\t".join(["0.1"] * len(some)))
        (folder / f"expert_weights_{layer + 1}.txt").write_text("\n".join(rows) + "\n")
    return folder


def test_a_folder_of_esft_texts_is_read_layer_by_layer(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).random((7, 26, 64)).argsort(-1)[..., :6]
    folder = esft_folder(tmp_path / "intent", ids, (4, 3))
    found, imported = import_trace(folder)
    assert found.name == "esft"
    trace = imported.trace
    assert np.array_equal(trace.expert_ids[:], ids)
    assert trace.requests["num_rows"].tolist() == [4, 3]
    assert trace.meta.model_layers == tuple(range(1, 27))
    (folder / "expert_weights_9.txt").unlink()
    with pytest.raises(SourceError, match=r"expert_weights_9\.txt: missing"):
        import_trace(folder)


COLUMNS = {"lru": "LRU", "static": "static", "min": "belady"}


def test_the_four_published_traces_hit_as_the_reference_says(shared: Path) -> None:
    from moesim.simulate.curve import curve

    table = json.loads((shared / "reference/hit_rates.json").read_text())["results"]
    for task in ("intent", "law", "summary", "translation"):
        source = shared / f"data/routing/esft_deepseek_v2_lite/{task}.npz"
        trace = import_trace(source, "esft")[1].trace
        caps = {int(n): row for n, row in table[f"esft_deepseek_v2_lite/{task}"]["caps"].items()}
        found = curve(trace, list(COLUMNS), scope="per_layer", capacities=list(caps))
        for policy, column in COLUMNS.items():
            expected = {cap: row[column] for cap, row in caps.items()}
            assert found[policy] == pytest.approx(expected, abs=0.001), (task, policy)


def test_sample_formats_are_all_formats_of_one_file() -> None:
    others = {"esft", "sglang", "counts"}  # a folder, a pickle, statistics: tests of their own
    assert {sample.format for sample in SAMPLES.values()} | others == set(FORMATS)


def test_every_sample_is_a_sample() -> None:
    assert all(isinstance(sample, Sample) for sample in SAMPLES.values())
