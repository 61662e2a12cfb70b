"""Kinds of rows, and what a reading declines before any prediction."""

from __future__ import annotations

from typing import Any

import pytest
from paths import ROOT

from moesim.measured import Row, read_rows
from moesim.measured.grammar import read_setting
from moesim.measured.kinds import COUNTED, DECLINED, Kind, kind_of, spills
from moesim.measured.predict import (
    SHORT_DEPTH,
    USUAL_PROMPT,
    Declined,
    Prediction,
    group_of,
    read,
)
from moesim.measured.simulated import Simulated

PUBLISHED = ROOT.parent / "shared/data/measured/throughput.json"


def kind(setting: str, gpu: str, placement: str = "", **fields: Any) -> Kind:
    row = Row(setting=setting, gpu=gpu, placement=placement, **fields)
    return kind_of(row, read_setting(setting))


@pytest.mark.parametrize(
    ("setting", "gpu", "expected"),
    [
        ("ncmoe=5", "RTX 3090", "offload"),
        ("ngl=0", "RTX 3090", "offload"),
        ("ncmoe=0", "RTX 3090", "resident"),
        ("-ngl 99", "RTX 3090", "resident"),
        ("-ngl 99", "Radeon 8060S (Strix Halo)", "resident/unified"),
        ("resident unified", "Radeon", "resident/unified"),
        ("resident", "DGX Spark GB10", "resident/unified"),
        ("-ngl 99", "Apple M3 Ultra", "resident/unified"),
        ("cpu-only", "RTX 3090", "cpu-only"),
        ("t=4", "none", "cpu-only"),
        ("ncmoe=5", "none", "cpu-only"),
        ("", "RTX 3090", "resident"),
        ("ncmoe=5", "2x RTX 3090", "several-gpus"),
        ("ncmoe=5", "RTX 3090 + RTX 3060", "several-gpus"),
        ("ncmoe=5", "Dual RTX 3090", "several-gpus"),
        ("-ts 1,1", "RTX 3090", "several-gpus"),
        ("ncmoe=5", "RTX 3090 x2", "several-gpus"),
        ("ncmoe=5", "99x RTX 4090", "several-gpus"),
        ("ncmoe=5", "RTX 3090 + RTX 3090", "several-gpus"),
        ("ncmoe=5", "RTX 3090, RTX 3060", "several-gpus"),
        ("ncmoe=5", "12x RTX 9999", "several-gpus"),
        ("ncmoe=5", "AMD Ryzen AI MAX+ 395 w/ Radeon 8060S", "offload"),
        ("", "AMD Ryzen AI MAX+ 395 w/ Radeon 8060S", "resident/unified"),
        ("", "Arc 140V", "resident/unified"),
        ("", "GH200", "resident"),
        ("ncmoe=5", "srv2 12 GB card", "unnamed-card"),
        ("ncmoe=5", "", "unnamed-card"),
        ("cpu-only", "", "cpu-only"),
        ("cpu-only, 4 of 8 experts", "none", "fewer-experts"),
        ("ngl=99 MTP", "RTX 3090", "speculative"),
        ("LRU cache 2952 slots", "Arc B580", "expert-cache"),
        ("ncmoe=5 np=8", "RTX 3090", "concurrent"),
    ],
)
def test_a_kind_follows_from_setting_and_gpu(setting: str, gpu: str, expected: str) -> None:
    assert kind(setting, gpu).name == expected


@pytest.mark.parametrize("gpu", ["none (CPU only)", "N/A", "CPU", "-", "cpu-only", "None"])
def test_a_row_says_in_many_words_that_it_has_no_gpu(gpu: str) -> None:
    row = Row(gpu=gpu, setting="t=4")
    assert kind_of(row, read_setting("t=4")).name == "cpu-only"
    assert read(row).engine.backend == "CPU"


@pytest.mark.parametrize(
    "gpu",
    ["GH200", "GH200 96GB", "GH200 144GB", "NVIDIA GH200 480GB", "Grace Hopper GH200",
     "Mac Studio M2 Ultra", "MacBook Pro M4 Max", "rtx4090", "4090", "3090", "RTX4070TiSUPER",
     "2080Ti 22GB", "7900XTX", "A10G", "W7900", "K80", "ASUS Ascent GX10", "GB10 DGX Spark 128GB"],
)  # fmt: skip
def test_a_card_of_the_catalogue_is_a_named_card(gpu: str) -> None:
    assert kind("", gpu).counted


