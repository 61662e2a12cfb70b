"""Quantities are read exactly or refused in plain words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.config.units import (
    BYTES,
    DURATIONS_NS,
    exact_bandwidth,
    exact_bytes,
    exact_duration_ns,
    exact_flops,
    format_bytes,
    format_duration_ns,
    parse_bandwidth,
    parse_bytes,
    parse_duration_ns,
    parse_flops,
    parse_share,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("16.5 MB", 16_500_000),
        (" 1 kB ", 1000),
        ("1KB", 1000),
        ("1e3 B", 1000),
        (".5KiB", 512),
        ("7", 7),
        (8_000_000_000.0, 8_000_000_000),
        (0, 0),
        ("0.1GiB", 107374182),
    ],
)
def test_sizes_are_read_exactly(text: object, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_durations_and_bandwidths_are_read_exactly() -> None:
    assert parse_duration_ns("25us") == parse_duration_ns("25 µs") == 25_000
    assert parse_duration_ns("4ms") == 4_000_000
    assert parse_duration_ns("1.5s") == 1_500_000_000
    assert parse_duration_ns("0.1s") == 100_000_000
    assert parse_duration_ns("2min") == 120_000_000_000
    assert parse_bandwidth("32GB/s") == 32 * 10**9
    assert parse_flops("165.2 TFLOPS") == parse_flops("165.2TFLOP/s") == 1652 * 10**11
    assert parse_bandwidth("12.3 GiB/s") == round(12.3 * 2**30)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("24 Gb", "did you mean GB?"),
        ("24 gib", "did you mean GiB?"),
        ("24 GiBs", "no unit 'GiBs'"),
        ("lots", 'like "24GiB"'),
        ("", 'like "24GiB"'),
        ("-1GB", "must not be negative"),
        (-1, "must not be negative"),
        (math.nan, "must be finite"),
        (math.inf, "must be finite"),
        ("nan", "write a number and a unit"),
        (True, "True is not a size"),
        (None, "None is not a size"),
        ([1], "[1] is not a size"),
        ("0.1B", "it would be rounded to 0 B; write at least 1B"),
        ("1e30GB", "too large"),
        ("1e999999999", "no unit 'e999999999'"),
    ],
)
def test_what_is_no_size_is_refused_in_plain_words(value: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_bytes(value)


def test_a_bandwidth_without_per_second_is_refused() -> None:
    with pytest.raises(ValueError, match="no unit 'GB'"):
        parse_bandwidth("32GB")


def test_shares_are_read_and_bounded() -> None:
    assert parse_share("50%") == parse_share(0.5) == parse_share("0.5") == 0.5
    assert parse_share("0%") == 0
    assert parse_share(1) == 1
    for wrong in ("101%", "-1%", 1.5, math.nan, True, None, "half", "5GB"):
        with pytest.raises(ValueError, match="is not a share from 0% to 100%"):
            parse_share(wrong)


def test_formats_pick_the_unit_that_is_filled() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(16_500 * 1024) == "16.11 MiB"
    assert format_bytes(24 * 2**30) == "24 GiB"
    assert format_duration_ns(850) == "850 ns"
    assert format_duration_ns(25_000) == "25 us"
    assert format_duration_ns(1_500_000) == "1.5 ms"
    assert format_duration_ns(61 * 10**9) == "61 s"


@given(st.integers(0, 2**22), st.sampled_from(sorted(BYTES)))
def test_every_unit_scales_whole_numbers_exactly(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number * BYTES[unit]
    assert parse_bandwidth(f"{number} {unit}/s") == number * BYTES[unit]


@given(st.integers(0, 2**62))
def test_a_formatted_quantity_reads_back_within_its_two_decimals(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=0.006)
    assert parse_duration_ns(format_duration_ns(amount)) == pytest.approx(amount, rel=0.006)


@given(st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_bytes, parse_duration_ns, parse_bandwidth, parse_share):
        try:
            value = parse(text)
        except ValueError as error:
            message = str(error)
        else:
            assert value >= 0
            continue
        assert repr(text) in message


def test_the_unit_tables_hold_only_positive_integers() -> None:
    assert all(size >= 1 for size in (*BYTES.values(), *DURATIONS_NS.values()))


@pytest.mark.parametrize(
    ("spell", "amount", "text"),
    [
        (exact_bytes, 10 * 2**30, "10GiB"),
        (exact_bytes, 0, "0B"),
        (exact_bytes, 12_345_678_901, "12345678901B"),
        (exact_bandwidth, 12 * 10**9, "12GB/s"),
        (exact_bandwidth, 25_600_000_000, "25.6GB/s"),
        (exact_duration_ns, 20_000, "20us"),
        (exact_duration_ns, 1_500_000, "1.5ms"),
        (exact_flops, 165_200 * 10**9, "165.2TFLOPS"),
    ],
)
def test_an_exact_quantity_is_written_as_short_as_it_can_be(
    spell: Callable[[int], str], amount: int, text: str
) -> None:
    assert spell(amount) == text


@given(st.integers(0, 2**63 - 1))
def test_an_exact_quantity_is_read_back_as_the_same(amount: int) -> None:
    assert parse_bytes(exact_bytes(amount)) == amount
    assert parse_duration_ns(exact_duration_ns(amount)) == amount
    assert parse_flops(exact_flops(amount)) == amount
