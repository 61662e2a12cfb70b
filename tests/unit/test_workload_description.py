"""What `moesim workload info` says of a file of requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from broken_requests import FORMATS, reading, whole

from moesim.report.requests import requests_chart, tables
from moesim.report.tabular import plain
from moesim.workload.description import describe
from moesim.workload.prefixes import nodes, sharing
from moesim.workload.request_file import read_requests

HEADER = "arrival_s,prompt_tokens,output_tokens,domain\n"


def test_lengths_rate_and_burstiness_are_those_of_the_requests(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.gamma(0.25, 2.0, 3000))  # CV 2, 2 requests/s
    prompts, outputs = rng.integers(1, 5000, 3000), rng.integers(1, 300, 3000)
    rows = [
        f"{t:.9f},{p},{o},{'code' if p % 3 else 'chat'}"
        for t, p, o in zip(times, prompts, outputs, strict=True)
    ]
    path = tmp_path / "r.csv"
    path.write_text(HEADER + "\n".join(rows), encoding="utf-8")
    about = describe(read_requests(path))
    gaps = np.diff(times)
    assert about["requests"] == 3000
    assert about["prompt_tokens"]["total"] == prompts.sum()
    for values, said in ((prompts, about["prompt_tokens"]), (outputs, about["output_tokens"])):
        assert said["mean"] == pytest.approx(values.mean())
        assert (said["min"], said["max"]) == (values.min(), values.max())
        assert said["p90"] == pytest.approx(np.percentile(values, 90))
    arrivals = about["arrivals"]
    assert arrivals["rate_per_s"] == pytest.approx(1 / gaps.mean())
    assert arrivals["burstiness"] == pytest.approx(gaps.std() / gaps.mean())
    minutes = np.bincount(((times - times[0]) // 60).astype(int))
    assert arrivals["busiest_minute"] == minutes.max()
    assert arrivals["dispersion"] == pytest.approx(minutes[:-1].var() / minutes[:-1].mean())
    assert about["domains"] == {
        "code": int((prompts % 3 != 0).sum()),
        "chat": int((prompts % 3 == 0).sum()),
    }
    assert about["prefixes"] is None


@pytest.mark.parametrize("form", FORMATS)
def test_a_description_fits_on_a_screen_and_is_plain_json(tmp_path: Path, form: str) -> None:
    path = tmp_path / "requests"
    path.write_bytes(whole(form))
    file = read_requests(path, reading(form))
    about = describe(file)
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    lines = "\n".join(plain(table) for table in tables(about)).splitlines()
    assert 5 <= len(lines) <= 23
    assert max(map(len, lines)) <= 100
    chart = requests_chart(file, "a name")
    assert {row[0] for row in chart.rows} >= {"lengths"}
    assert ("gaps" in {row[0] for row in chart.rows}) == file.timed


def test_one_request_has_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n7,3,2\n", encoding="utf-8")
    file = read_requests(path)
    arrivals = describe(file)["arrivals"]
    assert arrivals["rate_per_s"] is None
    assert arrivals["burstiness"] is None
    assert arrivals["gaps_s"] is None
    assert requests_chart(file, "").rows


def test_a_block_is_shared_only_with_all_blocks_before_it() -> None:
    assert nodes([(5, 6), (6, 5), (5, 6, 7), (5,)]) == [(0, 1), (2, 3), (0, 1, 4), (0,)]


def test_an_unlimited_prefix_cache_finds_the_full_blocks_of_earlier_prompts() -> None:
    paths = nodes([(1, 2, 3), (1, 2, 4), (1, 2), (1, 2, 3)])
    # The third prompt has two full blocks, but its last token must be computed.
    found = sharing(paths, [12, 11, 8, 13], 4)
    assert (found.blocks, found.distinct_blocks) == (3 + 2 + 2 + 3, 3)
    assert (found.requests, found.tokens) == (3, 8 + 4 + 12)


def test_the_mooncake_conversations_share_their_first_block(shared: Path) -> None:
    about = describe(read_requests(shared / "data/requests/mooncake_conversation_trace.jsonl"))
    # Each prompt begins with the same system prompt, so each but the first finds a block.
    assert about["prefixes"]["requests_with_cached_blocks"] == 12_030
    assert 0.35 < about["prefixes"]["cached_share"] < 0.4  # FAST 2025: a cache ratio of 40 %