@pytest.mark.parametrize("name", DECLINED)
def test_a_kind_that_the_row_names_and_that_is_not_counted_is_declined_with_its_reason(
    name: str,
) -> None:
    declined = kind("ncmoe=5", "RTX 3090", name)
    assert (declined.name, declined.counted) == (name, False)
    assert declined.reason.startswith(f"{name}: ")


def test_the_setting_wins_over_the_rows_own_field_and_the_contradiction_is_noted() -> None:
    derived = kind("ncmoe=5", "RTX 3090", "resident")
    assert derived.name == "offload"
    assert "marked 'resident'" in derived.notes[0]
    assert kind("ncmoe=5", "RTX 3090", "offload").notes == ()


def test_the_rows_own_field_decides_where_the_setting_says_nothing() -> None:
    assert kind("t=4", "RTX 3090", "resident") == Kind("resident")
    assert kind("t=4", "RTX 3090", "cpu-only") == Kind("cpu-only")
    assert "does not say" in kind("t=4", "RTX 3090", "offload").notes[0]
    assert "taken as resident" in kind("t=4", "RTX 3090").notes[0]


def test_a_batch_of_a_counted_kind_is_counted() -> None:
    assert kind("-ngl 99 np=8", "RTX 3090", "resident", batch=8).counted


def test_a_resident_row_that_needs_more_than_the_gpu_has_spills() -> None:
    resident = Kind("resident")
    assert spills(resident, 10e9, 12e9) == resident
    assert spills(resident, 14e9, 12e9).name == "spill"
    assert "14.0 GB are needed" in spills(resident, 14e9, 12e9).notes[0]
    assert spills(Kind("offload"), 14e9, 12e9) == Kind("offload")
    assert kind("-ngl 99", "RTX 3090", "spill").name == "spill"


@pytest.mark.parametrize(
    ("fields", "group"),
    [
        ({"metric": "decode_tok_s"}, "decode"),
        ({"metric": "decode_tok_s", "batch": 2}, "small_batch"),
        ({"metric": "aggregate_decode_tok_s", "batch": 32}, "small_batch"),
        ({"metric": "prefill_tok_s"}, "prefill"),
        ({"metric": "prefill_tok_s", "prompt": 512}, "prefill"),
        ({"metric": "prefill_tok_s", "prompt": 65}, "prefill"),
        ({"metric": "prefill_tok_s", "prompt": 64}, "small_batch"),
        ({"metric": "prefill_tok_s", "prompt": 2}, "small_batch"),
        ({"metric": "prefill_tok_s", "prompt": 1}, "decode"),
        ({"metric": "prefill_tok_s", "prompt": 0}, "prefill"),
        ({"metric": "ttft_ms"}, None),
        ({}, None),
    ],
)
def test_rows_are_scored_in_groups(fields: dict[str, Any], group: str | None) -> None:
    assert group_of(Row(**fields)) == group


WHOLE = {"model": "M", "engine": "llama.cpp", "gpu": "RTX 3090", "setting": "ncmoe=5"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"model": ""}, "no model is named"),
        ({"engine": ""}, "no engine is named"),
        ({"engine": "homemade"}, "engine 'homemade' is not known"),
        ({"metric": "ttft_ms"}, "metric 'ttft_ms' is not predicted"),
        ({"metric": ""}, "no metric is named"),
        ({"setting": "ncmoe=x"}, "setting not understood: 'ncmoe=x'"),
        ({"setting": "", "placement": "offload"}, "does not say what is on the CPU"),
        ({"gpu": "2x RTX 3090"}, "several-gpus: "),
        ({"engine": "llama.cpp ROCm"}, "ROCm does not run on 'RTX 3090'"),
        ({"engine": "llama.cpp ROCm", "setting": "cpu-only"}, ""),
    ],
)
def test_a_reading_says_why_a_row_cannot_be_predicted(changed: dict[str, Any], reason: str) -> None:
    said = read(Row(**({"metric": "decode_tok_s"} | WHOLE | changed))).reason
    assert said == reason or (reason and reason in said)


