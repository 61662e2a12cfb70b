"""Advice: memory, choices, the front, and prices, each against another way to get them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from advice_questions import question
from hypothesis import given
from hypothesis import strategies as st

from moesim.advice.advice import Advice, advise, front_of, recommended
from moesim.advice.choice import (
    UBATCHES,
    Choice,
    choices,
    fewest_on_cpu,
    formats_of,
    memory_of,
)
from moesim.advice.flags import flags_of, left_out
from moesim.advice.grounds import grounds_of
from moesim.advice.heading import heading
from moesim.advice.price import Priced, Pricer, Span
from moesim.advice.question import GOALS, Model, Parts, Question, tokens_of
from moesim.advice.tables import cliff_lines
from moesim.advice.terms import OVERLAP, terms_of
from moesim.advice.upgrades import Cliff, cliff_of, upgrades
from moesim.errors import UsageError
from moesim.measured.answers import answer_rows
from moesim.measured.grammar import read_setting
from moesim.measured.places import experts_on_cpu
from moesim.measured.predict import Prediction
from moesim.measured.rows import Measured, Row
from moesim.measured.setting import placed
from moesim.measured.simulated import Simulated

FORMATS = ("Q8_0", "Q4_K_M")


@dataclass(frozen=True)
class Given:
    """An advice with the pricer that made it."""

    pricer: Pricer
    advice: Advice


@cache
def given_advice() -> Given:
    asked = question(formats=FORMATS)
    pricer = Pricer(asked)
    return Given(pricer, advise(asked, pricer))


# Memory


@pytest.mark.parametrize("layers", [0, 3, 16])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_all_weights_are_in_one_memory_or_the_other(layers: int, kv: str) -> None:
    asked = question()
    shape = asked.model.stored("Q4_K_M", kv)
    memory = memory_of(asked, Choice("llama.cpp", "Q4_K_M", layers, kv=kv))
    parts = [each[name] for each in (memory.gpu, memory.host) for name in ("weights", "experts")]
    assert sum(parts) == shape.layers_bytes(range(shape.num_layers + 1)) + sum(shape.sizes())
    assert memory.host["experts"] == layers * shape.num_experts * shape.expert_bytes


def test_what_is_left_and_used_are_what_there_is() -> None:
    memory = memory_of(question(), Choice("llama.cpp", "Q4_K_M", 12))
    assert memory.gpu_left + sum(memory.gpu.values()) == memory.gpu_has == 3 * 10**9
    assert memory.host_left is not None
    assert memory.host_left + sum(memory.host.values()) == memory.host_has == 32 * 2**30


def test_a_model_that_runs_on_the_cpu_takes_no_gpu_memory() -> None:
    memory = memory_of(question(), Choice("llama.cpp", "Q4_K_M", 16, whole=True))
    assert memory.gpu_bytes == 0
    assert memory.host["KV cache"] > 0


def test_the_kv_cache_has_room_for_every_sequence() -> None:
    choice = Choice("llama.cpp", "Q4_K_M", 16)
    one, four = (memory_of(question(load=load), choice).gpu["KV cache"] for load in (1, 4))
    shape = question().model.stored("Q4_K_M", "f16")
    assert one == 8192 * shape.kv_bytes_per_token
    assert four == 4 * one


def test_a_layer_with_a_window_keeps_the_window_and_a_batch_alone() -> None:
    asked = question(model="gpt-oss-20b", vram=None)
    shape = asked.model.stored("", "f16")
    windows = [kind.window for kind in shape.all_kinds()]
    assert 0 < sum(1 for window in windows if window) < len(windows)
    expected = sum(
        min(8192, window + 512 if window else 8192) * shape.kv_bytes_of(layer)
        for layer, window in enumerate(windows)
    )
    assert memory_of(asked, Choice("llama.cpp", "")).gpu["KV cache"] == expected


@given(
    vram=st.integers(1, 24).map(lambda giga: giga * 10**9),
    form=st.sampled_from(["Q8_0", "Q4_K_M", "Q2_K"]),
    kv=st.sampled_from(["f16", "q8_0"]),
    ubatch=st.sampled_from(UBATCHES),
)
def test_the_fewest_layers_on_the_cpu_are_those_of_a_linear_scan(
    vram: int, form: str, kv: str, ubatch: int
) -> None:
    asked = question(vram=vram)
    choice = Choice("llama.cpp", form, ubatch=ubatch, kv=kv)
    fitting = [
        layers
        for layers in range(17)
        if memory_of(asked, replace(choice, cpu_layers=layers)).gpu_left >= 0
    ]
    assert fewest_on_cpu(asked, choice) == min(fitting, default=None)


@given(layers=st.integers(1, 15), kv=st.sampled_from(["f16", "q8_0"]))
def test_another_layer_on_the_cpu_never_takes_more_gpu_memory(layers: int, kv: str) -> None:
    asked = question()
    before, after = (
        memory_of(asked, Choice("llama.cpp", "Q4_K_M", number, kv=kv)).gpu_bytes
        for number in (layers, layers + 1)
    )
    assert after < before


def test_every_choice_fits_the_gpu() -> None:
    asked = question()
    every = list(choices(asked))
    assert {choice.format for choice in every} == set(formats_of(asked))
    assert all(memory_of(asked, choice).gpu_left >= 0 for choice in every)


def test_without_a_gpu_everything_is_on_the_cpu() -> None:
    every = list(choices(question(gpu="none", vram=None)))
    assert every
    assert all(choice.whole for choice in every)


# The front and the recommended choice

NUMBERS = st.sampled_from([1.0, 1.001, 1.5, 2.0, 3.0])


def stand_in(bits: float, kv: str, decode: float, prefill: float) -> Priced:
    def span(value: float) -> Span:
        return Span(value, value / 1.4, value * 1.4)

    choice = Choice("llama.cpp", f"of {bits} bits", kv=kv)
    memory: Any = SimpleNamespace()
    return Priced(choice, memory, span(decode), span(prefill), bits, 512, 400)


PRICED = st.lists(
    st.builds(
        stand_in, st.sampled_from([2.9, 4.8, 6.6, 8.5]), st.sampled_from(["f16", "q8_0"]),
        NUMBERS.map(lambda x: 20 * x), NUMBERS.map(lambda x: 300 * x),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


def beaten(one: Priced, by: Priced) -> bool:
    """Return whether all four figures of `by` are as good and one is better, by half a per cent."""
    figures = [
        (each.bits, 16 if each.choice.kv == "f16" else 8, each.decode.value, each.prefill.value)
        for each in (by, one)
    ]
    pairs = list(zip(*figures, strict=True))
    as_good = [theirs > ours or (ours - theirs) / ours <= 0.005 for theirs, ours in pairs]
    better = [(theirs - ours) / ours > 0.005 for theirs, ours in pairs]
    return all(as_good) and any(better)


@given(PRICED)
def test_the_front_is_what_no_other_choice_beats(priced: list[Priced]) -> None:
    expected = []
    for one in priced:
        if not any(beaten(one, other) for other in priced):
            expected.append(one)
    front = front_of(priced)
    assert sorted(map(id, front)) == sorted(map(id, expected))
    assert front
    assert [one.bits for one in front] == sorted((one.bits for one in front), reverse=True)


@given(PRICED)
def test_recommended_is_the_most_exact_of_the_fast_ones(priced: list[Priced]) -> None:
    best = recommended(priced)
    good = [one for one in priced if one.bits >= 4]
    if not good:
        assert best.bits == max(one.bits for one in priced)
        return
    fastest = min(one.request_s.value for one in good)
    assert best.bits >= 4
    assert best.request_s.value <= 1.1 * fastest
    assert not any(one.bits > best.bits and one.request_s.value <= 1.1 * fastest for one in good)


# Prices


def measured_row(asked: Question, choice: Choice, **fields: Any) -> Row:
    """Return the row that a person would write about a choice of `question`."""
    where = f"ncmoe={choice.cpu_layers}" if choice.cpu_layers else "resident"
    where = "cpu-only" if choice.whole else where
    return Row(
        model=asked.model.name, quant=choice.format,
        gpu="none" if choice.whole else asked.parts.gpu, cpu=asked.parts.cpu, ram=asked.parts.ram,
        engine=choice.engine,
        setting=f"{where} ub={choice.ubatch} ctk={choice.kv} ctv={choice.kv} fa=1", **fields,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_speeds_are_those_that_measured_predicts_for_the_same_row(form: str) -> None:
    asked = question(vram=None, formats=(form,))
    one = advise(asked).best
    answers = answer_rows(
        [
            Measured(measured_row(asked, one.choice, metric="decode_tok_s", depth=8191), None),
            Measured(
                measured_row(
                    asked, one.choice, metric="prefill_tok_s", prompt=one.choice.ubatch,
                    depth=(8192 - 400 - one.choice.ubatch) // 2,
                ),
                None,
            ),
        ],
        Simulated().predict,
    )  # fmt: skip
    for span, answer in zip((one.decode, one.prefill), answers, strict=True):
        assert answer.prediction is not None, answer.reason
        assert span == Span.of(answer.prediction)


def test_speeds_of_given_figures_are_those_of_rows_with_the_same_overrides() -> None:
    asked = question()
    choice = Choice("llama.cpp", "Q4_K_M", 12)
    answer = Pricer(asked).decode(choice)
    row = measured_row(asked, choice, metric="decode_tok_s", depth=8191)
    (again,) = answer_rows([Measured(row, None)], Simulated(overrides={"vram": 3 * 10**9}).predict)
    assert isinstance(answer, Prediction)
    assert again.prediction is not None
    assert (answer.value, answer.low, answer.high) == (
        again.prediction.value,
        again.prediction.low,
        again.prediction.high,
    )


def test_each_sequence_gets_its_share_of_the_rate() -> None:
    asked = question(load=4, formats=("Q4_K_M",))
    pricer = Pricer(asked)
    one = advise(asked, pricer).best
    together = pricer.decode(one.choice)
    assert isinstance(together, Prediction)
    assert one.decode.value == together.value / 4


def test_the_first_token_waits_for_the_prompt_and_a_request_for_both() -> None:
    one = given_advice().advice.best
    assert one.first_token_s.value == 512 / one.prefill.value
    assert one.request_s.value == 512 / one.prefill.value + 400 / one.decode.value
    assert one.request_s.high == pytest.approx(512 / one.prefill.low + 400 / one.decode.low)
    assert one.request_s.low == pytest.approx(512 / one.prefill.high + 400 / one.decode.high)
    for span in (one.decode, one.prefill, one.first_token_s, one.request_s):
        assert 0 < span.low < span.value < span.high


def test_terms_sum_to_the_step() -> None:
    made = given_advice()
    for one in made.advice.front:
        terms = made.pricer.terms(one.choice)
        step_ms = 1000 / one.decode.value
        assert sum(term.ms for term in terms) == pytest.approx(step_ms, rel=1e-9)
        assert sum(term.share for term in terms) == pytest.approx(1)


@pytest.mark.parametrize("goal", ["chat", "agent", "rag"])
def test_what_is_left_out_is_slower_than_one_as_exact_or_by_a_tenth(goal: Any) -> None:
    asked = question(formats=FORMATS, goal=goal)
    short, thorough = advise(asked), advise(asked, thorough=True)
    assert len(short.priced) < len(thorough.priced)
    assert all(one in thorough.priced for one in short.priced)
    assert short.best == thorough.best
    assert short.by_format() == thorough.by_format()
    for one in thorough.priced:
        if one in short.priced:
            continue
        same = [other for other in short.priced if other.choice.format == one.choice.format]
        assert any(
            one.request_s.value > (1 if one.choice.kv == other.choice.kv else 1.1) * time_s
            for other in same
            for time_s in [other.request_s.value]
        )


def test_a_prompt_shorter_than_a_batch_takes_the_time_of_such_a_step() -> None:
    asked = question(formats=("Q4_K_M",))
    pricer = Pricer(asked)
    choice = Choice("llama.cpp", "Q4_K_M", 16, ubatch=2048)
    priced = pricer.price(choice)
    assert isinstance(priced, Priced)
    small = pricer.price(replace(choice, ubatch=512))
    assert isinstance(small, Priced)
    assert priced.first_token_s == small.first_token_s
    assert priced.prefill.value > small.prefill.value
    assert priced.first_token_s.value > 512 / priced.prefill.value


def test_work_that_overlaps_is_taken_off_and_waiting_is_a_term() -> None:
    lanes = [("gpu", "experts", 0, 70), ("cpu", "experts", 20, 90)]
    for stepping, name, rest in ((90, OVERLAP, -50), (150, "waiting for the host", 10)):
        ledger: Any = SimpleNamespace(timeline=lanes, stepping_ns=stepping * 10**6, num_steps=2)
        ledger.timeline = [(*lane[:2], lane[2] * 10**6, lane[3] * 10**6, 0) for lane in lanes]
        terms = {term.name: term for term in terms_of(ledger)}
        assert terms["experts on the GPU"].ms == 35
        assert terms[name].ms == rest / 2
        assert sum(term.ms for term in terms.values()) == stepping / 2
        assert sum(term.share for term in terms.values()) == pytest.approx(1)


# Flags


@pytest.mark.parametrize(
    ("choice", "load"),
    [
        (Choice("llama.cpp", "Q4_K_M", 12, ubatch=2048, kv="q8_0"), 1),
        (Choice("llama.cpp", "Q4_K_M", 16), 4),
        (Choice("llama.cpp", "Q4_K_M"), 1),
        (Choice("llama.cpp", "Q4_K_M", 16, whole=True), 1),
    ],
)
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
@pytest.mark.parametrize("model", ["olmoe-1b-7b", "deepseek-v2-lite"])
def test_flags_say_the_choice_again(choice: Choice, load: int, engine: str, model: str) -> None:
    asked = question(model=model, load=load)
    shape = asked.model.shape
    layers = min(choice.cpu_layers, len(shape.moe_layers))
    choice = replace(choice, cpu_layers=layers)
    setting = read_setting(flags_of(asked, choice)[engine])
    assert not setting.reason
    assert not setting.unknown
    assert (setting.ubatch, setting.context) == (choice.ubatch, 8192 * load)
    assert setting.kv_keys == setting.kv_values == ("" if choice.kv == "f16" else choice.kv)
    assert setting.sequences == (load if load > 1 else None)
    assert setting.flash_attention is True
    where = placed(setting, shape.num_layers, shape.moe_layers)
    if choice.whole:
        assert where.output_on_cpu
        assert experts_on_cpu(where.on_cpu) == set(shape.moe_layers)
    else:
        assert not where.output_on_cpu
        assert experts_on_cpu(where.on_cpu) == set(shape.moe_layers[:layers])


def named(text: str) -> dict[str, str]:
    words = text.split()
    return {words[i]: words[i + 1] for i in range(0, len(words), 2)}


def test_ktransformers_gets_flags_with_experts_on_the_cpu_of_a_roomy_card() -> None:
    choice = Choice("llama.cpp", "Q4_K_M", 16, ubatch=2048)
    asked = question(model="qwen3-30b-a3b", load=2, cpu="2x EPYC 7773X", vram=None)
    flags = named(flags_of(asked, choice)["KTransformers"])
    assert flags["--max-total-tokens"] == str(2 * 8192)
    assert flags["--max-running-requests"] == "2"
    assert flags["--kt-cpuinfer"] == "128"
    assert flags["--kt-threadpool-count"] == "2"
    assert flags["--chunked-prefill-size"] == "2048"
    assert "GB are missing" in left_out(question(model="qwen3-30b-a3b"), choice)["KTransformers"]


def test_vllm_gets_flags_where_all_weights_are_on_the_card_in_a_format_it_reads() -> None:
    asked = question(model="gpt-oss-20b", gpu="rtx-4090", vram=None, load=4)
    choice = Choice("llama.cpp", "MXFP4_MOE", kv="q8_0")
    flags = named(flags_of(asked, choice)["vLLM"])
    assert flags["--max-model-len"] == "8192"
    assert flags["--max-num-seqs"] == "4"
    assert flags["--kv-cache-dtype"] == "fp8"
    assert float(flags["--gpu-memory-utilization"]) == 0.97


@pytest.mark.parametrize(
    ("gpu", "choice", "engine", "reason"),
    [
        ("rtx-4090", Choice("llama.cpp", "Q4_K_M"), "vLLM", "through a plugin"),
        ("rtx-4090", Choice("llama.cpp", "BF16", 3), "vLLM", "they do not fit"),
        ("m2-ultra", Choice("llama.cpp", "BF16"), "vLLM", "NVIDIA or AMD card"),
        ("none", Choice("llama.cpp", "BF16", 16, whole=True), "vLLM", "NVIDIA or AMD card"),
        ("rx-7900-xtx", Choice("llama.cpp", "Q4_K_M"), "ik_llama.cpp", "NVIDIA cards"),
        ("rx-7900-xtx", Choice("llama.cpp", "Q4_K_M", 3), "KTransformers", "NVIDIA card"),
        ("rtx-4090", Choice("llama.cpp", "Q4_K_M"), "KTransformers", "here there are none"),
        (
            "rtx-4090",
            Choice("llama.cpp", "Q4_K_M", 16, whole=True),
            "KTransformers",
            "all other weights on the card",
        ),
    ],
)
def test_an_engine_that_cannot_run_a_choice_is_left_out_with_the_reason(
    gpu: str, choice: Choice, engine: str, reason: str
) -> None:
    asked = question(gpu=gpu, vram=None, ram="" if gpu == "m2-ultra" else "32GB DDR4-3200 2ch")
    assert reason in left_out(asked, choice)[engine]
    assert engine not in flags_of(asked, choice)
    assert "llama.cpp" in flags_of(asked, choice)


# Upgrades and the cliff


def test_upgrades_are_never_slower_than_now() -> None:
    advice = given_advice().advice
    found = upgrades(advice)
    assert 0 < len(found) <= 3
    gains = [each.gain for each in found]
    assert gains == sorted(gains, reverse=True)
    for each in found:
        assert each.then.request_s.value < advice.best.request_s.value
        assert each.gain == 1 - each.then.request_s.value / advice.best.request_s.value


def test_the_interval_of_a_gain_is_that_of_the_ratio_of_saved_to_remaining_time() -> None:
    advice = given_advice().advice
    now = advice.best.request_s
    for each in upgrades(advice):
        saved, left = each.gain * now.value, (1 - each.gain) * now.value
        wrong = now.high / now.value
        assert each.gain_span.high == pytest.approx(saved * wrong / (saved * wrong + left))
        assert each.gain_span.low == pytest.approx(saved / (saved + left * wrong))
        assert 0 < each.gain_span.low < each.gain < each.gain_span.high < 1


def test_an_upgrade_that_would_be_shown_as_no_gain_is_left_out() -> None:
    asked = question(model="gpt-oss-20b", vram=None, context=131072)
    found = upgrades(advise(asked))
    assert found
    assert all(f"{each.gain:.0%}" != "0%" for each in found)


def test_the_longest_context_is_no_longer_than_what_fits_where_the_asked_one_is_no_block() -> None:
    made = given_advice()
    advice = made.advice
    longest = cliff_of(advice, made.pricer).context
    # One block more does not fit, so a context within the last block must not be rounded up.
    asked = replace(advice.question, context=longest + 1)
    while not memory_of(asked, advice.best.choice).fits:
        asked = replace(asked, context=asked.context - 1)
    cliff = cliff_of(replace(advice, question=asked), made.pricer)
    assert memory_of(replace(asked, context=cliff.context), advice.best.choice).fits


@pytest.mark.parametrize(("moved", "said"), [(1, "1 more layer on"), (2, "2 more layers on")])
def test_one_layer_is_said_in_the_singular(moved: int, said: str) -> None:
    advice = given_advice().advice
    cliff = Cliff(4096, 8192, moved, advice.best.decode)
    assert any(said in line for line in cliff_lines(advice, cliff))


def test_the_longest_context_fits_and_one_block_more_does_not() -> None:
    made = given_advice()
    best, cliff = made.advice.best.choice, cliff_of(made.advice, made.pricer)
    asked = made.advice.question
    assert cliff.context % 256 == 0
    assert memory_of(replace(asked, context=cliff.context), best).fits
    assert not memory_of(replace(asked, context=cliff.context + 256), best).fits


def test_twice_the_context_is_priced_with_the_layers_that_it_moves() -> None:
    made = given_advice()
    best, cliff = made.advice.best.choice, cliff_of(made.advice, made.pricer)
    assert cliff.moved is not None
    assert cliff.decode is not None
    longer = replace(made.advice.question, context=2 * 8192)
    fewest = fewest_on_cpu(longer, replace(best, cpu_layers=0))
    then = replace(best, cpu_layers=best.cpu_layers + cliff.moved)
    assert then.cpu_layers == fewest
    answer = Pricer(longer).decode(then)
    assert isinstance(answer, Prediction)
    assert cliff.decode.value == answer.value < made.advice.best.decode.value


# Questions


@pytest.mark.parametrize(("text", "tokens"), [("16k", 16384), ("16384", 16384), (" 2 K ", 2048)])
def test_a_context_is_a_number_of_tokens(text: str, tokens: int) -> None:
    assert tokens_of(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "-1", "16m", "1e3", "1" * 40, "k", "١٦k" * 9])
def test_another_context_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write a number of tokens, like 16k"):
        tokens_of(text)


@given(st.sampled_from(sorted(GOALS)), st.integers(700, 10**6))
def test_prompt_and_answer_are_within_the_context(goal: Any, context: int) -> None:
    asked = question(goal=goal, context=context)
    assert asked.prompt > 0
    assert asked.prompt + asked.output <= context


def ask(model: str, gpu: str, ram: str = "", context: int = 8192) -> Question:
    return Question(Model.of(model), Parts(gpu, ram=ram), context)


def test_macos_keeps_a_quarter_of_the_memory() -> None:
    asked = replace(ask("olmoe-1b-7b", "m4-max", "36GB"), formats=("Q4_K_M",))
    memory = memory_of(asked, Choice("llama.cpp", "Q4_K_M"))
    assert memory.gpu["kept free"] == memory.gpu_has // 4
    assert any("macOS" in text for text in grounds_of(advise(asked), Pricer(asked)).assumed)


@pytest.mark.parametrize(
    ("ram", "cores"), [("", 6), ("64GB-ddr5-5600-2ch", 6), ("768GB-ddr5-4800-12ch", 48)]
)
def test_an_unnamed_processor_has_more_cores_beside_more_channels(ram: str, cores: int) -> None:
    parts, notes = Parts("rtx-4090", ram=ram).filled()
    assert parts.cpu == f"{cores} cores"
    assert any(f"{cores} cores" in note for note in notes)


def test_what_fits_with_windows_is_priced() -> None:
    """Layers with a window keep few KV entries: in a choice's memory, and where it is priced."""
    asked = ask("gpt-oss-20b", "rtx-3060-12gb", context=1 << 18)
    choice = Choice("llama.cpp", "MXFP4_MOE", cpu_layers=10, kv="q8_0")
    assert memory_of(asked, choice).gpu_left >= 0
    assert isinstance(Pricer(asked).price(choice), Priced)


