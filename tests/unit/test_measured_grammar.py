"""The grammar of settings: each form, what is refused, and the published rows."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from moesim.measured.engine_text import read_engine
from moesim.measured.grammar import MOST_CHARACTERS, read_setting
from moesim.measured.places import EXPERTS, Layers, Rule, experts_on_cpu
from moesim.measured.setting import ALL_LAYERS, Setting, placed

PUBLISHED = ROOT.parent / "shared/data/measured/throughput.json"
MOE = range(3, 10)  # of ten layers


def layers(text: str) -> list[int]:
    """Return the layers of a model whose experts a setting leaves on the CPU."""
    setting = read_setting(text)
    assert setting.reason == ""
    return sorted(experts_on_cpu(placed(setting, 10, MOE).on_cpu))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ncmoe=5", [3, 4]),
        ("ncmoe=0", []),
        ("ncmoe=99", [*MOE]),
        ("ncmoe=5/10", [3, 4]),
        ("--n-cpu-moe 5", [3, 4]),
        ("-ncmoe 5", [3, 4]),
        ("n_cpu_moe: 5", [3, 4]),
        ("NCMOE=5", [3, 4]),
        ("--cpu-moe", [*MOE]),
        ("-cmoe", [*MOE]),
        ("exps=CPU", [*MOE]),
        ("-ot exps=CPU", [*MOE]),
        ('-ot "ffn_.*_exps=CPU"', [*MOE]),
        ("-ot '.ffn_.*_exps.=CPU'", [*MOE]),
        ("--override-tensor exps=CPU", [*MOE]),
        ("ffn_.*_exps=CPU", [*MOE]),
        (r'-ot "blk\.(3|[5-6])\.ffn_.*_exps\.=CPU"', [3, 5, 6]),
        (r'-ot "blk\.3\.=CUDA0,exps=CPU"', [4, 5, 6, 7, 8, 9]),
        ('-ot "ffn_(up|down)_exps=CPU"', []),
        ("all experts on CPU", [*MOE]),
        ("all exps on CPU", [*MOE]),
        ("experts offloaded to RAM", [*MOE]),
        ("cpu moe, 8 threads", [*MOE]),
        ("ncmoe=5 of 10 layers", [3, 4]),
        ("n_cpu_moe=5 (of 10)", [3, 4]),
        ("5 layers of experts on CPU", [3, 4]),
        ("2 of 10 MoE layers on GPU", [3, 4, 5, 6, 7]),
        ("layers 0-4 experts on GPU, rest on CPU", [5, 6, 7, 8, 9]),
        ("experts of layers 5-9 on GPU, rest CPU", [3, 4]),
        ("layers 0-4 on GPU, rest CPU", [5, 6, 7, 8, 9]),
        ("4/10 layers offloaded", [3, 4, 5]),
        ("offloaded 4/10 layers to GPU", [3, 4, 5]),
        ("ngl=4 (partial offload)", [3, 4, 5]),
        ("CPU, 8 threads", [*MOE]),
        ("GPU", []),
        ("fits entirely in VRAM", []),
        ("experts in RAM, attention on GPU", [*MOE]),
        ("experts=CPU", [*MOE]),
        ("FFN=CPU", [*MOE]),
        ("experts of last 4 of 10 layers on CPU", [6, 7, 8, 9]),
        ("experts of the first 4 layers on CPU", [3]),
        ("first 2 expert layers on GPU, rest CPU", [5, 6, 7, 8, 9]),
        ("last 2 expert layers on the GPU, the rest on the CPU", [3, 4, 5, 6, 7]),
        ("experts of last 2 layers on GPU, rest CPU", [3, 4, 5, 6, 7]),
        ("FFN of layers 4-9 of 10 on CPU", [4, 5, 6, 7, 8, 9]),
        ("layers 4-9 experts on CPU", [4, 5, 6, 7, 8, 9]),
        ("experts of layers 4 to 6 on CPU", [4, 5, 6]),
        ("layers 4..6 on CPU", [4, 5, 6]),
        ("experts of 5 of 10 layers on CPU", [3, 4]),
        ("ngl=4", [3, 4, 5]),
        ("ngl=4 of 10", [3, 4, 5]),
        ("4/10 layers on GPU", [3, 4, 5]),
        ("4 layers offloaded to GPU", [3, 4, 5]),
        ("-ngl 99", []),
        ("-ngl 99 -ncmoe 5", [3, 4]),
        ("-ngl 4 -ot exps=CPU", [*MOE]),
        ("ngl=0 (whole-layer split)", [*MOE]),
        ("cpu-only", [*MOE]),
        ("CPU only", [*MOE]),
        ("-dev none", [*MOE]),
        ("all resident (-ngl 99)", []),
        ("fully offloaded", []),
        ("full GPU", []),
        ("all layers on GPU", []),
    ],
)
def test_a_form_of_placement_says_whose_experts_are_on_the_cpu(
    text: str, expected: list[int]
) -> None:
    assert layers(text) == expected


@pytest.mark.parametrize(
    ("text", "placement"),
    [
        ("ncmoe=5", "experts"),
        ("ncmoe=0", "gpu"),
        ("-ngl 99 -ncmoe 5", "experts"),
        ("-ncmoe 5 -ngl 99", "experts"),
        ("-ncmoe 5 -ngl 4", "experts"),
        ("ngl=4", "layers"),
        ("ngl=0", "layers"),
        ("ngl=99", "gpu"),
        ("ngl=10 of 10", "gpu"),
        ("-ngl all", "gpu"),
        ("cpu-only -nopo 1", "cpu"),
        ("resident unified fa=0", "gpu"),
        ("first 2 expert layers on GPU, rest CPU", "experts"),
        ("first 2 layers on GPU, rest CPU", "layers"),
        ("-ngl 99 -ot blk.1=CUDA0", "gpu"),
        ("-ngl 99 -ot token_embd=CPU", "gpu"),
        ("-ngl 99 -ot attn_q=CPU", "experts"),
        ('-ngl 99 -ot "blk.4.ffn_up.weight=CPU"', "experts"),
        ("ub=512", ""),
        ("", ""),
    ],
)
def test_the_placement_of_a_setting_is_named(text: str, placement: str) -> None:
    assert read_setting(text).placement == placement


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("ub=2048", {"ubatch": 2048}),
        ("-ub 4096 -b 2k", {"ubatch": 4096, "batch": 2048}),
        ("kv=q8_0", {"kv_keys": "q8_0", "kv_values": "q8_0"}),
        ("kv=q8_0/q4_0", {"kv_keys": "q8_0", "kv_values": "q4_0"}),
        ("ub 512", {"ubatch": 512}),
        ("16k context", {"context": 16384}),
        ("numactl --interleave=all", {"numa": "interleave"}),
        ("batch size 8", {"sequences": 8}),
        ("bs=8", {"sequences": 8}),
        ("batch=2048", {"batch": 2048}),
        ("--fit off, no prompt cache, MTP disabled", {}),
        ("KV q8", {"kv_keys": "q8_0", "kv_values": "q8_0"}),
        ("-ctk q8_0 -ctv f16", {"kv_keys": "q8_0", "kv_values": "f16"}),
        ("t=6", {"threads": 6}),
        ("--threads 16", {"threads": 16}),
        ("16 threads", {"threads": 16}),
        ("c=65536", {"context": 65536}),
        ("-c 32k", {"context": 32768}),
        ("np=1", {"sequences": 1}),
        ("fa=0", {"flash_attention": False}),
        ("-fa on", {"flash_attention": True}),
        ("fa off", {"flash_attention": False}),
        ("flash attention on", {"flash_attention": True}),
        ("-fa", {"flash_attention": True}),
        ("fa1", {"flash_attention": True}),
        ("no flash attention", {"flash_attention": False}),
        ("-nopo 1", {"op_offload": False}),
        ("--no-op-offload", {"op_offload": False}),
        ("rtr fmoe", {"repack": True, "fused_moe": True}),
        ("-rtr -fmoe 0", {"repack": True, "fused_moe": False}),
        ("mla", {"mla": 1}),
        ("-mla 3", {"mla": 3}),
        ("numa distribute", {"numa": "distribute"}),
        ("--numa=isolate", {"numa": "isolate"}),
        ("one socket", {"sockets": 1}),
        ("-nkvo", {"kv_on_cpu": True}),
        ("unified", {"unified": True}),
        ("(VRAM 18.5G)", {"vram_bytes": 18_500_000_000}),
        ("VRAM 2 GiB", {"vram_bytes": 2 << 30}),
        ("ngl=20 of 48", {"placement": "layers", "gpu_layers": 20, "model_layers": 48}),
        ("-ngl -1", {"placement": "gpu", "gpu_layers": ALL_LAYERS}),
        ("tp=2", {"gpus": 2, "declining": "several-gpus"}),
        ("--no-mmap -mmp 0 --jinja -r 5 pp512 tg128 --seed 1", {}),
    ],
)
def test_an_option_sets_its_fields_and_no_other(text: str, fields: dict[str, Any]) -> None:
    assert read_setting(text) == Setting(**fields)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cpu-only, 4 of 8 experts (-ser 4,1)", "fewer-experts"),
        ("-ser 6,1", "fewer-experts"),
        ("8 of 8 experts", ""),
        ("speculative decoding", "speculative"),
        ("exps=CPU -md draft.gguf --draft-max 4", "speculative"),
        ("ngl=99, no draft model", ""),
        ("MTP", "speculative"),
        ("MTP=off", ""),
        ("LRU cache 2952 slots, 0.75 of misses computed on the CPU", "expert-cache"),
        ("expert cache stream-only, 4.3 % resident", "expert-cache"),
        ("static split, same slots/layer budget", "expert-cache"),
        ("-ts 1,1", "several-gpus"),
        ("-ts 1,0", ""),
        ("-ot blk.1=CUDA1", "several-gpus"),
        ("-ot blk.1=CUDA0", ""),
        ("2 GPUs", "several-gpus"),
        ("-dev CUDA0,CUDA1", "several-gpus"),
        ("np=32", "concurrent"),
        ("8 concurrent users", "concurrent"),
    ],
)
def test_a_kind_that_is_not_counted_is_named(text: str, kind: str) -> None:
    assert read_setting(text).declining == kind


@pytest.mark.parametrize(
    "text",
    [
        "ncmoe=-3",
        "ncmoe=99999999999999999999",
        "ncmoe=3.5",
        "ncmoe=many",
        "kv=q9_9",
        "backend=CPU",
        "expert offload",
        "--cpu-offload-gb 10",
        "-ot (=CPU",
        '-ot "(?=exps)=CPU"',
        "-ot",
        "-x 3",
        "ngl=auto",
        "x" * (MOST_CHARACTERS + 1),
        "-ot " + "a" * 1500 + "=CPU",
    ],
)
def test_what_could_change_the_time_and_is_not_understood_is_a_reason(text: str) -> None:
    setting = read_setting(f"ncmoe=1 {text}")
    assert setting.reason
    assert "not understood" in setting.reason or "at most" in setting.reason


def test_a_word_that_cannot_change_the_placement_is_noted() -> None:
    setting = read_setting("exps=CPU, on my old board, t=8")
    assert (setting.reason, setting.threads) == ("", 8)
    assert setting.unknown == ("on my old board",)
    assert setting.notes == ("not understood, left out: 'on my old board'",)


def test_a_setting_that_says_two_things_notes_it() -> None:
    setting = read_setting("t=4 t=8")
    assert setting.threads == 8
    assert "threads is 4 first" in setting.notes[0]


def test_layers_of_which_it_is_not_said_which_are_noted() -> None:
    assert "taken as the first 5" in read_setting("experts of 5 layers on CPU").notes[0]
    assert "approximate" in read_setting("FFN of about layers 1-5 on CPU").notes[0]


def test_the_output_head_is_the_first_or_the_last_layer_that_moves() -> None:
    setting = read_setting("ngl=4")
    new, old = (placed(setting, 10, MOE, output_first=first) for first in (True, False))
    assert ("attn_q" in new.on_cpu[6], "attn_q" in old.on_cpu[6]) == (True, False)
    assert (new.output_on_cpu, old.output_on_cpu) == (False, True)
    assert placed(read_setting("ngl=0"), 10, MOE, output_first=True).output_on_cpu
    assert not placed(read_setting("ngl=11"), 10, MOE).output_on_cpu
    assert placed(read_setting("cpu-only"), 10, MOE).output_on_cpu


def test_rules_keep_the_order_of_the_text() -> None:
    keep, move = read_setting("-ot blk.1=CUDA0 -ot exps=CPU").rules
    assert (keep, move) == (Rule(pattern="blk.1", cpu=False), Rule(pattern="exps"))


def test_only_experts_leave_the_gpu_with_ncmoe() -> None:
    assert read_setting("ncmoe=5").rules == (Rule(Layers("first", 5)),)
    assert placed(read_setting("ncmoe=5"), 10, MOE).on_cpu[3] == set(EXPERTS)


def test_long_texts_of_separators_and_brackets_end() -> None:
    for part in (
        "(" * 1900,
        "=" * 1900,
        "ncmoe=" * 300,
        "-ot " * 400,
        "a=" * 900,
        "first 1 " * 200,
    ):
        read_setting(part)


WORDS = ["ncmoe", "-ngl", "-ot", "exps=CPU", "blk.1=CPU", "=", " ", ",", "(", "first", "layers"]
WORDS += ["on", "GPU", "rest", "CPU", "12", "1-5", "of", "kv=", "q8_0", "VRAM", "\x00", "\ud800"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_any_text_is_read_or_gives_a_reason(text: str) -> None:
    setting = read_setting(text)
    assert not (setting.reason and not setting.unknown and "pattern" not in setting.reason)
    read_engine(text, text)
    placed(setting, 10, MOE)


def documented() -> list[str]:
    """Return the forms of the tables of settings in the documentation, with numbers filled in."""
    text = (ROOT / "docs/measured.md").read_text().partition("## Settings")[2]
    rows = [line for line in text.partition("## Engines")[0].splitlines() if line[:3] == "| `"]
    forms = [form for row in rows for form in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    filled = [re.sub(r"PATTERN", "exps", form) for form in forms]
    values = {"N": "4", "M": "10", "A": "4", "B": "9"}
    return [re.sub(r"\b([NMAB])\b", lambda match: values[match[1]], form) for form in filled]


def test_every_form_of_the_documentation_is_understood() -> None:
    forms = [form for form in documented() if not form.endswith("=")]
    assert len(forms) > 40
    assert [form for form in forms if read_setting(form).unknown] == []
    options = [form for form in documented() if form.endswith("=")]
    values = {"kv=": "f16", "ctk=": "f16", "ctv=": "f16"}
    filled = [option + values.get(option, "4") for option in options]
    assert [form for form in filled if read_setting(form).unknown] == []


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published rows are not beside this clone")
def test_every_published_setting_is_understood_or_of_a_kind_that_is_not_counted() -> None:
    settings = {row["setting"]: row["placement"] for row in json.loads(PUBLISHED.read_text())}
    assert len(settings) > 50
    left_over = {
        text: setting.unknown
        for text, placement in settings.items()
        if (setting := read_setting(text)).unknown and placement != "expert-cache"
    }
    assert left_over == {}
    assert [text for text in settings if read_setting(text).reason] == []
