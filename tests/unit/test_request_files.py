"""Files of requests: each format is read as it is, and a wrong line is named, never repaired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from broken_requests import FORMATS, ROWS, broken, reading, whole

from moesim.errors import UsageError, WorkloadError
from moesim.workload.formats import Columns
from moesim.workload.request_file import Reading, RequestFile, read_requests


def read(folder: Path, data: bytes | str, how: Reading | None = None) -> RequestFile:
    path = folder / "requests"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_requests(path, how)


def triples(file: RequestFile) -> list[tuple[int | None, int, int]]:
    return [(it.arrival_ns, it.prompt_tokens, it.output_tokens) for it in file.requests]


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_recognised_by_its_header(tmp_path: Path, form: str) -> None:
    file = read(tmp_path, whole(form), reading(form))
    assert file.format.name == form
    assert len(file.requests) == ROWS
    assert file.timed == (form != "sharegpt")
    if form not in ("mooncake", "sharegpt"):
        assert [it.prompt_tokens for it in file.requests] == [100 + 7 * row for row in range(ROWS)]
        assert [it.output_tokens for it in file.requests] == [5 + row for row in range(ROWS)]
    if file.timed:  # from the first arrival, whatever the file counts from
        step_ns = 10_000_000 if form == "mooncake" else 1_000_000_000
        assert [it.arrival_ns for it in file.requests] == [row * step_ns for row in range(ROWS)]
    again = read(tmp_path, whole(form), reading(form, sniffed=False))
    assert again.requests == file.requests


def test_times_since_1970_are_exact_to_the_nanosecond(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens\n1755820800.0,8,4\n1755820801.500000001,8,4\n"
    assert triples(read(tmp_path, text)) == [(0, 8, 4), (1_500_000_001, 8, 4)]


def test_a_header_that_fits_several_formats_is_refused_with_the_candidates(tmp_path: Path) -> None:
    both = "TIMESTAMP,ContextTokens,GeneratedTokens,arrival_s,prompt_tokens,output_tokens\n"
    text = both + "2023-11-16 18:17:03,3,4,0,5,6\n"
    with pytest.raises(WorkloadError, match=r":1: may be any of plain, azure: .*`format`"):
        read(tmp_path, text)
    assert triples(read(tmp_path, text, Reading("azure"))) == [(0, 3, 4)]
    assert triples(read(tmp_path, text, Reading("plain"))) == [(0, 5, 6)]


def test_an_unknown_header_is_refused_with_what_each_format_needs(tmp_path: Path) -> None:
    with pytest.raises(
        WorkloadError, match=r":1: is of no known format: has a, b; .* output_tokens \(plain\)"
    ):
        read(tmp_path, "a,b\n1,2\n")
    with pytest.raises(WorkloadError, match=r":1: is of no known format.*timestamp.*\(mooncake\)"):
        read(tmp_path, '{"a": 1}\n')
    with pytest.raises(WorkloadError, match=":1: is empty"):
        read(tmp_path, "")


def test_columns_of_ones_own_are_read_by_a_map_from_csv_and_json_lines(tmp_path: Path) -> None:
    columns = Columns(arrival="t", unit="us", prompt="i", output="o", domain="kind")
    file = read(tmp_path, "kind,o,i,t\ncode,2,3,7\nprose,4,5,9.5\n", Reading(columns=columns))
    assert triples(file) == [(0, 3, 2), (2500, 5, 4)]
    assert [it.domain for it in file.requests] == ["code", "prose"]
    rows = [{"t": 7, "i": 3, "o": 2, "kind": "code"}, {"t": 9.5, "i": 5, "o": 4, "kind": "prose"}]
    lines = read(tmp_path, "\n".join(map(json.dumps, rows)), Reading(columns=columns))
    assert triples(lines) == triples(file)
    untimed = Columns(prompt="i", output="o")
    assert triples(read(tmp_path, "i,o\n3,2\n", Reading(columns=untimed))) == [(None, 3, 2)]


def test_columns_replace_those_of_a_format(tmp_path: Path) -> None:
    file = read(tmp_path, whole("burstgpt"), Reading(columns=Columns(domain="Model")))
    assert {it.domain for it in file.requests} == {"ChatGPT"}
    assert file.format.name == "burstgpt"


def test_vidur_lengths_without_times_are_read(tmp_path: Path) -> None:
    file = read(tmp_path, "num_prefill_tokens,num_decode_tokens,total_tokens\n3,2,5\n")
    assert triples(file) == [(None, 3, 2)]
    assert not file.timed


def test_block_ids_are_read_and_their_number_must_fit_the_prompt(tmp_path: Path) -> None:
    file = read(tmp_path, whole("mooncake"))
    assert file.block_tokens == 512
    assert [it.blocks for it in file.requests[:3]] == [(0,), (0, 1), (0, 1, 2)]
    row = {"timestamp": 0, "input_length": 40, "output_length": 1, "hash_ids": [5, 6]}
    for size, fits in ((16, True), (20, True), (40, False), (13, False)):
        if fits:  # a last block that is not full may be left out
            read(tmp_path, json.dumps(row), Reading(block_tokens=size))
        else:
            with pytest.raises(WorkloadError, match=r"has 2 block ids for 40 .*`block_tokens`"):
                read(tmp_path, json.dumps(row), Reading(block_tokens=size))
    with pytest.raises(WorkloadError, match="blocks of 512 tokens would be 1"):
        read(tmp_path, json.dumps(row))


def test_mooncake_lines_without_block_ids_have_none(tmp_path: Path) -> None:
    row = {"timestamp": 27482, "input_length": 6955, "output_length": 52}
    file = read(tmp_path, json.dumps(row))
    assert file.block_tokens is None
    assert file.requests[0].blocks is None
    assert triples(file) == [(0, 6955, 52)]


def test_a_conversation_gives_its_first_prompt_and_answer(tmp_path: Path) -> None:
    turns = [("system", "s" * 3), ("human", "p" * 6), ("gpt", "a" * 5), ("human", "q" * 99)]
    talk = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    text = json.dumps([talk], indent=2)
    assert triples(read(tmp_path, text, Reading(characters_per_token=4))) == [(None, 3, 2)]
    with pytest.raises(WorkloadError, match=r":2: holds text .*`characters_per_token`"):
        read(tmp_path, text)


def test_a_list_larger_than_the_chunks_of_the_reader_is_read_item_by_item(tmp_path: Path) -> None:
    values = ["x" * length for length in (1, 70_000, 3, 140_000, 65_536, 2)]
    values[2] = 'q"\\{[[{,\\"' * 20_000
    talks = [
        {"conversations": [{"from": "human", "value": v}, {"from": "gpt", "value": "é"}]}
        for v in values
    ]
    text = "[" + ",\n".join(json.dumps(talk, ensure_ascii=False) for talk in talks) + "]"
    file = read(tmp_path, text, Reading(characters_per_token=1))
    assert triples(file) == [(None, len(value), 1) for value in values]
    assert [it.line for it in file.requests] == [1, 2, 3, 4, 5, 6]


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for how, says in (
        (Reading("azur"), "no format 'azur'"),
        (Reading(repair=frozenset(["all"])), "no repair 'all'"),
        (Reading(columns=Columns(unit="days")), "no unit 'days'"),
    ):
        with pytest.raises(UsageError, match=says):
            read(tmp_path, whole("plain"), how)


# --- repairs --------------------------------------------------------------------------------------

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
UNTIDY = HEADER + "2,1,1\n1,2,0\n1,3,4\n0,5,6,,\n3,0,2\n3,7,8\n"


def test_each_repair_is_asked_for_and_counted_with_its_first_line(tmp_path: Path) -> None:
    every = frozenset(["sort", "drop_empty", "drop_surplus"])
    file = read(tmp_path, UNTIDY, Reading(repair=every))
    seconds = 1_000_000_000
    assert triples(file) == [(0, 5, 6), (seconds, 3, 4), (2 * seconds, 1, 1), (3 * seconds, 7, 8)]
    assert file.repaired == {"drop_empty": (2, 3), "sort": (2, 4), "drop_surplus": (1, 5)}
    assert sorted(file.notes()) == [
        "1 lines had cells beyond the header, which were left out, the first on line 5",
        "2 requests out of order were sorted by time, the first on line 4",
        "2 requests without prompt or output tokens were left out, the first on line 3",
    ]
    for left_out, line in (("sort", 4), ("drop_empty", 3), ("drop_surplus", 5)):
        with pytest.raises(WorkloadError) as caught:
            read(tmp_path, UNTIDY, Reading(repair=every - {left_out}))
        assert caught.value.line == line
    assert not read(tmp_path, whole("plain"), Reading(repair=every)).repaired
    for text in ("0,1\n", "0,1,\n", "0,-1,1\n", "nan,1,1\n"):  # not among what is repaired
        with pytest.raises(WorkloadError):
            read(tmp_path, HEADER + text, Reading(repair=every))
    with pytest.raises(WorkloadError, match=":2: has 3 cells, and the header has 4"):
        read(tmp_path, HEADER.replace("\n", ",note\n") + "0,1,1\n", Reading(repair=every))


def test_a_limit_takes_the_first_requests_by_time(tmp_path: Path) -> None:
    every = frozenset(["sort", "drop_empty", "drop_surplus"])
    file = read(tmp_path, UNTIDY, Reading(repair=every, limit=2))
    assert [it.prompt_tokens for it in file.requests] == [5, 3]
    # Lines behind the last request that is wanted are not read.
    assert len(read(tmp_path, HEADER + "0,1,1\nx\n", Reading(limit=1)).requests) == 1


# --- wrong files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_no_mutated_file_is_read_or_repaired(tmp_path: Path, form: str) -> None:
    assert len(read(tmp_path, whole(form), reading(form)).requests) == ROWS
    reasons = set()
    for number in range(200):
        data, line = broken(form, number)
        assert data != whole(form)
        with pytest.raises(WorkloadError) as caught:
            read(tmp_path, data, reading(form, sniffed=number % 3 != 0))
        error = caught.value
        assert str(error).startswith(f"{tmp_path / 'requests'}:{error.line}: "), number
        assert "\n" not in str(error)
        assert error.exit_code == 2
        if line is not None:
            assert error.line == line, (number, data, str(error))
        assert 1 <= error.line <= data.count(b"\n") + 2
        reasons.add(error.reason.split()[0])
    assert len(reasons) >= 5  # the mutations do not all fail for one reason


# --- published files ------------------------------------------------------------------------------


def test_the_azure_code_trace_has_its_published_statistics(shared: Path) -> None:
    file = read_requests(shared / "data/requests/AzureLLMInferenceTrace_code.csv")
    prompts = np.array([it.prompt_tokens for it in file.requests])
    outputs = np.array([it.output_tokens for it in file.requests])
    gaps = np.diff([it.arrival_ns or 0 for it in file.requests])
    assert file.format.name == "azure"
    assert len(file.requests) == 8819
    # Splitwise, section 3: "a median of 1500 prompt tokens" and 13 output tokens.
    assert round(np.median(prompts), -2) == 1500
    assert np.median(outputs) == 13
    assert round(gaps.std() / gaps.mean()) == 13
    assert 0 < (file.requests[-1].arrival_ns or 0) < 3600 * 10**9


def test_the_mooncake_conversations_have_their_published_statistics(shared: Path) -> None:
    file = read_requests(shared / "data/requests/mooncake_conversation_trace.jsonl")
    prompts = [it.prompt_tokens for it in file.requests]
    outputs = [it.output_tokens for it in file.requests]
    # Mooncake (FAST 2025), table of the traces: 12,031 requests, 12,035 tokens in, 343 out.
    assert len(file.requests) == 12_031
    assert round(np.mean(prompts)) == 12_035
    assert round(np.mean(outputs)) == 343
    assert file.block_tokens == 512
    assert sum(len(it.blocks or ()) for it in file.requests) == 288_500
    assert 3500 < (file.requests[-1].arrival_ns or 0) / 1e9 < 3600
