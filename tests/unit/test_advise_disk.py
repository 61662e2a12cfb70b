"""Choices that read experts from a disk, where nothing else fits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from advice_questions import question

from moesim.advice.advice import Advice, advise
from moesim.advice.choice import Choice, disk_choices, memory_of
from moesim.advice.grounds import grounds_of
from moesim.advice.price import DISK_NOTE, Pricer
from moesim.advice.question import Question
from moesim.advice.tables import as_plain, recommendation
from moesim.advice.upgrades import cliff_of, upgrades
from moesim.errors import UsageError
from moesim.measured.predict import Prediction


def small(ram: str = "4GB DDR4-3200 2ch", gpu: str = "none") -> Question:
    """Return a question about a machine whose host memory holds a part of the experts."""
    return question(gpu=gpu, ram=ram, vram=None, context=2048, formats=("Q8_0", "Q4_K_M"))


@cache
def advice() -> tuple[Pricer, Advice]:
    pricer = Pricer(small())
    return pricer, advise(small(), pricer)


def test_a_disk_is_used_only_where_nothing_else_fits() -> None:
    assert advice()[1].best.choice.disk
    assert not advise(small("32GB DDR4-3200 2ch")).best.choice.disk


def test_what_has_no_room_in_host_memory_is_on_disk() -> None:
    asked = small()
    for choice in disk_choices(asked):
        memory, whole = (memory_of(asked, replace(choice, disk=disk)) for disk in (True, False))
        assert memory.fits
        assert not whole.fits
        assert memory.host_left == 0
        assert memory.host["experts"] + memory.disk_bytes == whole.host["experts"]
        assert {**memory.host, "experts": 0} == {**whole.host, "experts": 0}


def test_reads_are_those_of_experts_that_are_as_likely_as_others() -> None:
    asked = small()
    pricer, shape = Pricer(asked), asked.model.stored("Q8_0", "f16")
    (choice,) = (each for each in disk_choices(asked) if each.format == "Q8_0")
    memory = memory_of(asked, choice)
    share = memory.disk_bytes / sum(shape.sizes())
    reads_ms = shape.top_k * len(shape.moe_layers) * shape.expert_bytes * share / 3e9 * 1e3
    (term,) = (term for term in pricer.terms(choice) if term.name == "reads from disk")
    latency_ms = shape.top_k * len(shape.moe_layers) * share * 0.1
    assert term.ms == pytest.approx(reads_ms + latency_ms, rel=0.15)


def test_more_host_memory_reads_less() -> None:
    speeds = []
    for size in (4, 5, 6):
        asked = small(f"{size}GB DDR4-3200 2ch")
        (choice,) = (each for each in disk_choices(asked) if each.format == "Q8_0")
        answer = Pricer(asked).decode(choice)
        assert isinstance(answer, Prediction)
        speeds.append(answer.value)
    assert speeds == sorted(set(speeds))


def test_the_interval_is_wider_and_the_disk_is_named() -> None:
    pricer, made = advice()
    one = made.best
    assert one.decode.high / one.decode.low > 8
    assert DISK_NOTE in one.notes
    grounds = grounds_of(made, pricer)
    assert DISK_NOTE in grounds.assumed
    assert not grounds.scores
    assert "no measured rows are like this one: its error is not known" in grounds.lines()
    assert "warning: " in "\n".join(recommendation(made))
    assert as_plain(made)["recommended"]["disk_bytes"] == one.memory.disk_bytes > 0


def test_twice_the_host_memory_is_an_upgrade() -> None:
    pricer, made = advice()
    (found,) = (each for each in upgrades(made) if each.name == "host memory of 8GB")
    assert not found.then.choice.disk
    assert found.gain > 0.5
    assert cliff_of(made, pricer).context >= 2048


def test_without_room_for_a_layer_nothing_fits() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        advise(small("2GB DDR4-3200 2ch"))


def test_beside_a_card_all_experts_are_in_front_of_the_disk() -> None:
    asked = question(ram="3GB DDR4-3200 2ch", vram=3 * 10**9, formats=("Q8_0",))
    (choice,) = disk_choices(asked)
    assert choice == Choice("llama.cpp", "Q8_0", 16, ubatch=2048, kv="q8_0", disk=True)
    memory = memory_of(asked, choice)
    assert memory.gpu["experts"] == 0
    assert memory.disk_bytes > 0
    assert isinstance(Pricer(asked).decode(choice), Prediction)


def test_of_choices_that_read_from_a_disk_the_fastest_is_recommended() -> None:
    asked = replace(small(), formats=("Q4_K_M", "Q2_K"))
    found = advise(asked)
    assert found.best.choice.disk
    assert {one.choice.format for one in found.priced} == {"Q4_K_M", "Q2_K"}
    assert found.best.request_s.value == min(one.request_s.value for one in found.priced)
