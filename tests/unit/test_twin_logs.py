"""Logs as measurements: each format of llama-bench, logs of servers, rows of one's own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import ROOT

from moesim.errors import UsageError
from moesim.measured.predict import read
from moesim.twin.bench import format_of_type, split_type
from moesim.twin.command import used_options
from moesim.twin.devices import devices_text
from moesim.twin.log import Entry, Log, read_log
from moesim.twin.read import entries_of, read_logs

LOGS = ROOT / "tests/support/twin_logs"
HEAD = "| model | size | params | backend | ngl | n_cpu_moe | test | t/s |"
RULE = "| --- | ---: | ---: | --- | --: | --: | ---: | ---: |"
ROW = (
    "| qwen3moe 30B.A3B Q4_K - Medium | 17.28 GiB | 30.53 B | CUDA | 99 | 48 | tg128 "
    "| 54.31 ± 0.11 |"
)


def logged(name: str) -> list[Entry]:
    return read_logs([str(LOGS / name)])


def from_text(*lines: str) -> list[Entry]:
    return entries_of(Log("x.md", lines))


def refused(*lines: str) -> str:
    with pytest.raises(UsageError) as caught:
        from_text(*lines)
    return str(caught.value)


def test_a_markdown_table_is_read_with_the_card_before_it() -> None:
    entries = logged("sweep.md")
    assert [entry.value for entry in entries] == [2065.53, 54.31, 2641.77, 69.9, 3510.15, 83.10]
    assert [entry.deviation for entry in entries][:2] == [2.41, 0.11]
    prompt, first, *_, last = entries
    assert prompt.row.metric == "prefill_tok_s"
    assert prompt.row.prompt == 512
    assert first.row.metric == "decode_tok_s"
    assert first.row.model == "olmoe A1.7B"
    assert first.row.quant == "Q4_K_M (3.92 GiB)"
    assert first.row.gpu == "NVIDIA GeForce RTX 3090"
    assert first.row.setting == "ngl=99 ncmoe=16 t=8 fa=1"
    assert first.place == f"{LOGS / 'sweep.md'}:8"
    assert (first.row.depth, last.row.depth) == (0, 4096)


@pytest.mark.parametrize("name", ["bench.csv", "bench.json", "bench.jsonl"])
def test_other_formats_of_the_same_test_say_the_same(name: str) -> None:
    table = logged("sweep.md")[1]
    entry = next(each for each in logged(name) if each.row.metric == "decode_tok_s")
    assert (entry.value, entry.deviation) == (table.value, table.deviation)
    row, other = entry.row, table.row
    assert (row.model, row.gpu, row.depth) == (other.model, other.gpu, other.depth)
    assert read(row).setting.rules == read(other).setting.rules
    assert read(row).setting.gpu_layers == read(other).setting.gpu_layers
    assert row.engine == "llama.cpp b6500 CUDA"
    assert row.cpu == "AMD Ryzen 7 5800X 8-Core Processor"


def test_every_setting_that_is_written_is_understood() -> None:
    for path in sorted(LOGS.iterdir()):
        for entry in read_logs([str(path)]):
            reading = read(entry.row)
            assert reading.setting.unknown == (), (path.name, entry.row.setting)


def test_json_objects_have_the_line_where_they_begin() -> None:
    assert [entry.place.rpartition(":")[2] for entry in logged("bench.json")] == ["4"]
    assert [entry.place.rpartition(":")[2] for entry in logged("bench.jsonl")] == ["1", "2"]
    assert [entry.place.rpartition(":")[2] for entry in logged("rows.json")] == ["2", "14"]


def test_rows_of_ones_own_are_read() -> None:
    first, second = logged("rows.json")
    assert (first.row.setting, first.value) == ("ncmoe=16 fa=1", 54.31)
    assert (second.row.setting, second.value) == ("ncmoe=8 fa=1", 83.10)


def test_a_server_log_gives_requests_with_their_mean_depth() -> None:
    prompt, first, short, second = logged("server.log")
    assert (prompt.row.prompt, prompt.row.depth, prompt.value) == (741, 0, 3413.77)
    assert (first.row.depth, first.value) == (1534 - 794 // 2, 84.08)
    assert "only 12 tokens" in short.left_out
    assert (second.row.depth, second.value) == (6200 - 100, 81.62)
    assert first.row.setting == "-ngl 99 --n-cpu-moe 8 -c 16384 -fa on ub=512 ctk=f16 ctv=f16 t=8"
    assert first.row.gpu == "NVIDIA GeForce RTX 3090"  # found and then used: it is one card
    assert first.row.model == "olmoe A1.7B"


def test_requests_that_overlap_are_left_out() -> None:
    entries = logged("batched.log")
    assert len(entries) == 3
    assert {entry.left_out for entry in entries} == {"requests overlap in time"}


TIMED = (
    "slot print_timing: id  0 | task 7 | eval time = 2000.00 ms / 100 tokens "
    "( 20.00 ms per token, 50.00 tokens per second)"
)
LOADED = (
    "load_tensors: offloaded 49/49 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =   166.92 MiB",
)


def test_drafted_tokens_are_left_out() -> None:
    draft = "slot print_timing: id  0 | task 7 | draft acceptance = 0.61871 (  516 accepted)"
    assert "drafted" in from_text(TIMED, draft)[0].left_out


def test_a_server_that_does_not_say_where_experts_are_is_left_out() -> None:
    large = "load_tensors:        CUDA0 model buffer size = 17524.42 MiB"
    half = "load_tensors:        CUDA0 model buffer size = 200.42 MiB"
    assert from_text(*LOADED, large, TIMED)[0].left_out == ""
    assert "--setting" in from_text(*LOADED, half, TIMED)[0].left_out
    moved = "tensor blk.0.ffn_up_exps.weight (108 MiB q4_K) buffer type overridden to CPU"
    (entry,) = from_text(*LOADED, half, moved, TIMED)
    assert (entry.left_out, entry.row.setting) == ("", "ngl=99 ncmoe=1")
    moved = moved.replace("blk.0", "blk.5")
    (entry,) = from_text(*LOADED, half, moved, TIMED)
    assert read(entry.row).setting.placement == "experts"


def test_a_command_keeps_what_changes_times() -> None:
    text = "-m a.gguf -ngl 99 --host 0.0.0.0 -ncmoe 20 --new-thing 3 -ot 'a b=CPU' --top-k 40"
    used, notes = used_options(text)
    assert used == "-ngl 99 -ncmoe 20 -ot 'a b=CPU'"
    assert notes == ("the option --new-thing of the command is not known, and left out",)


def test_windows_files_are_read(tmp_path: Path) -> None:
    text = (LOGS / "sweep.md").read_text(encoding="utf-8")
    same = [(entry.row, entry.value) for entry in logged("sweep.md")]
    path = tmp_path / "any name"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert [(entry.row, entry.value) for entry in read_logs([str(path)])] == same


def test_colours_and_progress_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text(f"load 10 %\rload 100 %\r\x1b[32m{HEAD}\x1b[0m\r\n{RULE}\n\x1b[1m{ROW}\x1b[m\n")
    (entry,) = read_logs([str(path)])
    assert entry.value == 54.31
    assert entry.place == f"{path}:3"


@pytest.mark.parametrize("sign", ["Â±", "┬▒", "+-", "�"])
def test_the_sign_before_the_deviation_may_be_damaged(sign: str) -> None:
    (entry,) = from_text(HEAD, RULE, ROW.replace("±", sign))
    assert (entry.value, entry.deviation) == (54.31, 0.11)


def test_the_standard_input_is_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (LOGS / "sweep.md").read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    entries = read_logs(["-"])
    assert len(entries) == 6
    assert entries[0].place == "standard input:7"
    with pytest.raises(UsageError, match="once"):
        read_logs(["-", "-"])


def test_several_files_are_one_list() -> None:
    assert len(read_logs([str(LOGS / "sweep.md"), str(LOGS / "bench.csv")])) == 8


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((HEAD, RULE, ROW.replace("tg128", "zz9")), "x.md:3: the test is not understood"),
        ((HEAD, RULE, ROW.replace("54.31", "fast")), "x.md:3: the speed is not understood"),
        ((HEAD, RULE, ROW.replace("54.31 ± 0.11", "0.00 ± 0.00")), "x.md:3: 0.00 tokens"),
        ((HEAD, RULE, ROW.replace("| 99 ", "")), "x.md:3: a row of 7 cells under 8 columns"),
        ((HEAD.replace("ngl", "magic"), RULE, ROW), "x.md:1: the column 'magic' is not known"),
        (("| PP | TG | N_KV |", "| 1 | 2 | 3 |"), "x.md:1: a table without the column"),
        ((HEAD, RULE), "x.md:1: a table without rows"),
        (("hello", "world"), "x.md:1: no measurement is found"),
        (("CREATE TABLE IF NOT EXISTS llama_bench (",), "x.md:1: SQL is not read"),
        (('"312cf033","6500","AMD"',), "x.md:1: CSV without its first line"),
        (("build_commit,model_type", '"a","b"'), "x.md:1: CSV without the column 'n_prompt'"),
        (('{"a": 1}',), "x.md:1: neither a test of llama-bench"),
        (("", '{"metric": "decode_tok_s"}'), "x.md:2: a row without a value"),
        (('{"avg_ts": 1, "n_gen": 1}',), "x.md:1: a test of llama-bench without its model"),
        (("[", '{"metric": 1'), "x.md:2: is no JSON"),
        (("[", '{"metric": "decode_tok_s", "value": 3}', ","), "the JSON list has no end"),
        (('{"metric": "decode_tok_s", "value": NaN}',), "x.md:1: is no JSON (NaN is no number)"),
        (('{"metric": "decode_tok_s", "value": -2}',), "x.md:1: `value`: Input should"),
        (("prompt eval time = 12 ms / x tokens",), "x.md:1: the timing line is not understood"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_with_its_line(lines: tuple[str, ...], said: str) -> None:
    message = refused(*lines)
    assert said in message
    place = int(message.partition("x.md:")[2].partition(":")[0]) - 1
    assert " ".join(lines[place].split())[:20] in message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for data, said in ((b"a\0b", "NUL"), (b" \n", "empty")):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=said):
            read_log(str(path))
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError):
            read_log(str(wrong))


@pytest.mark.parametrize(
    "text",
    [
        "|" * 100_000,
        "[" * 100_000,
        "{" * 100_000,
        '{"a":' * 100_000,
        '"' * 100_001,
        "eval time" * 20_000,
        HEAD + "\n" + "| " + "a | " * 50_000,
        "build_commit," + '"' * 99_999,
        "\x1b[" * 50_000,
        '{"avg_ts": ' + "9" * 6000 + ', "model_type": "a", "n_gen": 1}',
        "Device 0: " + "(" * 3000,
    ],
)
def test_hostile_text_is_refused_soon(text: str) -> None:
    assert "x.md:1: " in refused(*text.split("\n")) or "x.md:2: " in refused(*text.split("\n"))


def test_too_many_measurements_are_refused() -> None:
    assert "more than 1000" in refused(HEAD, RULE, *[ROW] * 1001)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("qwen3moe 30B.A3B Q4_K - Medium", ("qwen3moe 30B.A3B", "Q4_K_M")),
        ("gpt-oss 20B MXFP4 MoE", ("gpt-oss 20B", "MXFP4")),
        ("llama 8x7B Q8_0", ("llama 8x7B", "Q8_0")),
        ("llama 7B mostly Q4_0", ("llama 7B", "Q4_0")),
        ("deepseek2 671B IQ1_S - 1.5625 bpw", ("deepseek2 671B", "IQ1_S")),
        ("deepseek2 671B Q2_K - Medium", ("deepseek2 671B", "Q2_K")),
        ("deepseek2 16B Q4_K - Small", ("deepseek2 16B", "Q4_K_S")),
        ("glm4moe 106B IQ3_S mix - 3.66 bpw", ("glm4moe 106B", "IQ3_M")),
        ("olmoe A1.7B BF16", ("olmoe A1.7B", "BF16")),
        ("something else", ("something else", "")),
    ],
)
def test_a_type_is_a_model_and_a_format(text: str, pair: tuple[str, str]) -> None:
    assert split_type(text) == pair
    assert format_of_type("Q6_K") == "Q6_K"


def test_several_cards_are_said_so() -> None:
    assert devices_text("A, A") == "2x A"
    assert devices_text("A, B") == "A + B"


def test_a_prompt_with_its_answer_is_left_out() -> None:
    (entry,) = from_text(HEAD, RULE, ROW.replace("tg128", "pp512+tg128"))
    assert "together" in entry.left_out


def test_fields_of_newer_builds_are_noted() -> None:
    value: Any = json.loads((LOGS / "bench.jsonl").read_text().splitlines()[0])
    (entry,) = from_text(json.dumps({**value, "novelty": 3}))
    assert entry.notes == ("the field 'novelty' is not known",)