def test_one_memory_holds_all_of_a_model() -> None:
    """Experts on the CPU would take the same memory, so no choice has any there."""
    asked = ask("qwen3-235b-a22b", "strix halo")
    choice = Choice("llama.cpp", "Q8_0")
    shape = asked.model.stored("Q8_0", "f16")
    weights = shape.layers_bytes(range(shape.num_layers + 1)) + sum(shape.sizes())
    for layers in (0, 40):
        memory = memory_of(asked, replace(choice, cpu_layers=layers))
        assert memory.gpu["weights"] + memory.gpu["experts"] == weights
        assert not memory.fits
        assert not memory.host
    assert {each.cpu_layers for each in choices(asked)} == {0}
    assert not any(each.whole for each in choices(asked))


def test_the_recommended_choice_is_the_one_of_its_format() -> None:
    """Of its format alone another might be chosen, which is exact and a tenth slower."""
    asked = replace(ask("olmoe-1b-7b", "none", "32GB-ddr4-3200-2ch"), formats=("Q8_0", "Q4_K_M"))
    advice = advise(asked, thorough=True)
    for best in advice.priced:
        assert best in replace(advice, best=best).by_format()


def test_a_model_of_another_name_is_called_by_both() -> None:
    assert heading(ask("deepseek-r1", "rtx-4090")).startswith(
        "deepseek-r1 (the shape of deepseek-v3) on "
    )
    assert heading(ask("DeepSeek-V3", "rtx-4090")).startswith("deepseek-v3 on ")
