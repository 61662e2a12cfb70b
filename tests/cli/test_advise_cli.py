"""`moesim advise`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from workloads import TINY_CONFIG

from moesim.advice.own_card import with_own_card
from moesim.advice.question import Parts
from moesim.cli import app
from moesim.errors import MoesimError, UsageError

SMALL = ["olmoe-1b-7b", "--format", "Q4_K_M"]
DENSE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["advise", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def plain(*arguments: str) -> Any:
    return json.loads(printed(*arguments, "--json"))


def refused(*arguments: str) -> str:
    """Return the message of a question that is refused, which ends with exit code 2."""
    done = CliRunner().invoke(app, ["advise", *arguments])
    if isinstance(done.exception, MoesimError):  # `main` prints it and ends with this code
        assert done.exception.exit_code == 2
        return str(done.exception)
    assert done.exit_code == 2, (done.output, done.exception)
    return " ".join(done.stderr.replace("│", " ").split())


def test_the_answer_names_a_choice_its_flags_and_what_limits_it() -> None:
    text = printed(*SMALL, "--gpu", "rtx-3060-12gb", "--vram", "3GB", "--explain")
    assert text.startswith("olmoe-1b-7b on rtx-3060-12gb")
    assert "goal chat" in text
    assert "assumed: the processor has 6 cores" in text
    assert "▲" in text
    assert "--n-cpu-moe" in text
    assert "limited by: " in text
    assert "memory holds contexts of up to " in text
    assert "what would help most" in text
    assert "what the answer rests on" in text
    assert "a step that decodes" in text
    assert "a step that decodes" not in printed(*SMALL)


def test_an_answer_without_a_useful_upgrade_says_so() -> None:
    text = printed("gpt-oss-20b", "--gpu", "strix-halo")
    assert "none of the upgrades that are tried saves time" in text
    assert "tokens and more" in text


def test_json_has_the_recommended_speed_its_interval_and_flags() -> None:
    best = plain(*SMALL, "--gpu", "rtx-3060-12gb")["recommended"]
    assert best["low"] < best["decode_tok_s"] < best["high"]
    assert best["flags"]["llama.cpp"].startswith("-c 8192 -ngl 999 ")
    assert sum(best["gpu_bytes"].values()) + best["gpu_left_bytes"] == 12 * 2**30


def test_json_has_what_the_tables_have() -> None:
    asked = (*SMALL, "--gpu", "rtx-3060-12gb", "--vram", "3GB")
    document = plain(*asked)
    step_ms = 1000 / document["recommended"]["decode_tok_s"]
    assert sum(term["ms"] for term in document["terms"]) == pytest.approx(step_ms)
    text = printed(*asked)
    assert document["upgrades"]
    for each in document["upgrades"]:
        assert each["saves"]["low"] < each["saves"]["value"] < each["saves"]["high"]
        assert f"{each['name']} " in text
    assert f"{document['cliff']['longest_context']:,} tokens" in text
    cached = document["expert_cache"]
    assert f"slots for {cached['slots_per_layer']} of {cached['experts_per_layer']} exp" in text
    assert cached["hit_rate_source"] in text
    for line in document["grounds"]["assumed"]:
        assert line in text


def test_a_hyphen_of_a_link_is_a_blank() -> None:
    asked = ("--gpu", "rtx-3060-12gb", "--vram", "3GB", "--format", "Q8_0")
    assert (
        plain("olmoe-1b-7b", *asked, "--pcie", "3.0-x4")["recommended"]
        == (plain("olmoe-1b-7b", *asked, "--pcie", "PCIe 3.0 x4")["recommended"])
    )


# A card of one's own


def test_three_numbers_describe_a_card_that_is_not_in_the_catalogue() -> None:
    numbers = ("--vram", "12GB", "--gpu-bandwidth", "360GB/s", "--gpu-tflops", "51.2")
    text = printed(*SMALL, "--gpu", "rtx-9999", *numbers)
    assert text.startswith("olmoe-1b-7b on rtx-9999")
    assert "assumed: overheads of rtx-9999 are those of rtx-4070" in text
    known = plain(*SMALL, "--gpu", "rtx-3060-12gb")["recommended"]
    own = plain(*SMALL, "--gpu", "rtx-9999", *numbers)["recommended"]
    assert own["gpu_bytes"] == known["gpu_bytes"]
    assert own["decode_tok_s"] == pytest.approx(known["decode_tok_s"], rel=0.05)


@pytest.mark.parametrize(
    ("name", "similar"),
    [("rtx-9999", "rtx-4070"), ("RX 9999", "rx-7900-xtx"), ("Arc Z9", "arc-b580"), ("none", "")],
)
def test_other_figures_are_those_of_a_card_of_the_same_vendor(name: str, similar: str) -> None:
    parts = with_own_card(Parts(name), "16GB", "600", "80TFLOPS")
    assert parts.gpu == (similar or "rtx-4070")
    assert parts.own_card == ("your card" if name == "none" else name)
    hardware = parts.machine().hardware
    assert hardware.vram_bytes == 16 * 2**30
    assert hardware.memory_bytes_per_s == 600 * 10**9
    assert hardware.flops_per_s == 80 * 10**12


def test_a_number_replaces_that_of_a_card_of_the_catalogue() -> None:
    parts = with_own_card(Parts("rtx-3060-12gb"), "", "300GB/s", "")
    assert not parts.own_card
    assert parts.machine().hardware.memory_bytes_per_s == 300 * 10**9
    assert parts.machine().hardware.vram_bytes == 12 * 2**30


def test_an_unknown_card_needs_all_three_numbers() -> None:
    with pytest.raises(UsageError, match="--vram 16GB --gpu-bandwidth 600GB/s --gpu-tflops 80"):
        with_own_card(Parts("rtx-9999"), "16GB", "", "80")


@pytest.mark.parametrize("text", ["-1", "0", "lots", "16 TB", "1e9", "9" * 12, "nan"])
def test_another_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--vram .*write a number above 0, like 16GB"):
        with_own_card(Parts("rtx-3090"), text, "", "")


def test_another_engine_has_its_own_speed_and_formats() -> None:
    asked = ("--gpu", "rtx-3060-12gb", "--vram", "3GB", "--format")
    speeds = {
        engine: plain("olmoe-1b-7b", *asked, "Q4_K_M", "--engine", engine)["recommended"]
        for engine in ("llama.cpp", "ik_llama.cpp")
    }
    assert len({speed["decode_tok_s"] for speed in speeds.values()}) == 2
    assert all(speed["engine"] == engine for engine, speed in speeds.items())
    best = plain("olmoe-1b-7b", *asked, "IQ4_KS", "--engine", "ik_llama.cpp")["recommended"]
    assert best["format"] == "IQ4_KS"
    assert "ik_llama.cpp" in best["flags"]
    assert "only ik_llama.cpp reads it" in best["left_out"]["llama.cpp"]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "rtx-3061-12gb"], "did you mean 'rtx-3060-12gb'.*three numbers.*--vram"),
        (["--vram", "12GB"], "no card is named: name one with --gpu, or describe .*--gpu-tflops"),
        (["--gpu", ""], "no graphics card .* is called ''"),
        (["--cpu", "frob-9000"], "no processor .* is called 'frob-9000'"),
        (["--ram", "32GB-flurb"], "'flurb' is not understood"),
        (["--ram", "-3GB"], "negative"),
        (["--gpu", "2x RTX 3090"], "are 2 GPUs: .*which layers each holds.*ask for one"),
        (["--gpu", "RTX 3090 + RTX 3060"], "are 2 GPUs"),
        (["--gpu", "rtx-3090", "--pcie", "fast"], "'fast' is not understood"),
        (["--pcie", "4.0-x16"], "--pcie '4.0-x16': a card that is not there has no link"),
        (["--gpu", "strix-halo", "--pcie", "4.0"], "shares the processor's memory has no link"),
        (["--gpu", "x" * 10_000], "a text of 10000 characters; at most 200"),
        (["--gpu", "\x1b[31m"], r"is called '31m'"),
        (["--context", "16m"], "--context '16m': write a number of tokens"),
        (["--context", "400"], "an answer of --goal chat has 400 tokens, which leave none"),
        (["--load", "0"], "--load"),
        (["--goal", "art"], "--goal"),
        (["--format", "AWQ-4bit"], "--format AWQ-4bit: no GGUF file has it"),
        (["--format", "IQ4_KS"], r"only ik_llama.cpp reads it \(--engine ik_llama.cpp\)"),
        (["--format", "Q9"], "--format 'Q9': no format of weights is called 'Q9'"),
    ],
)
def test_a_wrong_option_is_refused(arguments: list[str], message: str) -> None:
    assert matches(message, refused("olmoe-1b-7b", *arguments))


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None or pytest.fail(text)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("olmo-1b-7b", "did you mean 'olmoe-1b-7b'"),
        ("/absent/config.json", "cannot be read: No such file"),
        ("/absent/model.gguf", "cannot be read: No such file"),
        ("x" * 10_000, "cannot be a path: File name too long"),
        ("\0", "no model shape is called"),
    ],
)
def test_an_absent_model_is_refused(model: str, message: str) -> None:
    assert matches(message, refused(model))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", json.dumps(DENSE), "is a dense model"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "must hold a JSON object"),
        ("config.json", "{}", "lacks"),
        ("m.gguf", "", "cut off or damaged"),
        ("m.gguf", "GGUF\x03\0\0\0", "cut off or damaged"),
    ],
)
def test_a_file_of_no_such_model_is_refused(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    if name.endswith(".gguf"):
        pytest.importorskip("gguf")
    (tmp_path / name).write_text(content)
    assert matches(message, refused(str(tmp_path / name)))


def test_a_folder_stands_for_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    asked = ("--gpu", "rtx-3060-12gb", "--format", "Q8_0")
    folder, file = (plain(str(path), *asked) for path in (tmp_path, tmp_path / "config.json"))
    assert folder == file


def test_a_context_beyond_that_of_the_model_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    asked = (str(path), "--gpu", "rtx-3060-12gb", "--format", "Q8_0", "--context", "8k")
    notes = []
    for longest in (4096, 8192):
        path.write_text(json.dumps({**TINY_CONFIG, "max_position_embeddings": longest}))
        notes.append(" ".join(plain(*asked)["grounds"]["assumed"]))
    assert "the model was made for 4,096" in notes[0]
    assert "was made for" not in notes[1]
    assert "the model takes contexts of 8,192" in " ".join(plain(*SMALL)["grounds"]["assumed"])


@pytest.mark.parametrize("experts", [True, False])
def test_a_damaged_or_dense_gguf_file_is_refused(experts: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write_gguf(path, experts=experts)
    if experts:
        whole = plain(str(path), "--gpu", "rtx-3060-12gb", "--context", "2k")["recommended"]
        assert whole["format"] is None
        path.write_bytes(path.read_bytes()[:300])
        assert "cut off or damaged" in refused(str(path))
    else:
        assert "is a dense model" in refused(str(path))


def _write_gguf(path: Path, *, experts: bool) -> None:
    """Write a file of two layers, with or without routed experts."""
    gguf = pytest.importorskip("gguf", reason="gguf is in the gguf extra")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(256)
    writer.add_head_count(4)
    names: dict[str, tuple[int, ...]] = {
        "attn_q": (256, 256),
        "attn_k": (128, 256),
        "attn_v": (128, 256),
    }
    if experts:
        writer.add_expert_used_count(2)
        names |= {f"ffn_{part}_exps": (4, 512, 256) for part in ("gate", "up")}
        names["ffn_down_exps"] = (4, 256, 512)
    else:
        names |= {"ffn_up": (512, 256), "ffn_gate": (512, 256), "ffn_down": (256, 512)}
    tensors = {f"blk.{layer}.{name}": size for layer in range(2) for name, size in names.items()}
    for name, size in {"token_embd": (256, 256), "output": (256, 256), **tensors}.items():
        writer.add_tensor(f"{name}.weight", np.zeros(size, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_of_one_format_is_compared_in_no_other() -> None:
    message = refused("gpt-oss-20b", "--format", "Q4_K_M")
    assert "--format 'Q4_K_M': gpt-oss-20b has one format" in message


def test_a_model_that_fits_nowhere_is_refused_with_what_is_missing() -> None:
    message = refused("deepseek-v3", "--gpu", "rtx-3060-12gb", "--ram", "4GB-ddr4-3200-2ch")
    assert matches(r"does not fit: the smallest choice in Q2_K needs .* GiB of host", message)
    assert "GiB are missing" in message
