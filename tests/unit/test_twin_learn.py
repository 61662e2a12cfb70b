"""What logs tell of a machine: rows that the simulator made are found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.errors import UsageError
from moesim.hardware.overrides import faster_link
from moesim.measured.predict import Declined, Prediction, read
from moesim.measured.rows import Row
from moesim.twin.learn import SPREAD, Learned, learn
from moesim.twin.link import Link, learn_link
from moesim.twin.log import Entry
from moesim.twin.model import OpenMachine
from moesim.twin.samples import Options, Samples, samples_of
from moesim.twin.twin import Twin
from moesim.twin.what_if import change_of, imagine

BASE = Row(
    model="olmoe-1b-7b", quant="Q4_K_M", gpu="RTX 3090", cpu="Ryzen 7 5800X, 8 threads",
    ram="32 GB DDR4-3200 dual channel", engine="llama.cpp CUDA", metric="decode_tok_s", depth=0,
)  # fmt: skip
COUNTS = (16, 12, 8, 4)


def made(
    counts: Sequence[int] = COUNTS, reads: float = 1.0, layer: float = 1.0, **fields: Any
) -> list[Entry]:
    """Return measurements of a machine whose two numbers are those of the parts, multiplied."""
    model, entries = OpenMachine(), []
    for count in counts:
        row = replace(BASE, setting=f"ngl=99 ncmoe={count} fa=1", **fields)
        bandwidth, layer_ns = model.assumed(read(row))
        seconds = model.seconds(read(row), reads * bandwidth, layer * layer_ns)
        entries.append(Entry(row, 1 / seconds, None, f"a.md:{count}"))
    return entries


def learned(entries: Sequence[Entry]) -> tuple[Samples, Learned]:
    samples = samples_of(entries, Options())
    return samples, learn(samples, OpenMachine(samples.models))


@pytest.mark.parametrize(("reads", "layer"), [(0.7, 1.5), (0.9, 0.6), (1.5, 1.3)])
def test_the_numbers_of_a_simulated_machine_are_found_again(reads: float, layer: float) -> None:
    _, found = learned(made(reads=reads, layer=layer))
    for number, factor in zip(found.numbers(), (reads, layer), strict=True):
        assert number.value == pytest.approx(factor * number.assumed, rel=0.03)
        assert number.low < factor * number.assumed < number.high
    np.testing.assert_allclose(found.times, [1 / s.value for s in found.samples], rtol=0.005)


def test_rows_predict_each_other_on_a_simulated_machine() -> None:
    _, found = learned(made(reads=0.7, layer=1.5))
    residuals = found.residuals(OpenMachine())
    for each in residuals:
        assert each.left_out_pct == pytest.approx(0, abs=1.5)
        assert each.error_pct == pytest.approx(0, abs=0.5)
    assert max(abs(each.assumed / each.sample.value - 1) for each in residuals) > 0.2


def test_a_row_that_is_off_widens_the_intervals() -> None:
    entries = made(reads=0.7, layer=1.5)
    _, clean = learned(entries)
    off = replace(entries[1], value=1.3 * entries[1].value)
    _, rough = learned([entries[0], off, *entries[2:]])
    assert rough.spread > 1.5 * clean.spread
    for a, b in zip(rough.numbers(), clean.numbers(), strict=True):
        assert a.high / a.low > b.high / b.low
    worst = max(rough.residuals(OpenMachine()), key=lambda each: abs(each.error_pct))
    assert worst.sample.place == "a.md:12"


@pytest.fixture(scope="module")
def two() -> tuple[Samples, Learned]:
    return learned(made((16, 4), reads=0.8, layer=1.2))


def twin(samples: Samples, found: Learned) -> Twin:
    residuals = tuple(found.residuals(OpenMachine()))
    return Twin(samples, found, residuals, Link(reason="no prompts"), ())


def test_two_rows_are_met_exactly_and_prove_nothing(two: tuple[Samples, Learned]) -> None:
    samples, found = two
    assert found.spread == pytest.approx(SPREAD, rel=0.01)
    assert all(each.left_out is None for each in found.residuals(OpenMachine()))
    assert "proves nothing" in twin(samples, found).verdict


def test_one_setting_cannot_tell_the_numbers_apart() -> None:
    samples, found = learned([*made((16,), reads=0.8), *made((16,), reads=0.8)])
    assert found.settings == 1
    assert "one setting" in twin(samples, found).verdict
    samples, found = learned(made((16,), reads=0.8))
    assert "only" in twin(samples, found).verdict
    assert [each.seen for each in found.numbers()].count(True) <= 1


def test_logs_of_two_machines_are_refused() -> None:
    with pytest.raises(UsageError, match="several machines"):
        learned([*made((16,)), *made((4,), gpu="RTX 4090")])
    with pytest.raises(UsageError, match="several machines"):
        learned([*made((16,)), *made((4,), engine="ik_llama.cpp CUDA")])


def test_logs_without_single_tokens_are_refused() -> None:
    entries = [replace(each, row=replace(each.row, metric="prefill_tok_s", prompt=512))
               for each in made((16,))]  # fmt: skip
    with pytest.raises(UsageError, match="no single tokens"):
        learned(entries)


def prompts(factor: float, counts: Sequence[int] = (16, 8)) -> list[Entry]:
    """Return prompts of a machine whose link is faster by a factor."""
    plain, entries = OpenMachine(), []
    for count in counts:
        setting = f"ngl=99 ncmoe={count} fa=1"
        row = replace(BASE, setting=setting, metric="prefill_tok_s", prompt=512)
        figures = faster_link(plain.hardware(read(row)), factor)
        seconds = OpenMachine({}, figures).seconds(read(row), *plain.assumed(read(row)))
        entries.append(Entry(row, 1 / seconds, None, f"a.md:{count}"))
    return entries


def test_the_link_of_a_simulated_machine_is_found_again() -> None:
    samples = samples_of([*prompts(0.6), *made((16,))], Options())
    numbers = OpenMachine().assumed(samples.decodes[0].reading)
    link = learn_link(samples, numbers)
    assert link.seen
    assert link.factor == pytest.approx(0.6, rel=0.03)
    assert link.residuals_pct == pytest.approx((0, 0), abs=1)


def test_a_link_that_cannot_be_seen_says_why() -> None:
    samples = samples_of([*prompts(1, (16,)), *made((16,))], Options())
    numbers = OpenMachine().assumed(samples.decodes[0].reading)
    assert "one setting" in learn_link(samples, numbers).reason
    samples = samples_of(made((16,)), Options())
    assert "no prompt" in learn_link(samples, numbers).reason
    small = [
        replace(each, row=replace(each.row, prompt=8192, setting=f"{each.row.setting} ub=8192"))
        for each in prompts(1)
    ]
    samples = samples_of([*small, *made((16,))], Options())
    assert "at most" in learn_link(samples, numbers).reason


def answered(two: tuple[Samples, Learned], text: str) -> Any:
    samples, found = two
    return imagine(change_of(text), found, samples, Link(reason="no prompts"))


@pytest.mark.parametrize("count", [0, 8, 12])
def test_another_n_is_that_of_the_simulated_machine(
    two: tuple[Samples, Learned], count: int
) -> None:
    (truth,) = made((count,), reads=0.8, layer=1.2)
    answer = answered(two, f"ncmoe={count}")
    assert isinstance(answer.decode, Prediction)
    assert answer.decode.value == pytest.approx(truth.value, rel=0.02)
    assert answer.decode.low < truth.value < answer.decode.high
    assert answer.base.place == "a.md:4"  # the fastest


def test_other_changes_go_the_right_way(two: tuple[Samples, Learned]) -> None:
    def speed(text: str) -> float:
        answer = answered(two, text).decode
        assert isinstance(answer, Prediction), answer
        return answer.value

    base = speed("ncmoe=16")
    assert speed("ncmoe=16,channels=4") > 1.1 * base
    assert speed("ncmoe=16,format=Q8_0") < base / 1.2
    assert speed("ncmoe=16,ram=64GB-ddr5-6000-2ch") > 1.1 * base
    assert speed("ncmoe=16,context=8k") < base
    assert speed("ncmoe=16,kv=q8_0") == pytest.approx(base, rel=0.1)


def test_a_new_part_has_the_wide_interval(two: tuple[Samples, Learned]) -> None:
    same, other = answered(two, "ncmoe=4").decode, answered(two, "gpu=RTX 4090").decode
    assert other.high / other.low > 1.15 * same.high / same.low
    other = answered(two, "gpu=RX 6700 XT").decode  # a backend of another vendor
    assert isinstance(other, Prediction)


def test_a_cache_has_the_slots_of_the_experts_on_the_gpu(two: tuple[Samples, Learned]) -> None:
    answer, split = (answered(two, text).decode for text in ("cache=lru,ncmoe=8", "ncmoe=8"))
    assert isinstance(answer, Prediction)
    assert isinstance(split, Prediction)
    assert "LRU with 32 of 64 experts of each layer hits" in answer.notes[-1]
    assert answer.high / answer.low > split.high / split.low  # the hit rate is not known either
    more = answered(two, "cache=lru,ncmoe=4").decode
    assert isinstance(more, Prediction)
    assert more.value > answer.value


@pytest.mark.parametrize(("text", "why"), [("cache=lru,ncmoe=0", "all experts are in GPU memory")])
def test_a_cache_that_has_nothing_to_do_is_declined(
    two: tuple[Samples, Learned], text: str, why: str
) -> None:
    answer = answered(two, text).decode
    assert isinstance(answer, Declined)
    assert why in answer.reason


def test_what_is_not_answered_is_declined_by_name(two: tuple[Samples, Learned]) -> None:
    answer = answered(two, "gpu=2x RTX 4090").decode
    assert isinstance(answer, Declined)
    assert "several GPUs" in answer.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n", "KEY=VALUE"),
        ("ncmoe=", "KEY=VALUE"),
        ("ncmoe=-1", "no number"),
        ("ncmoe=many", "no number"),
        ("channels=0", "no number"),
        ("format=Q4_Q", "no format"),
        ("gpu=RTX 9999", "no graphics card"),
        ("colour=red", "not known"),
        ("kv=$(x)", "not understood"),
        ("ubatch=0", "no number"),
        ("threads=0", "no number"),
        ("threads=all", "no number"),
        ("cache=lfu", "for lru only"),
    ],
)
def test_a_wrong_what_if_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        change_of(text)


def test_what_ifs_may_be_joined() -> None:
    change = change_of("ncmoe=20, format=Q8_0,gpu=RTX 4090, 24 GB")
    assert (change.experts, dict(change.fields)) == (
        20, {"quant": "Q8_0", "gpu": "RTX 4090, 24 GB"}
    )  # fmt: skip
    assert change.of_machine


def test_options_replace_what_logs_say_and_a_card_is_needed() -> None:
    (entry,) = made((16,))
    given = Options(gpu="RTX 4090", ram="64GB-ddr5-6000-2ch", setting="t=4", format="Q8_0")
    (sample,) = samples_of([entry], given).used
    row = sample.reading.row
    assert (row.gpu, row.ram, row.quant) == ("RTX 4090", "64GB-ddr5-6000-2ch", "Q8_0")
    assert row.setting.endswith("fa=1 t=4")
    bare = replace(entry, row=replace(entry.row, gpu=""))
    with pytest.raises(UsageError, match="--gpu"):
        samples_of([bare], Options())
    poor = replace(entry, row=replace(entry.row, ram="", cpu=""))
    assert any("host memory is" in note for note in samples_of([poor], Options()).notes)
    with pytest.raises(UsageError, match="no measurement can be used"):
        samples_of([replace(entry, row=replace(entry.row, model="unheard-of"))], Options())


def test_many_requests_are_groups_of_like_depth() -> None:
    (entry,) = made((16,))
    entries = [
        replace(entry, row=replace(entry.row, depth=depth), value=entry.value + noise / 10)
        for depth in (0, 8192)
        for noise in range(25)
    ]
    samples = samples_of(entries, Options())
    assert [sample.reading.row.depth for sample in samples.used] == [0, 8192]
    assert [sample.value for sample in samples.used] == [entry.value + 1.2] * 2
    assert all(sample.deviation and sample.deviation < 1 for sample in samples.used)
    assert "50 measurements are 2 groups" in " ".join(samples.notes)
    assert len(samples_of(entries[:40], Options()).used) == 40


def test_an_unknown_model_says_which_option_helps() -> None:
    (entry,) = made((16,))
    with pytest.raises(UsageError, match="give --model"):
        samples_of([replace(entry, row=replace(entry.row, model="dense 7B"))], Options())
    named = Options(model="olmoe-1b-7b")
    lost = replace(entry, row=replace(entry.row, model="dense 7B"))
    assert samples_of([lost], named).used[0].reading.row.model == "olmoe-1b-7b"