@pytest.mark.parametrize(
    ("setting", "cpu", "threads"),
    [
        ("t=4", "EPYC, 32 threads", 4),
        ("", "Ryzen 9 7950X, 16 threads", 16),
        ("", "Core Ultra 7 265K -t 16", 16),
        ("", "30 vCPU host, STREAM Triad 93.7 GB/s at 30 threads", 30),
        ("", "EPYC 7773X, 64 cores", None),
        ("", "", None),
    ],
)
def test_threads_are_those_of_the_setting_or_else_of_the_cpu(
    setting: str, cpu: str, threads: int | None
) -> None:
    assert read(Row(setting=setting, cpu=cpu)).threads == threads


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"depth": 512}, "no prompt is given: the depth of 512 tokens is the prompt"),
        ({"depth": 2048}, "the depth of 2048 tokens is the prompt"),
        ({"depth": 2049}, "no prompt is given: 512 tokens are timed"),
        ({"depth": 0}, "no prompt is given: 512 tokens are timed"),
        ({}, "no prompt is given: 512 tokens are timed"),
        ({"prompt": 0, "depth": 512}, "a prompt of 0 tokens is taken as missing: the depth of 512"),
        ({"prompt": 100, "depth": 512}, ""),
        ({"metric": "decode_tok_s", "depth": 512, "prompt": 0}, ""),
    ],
)
def test_a_prompt_that_is_not_given_is_supposed_and_noted(
    fields: dict[str, Any], note: str
) -> None:
    notes = read(Row(**({"metric": "prefill_tok_s"} | WHOLE | fields))).notes
    said = [text for text in notes if "prompt" in text]
    assert len(said) == bool(note)
    assert note in "".join(said)


def test_the_supposed_prompt_is_the_one_that_is_simulated() -> None:
    def rate(**fields: Any) -> float:
        found = predicted(metric="prefill_tok_s", **fields)
        assert isinstance(found, Prediction)
        return found.value

    assert rate(depth=SHORT_DEPTH) == rate(prompt=SHORT_DEPTH)
    assert rate(depth=None, prompt=0) == rate(depth=0, prompt=USUAL_PROMPT)
    assert rate(depth=SHORT_DEPTH + 1) == rate(depth=SHORT_DEPTH + 1, prompt=USUAL_PROMPT)


def test_an_interval_holds_its_prediction() -> None:
    Prediction(2, 1, 3)
    for wrong in ((2, 3, 4), (2, 1, 1.5), (0, 0, 1), (2, 1, float("inf")), (float("nan"), 1, 2)):
        with pytest.raises(ValueError, match="low"):
            Prediction(*wrong)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published rows are not beside this clone")
def test_published_rows_are_of_the_kind_that_they_name() -> None:
    rows = read_rows(PUBLISHED)
    assert len(rows) > 500
    readings = [read(row) for row in rows]
    assert {r.kind.name for r in readings} <= {*COUNTED, *DECLINED}
    assert [r.row.index for r in readings if r.kind.name != r.row.placement] == []
    # A row of one sequence may belong to a study of concurrent ones, which only its author knows.
    alone = [r for r in readings if r.kind.name != "concurrent"]
    assert [r.row.index for r in alone if read_blank(r.row).name != r.kind.name] == []
    assert [r.row.index for r in readings if r.kind.counted and r.reason] == []


def read_blank(row: Row) -> Kind:
    """Return the kind of a row without its field `placement`."""
    from dataclasses import replace

    return read(replace(row, placement="")).kind


def predicted(**fields: Any) -> Prediction | Declined:
    """Return the simulated answer for a row, with some fields changed."""
    whole: dict[str, Any] = {
        "model": "Qwen3-30B-A3B", "quant": "Q4_K_M", "gpu": "RTX 4090", "cpu": "Ryzen 9 7950X",
        "ram": "DDR5-5600", "engine": "llama.cpp CUDA", "setting": "ncmoe=20",
        "metric": "decode_tok_s", "depth": 0,
    }  # fmt: skip
    given = read(Row(**(whole | fields)))
    return Declined(given.reason) if given.reason else Simulated().predict(given)


def test_a_word_of_one_text_that_is_not_understood_changes_no_other_text() -> None:
    plain, said = predicted(), predicted(ram="DDR5-5600, 4")
    assert isinstance(plain, Prediction)
    assert isinstance(said, Prediction)
    assert said.value == plain.value
    assert {*said.notes} - {*plain.notes} == {"not understood: '4'"}
