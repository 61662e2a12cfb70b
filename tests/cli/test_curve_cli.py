"""`moesim curve`: what its options print and write, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from workloads import tiny_trace

from moesim.cli import app
from moesim.errors import UsageError
from moesim.trace import Trace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with synthetic traces; one has the sizes of Mixtral, and one those of its header."""
    home = tmp_path_factory.mktemp("home")
    unknown = {"model": "unknown", "model_config": None, "expert_bytes": None}
    tiny_trace(requests=4).with_meta(**unknown).save(home / "trace")
    tiny_trace(requests=2).with_meta(expert_bytes=12_345).save(home / "sized")
    ids = np.tile(np.arange(8)[:, None, None], (1, 32, 1))
    Trace.from_arrays(
        expert_ids=ids, seq_len=[4, 4], num_experts=8, model="mixtral-8x7b"
    ).save(home / "mixtral")  # fmt: skip
    return home


def curve(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["curve", *map(str, arguments)])


def test_intervals_stand_beside_the_rates_and_say_what_they_keep(home: Path) -> None:
    done = curve(home / "trace", "--policy", "lru", "--capacity", "2,4", "--intervals")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["2", "4"]
    rate, low, high = (float(text.strip("[],")) for text in lines[2].split()[1:])
    assert low <= rate <= high
    assert "95% percentile bootstrap over requests: 4 requests, 1,000 resamples" in lines[4]
    assert "the cache state is not resampled" in lines[4]


def test_the_caption_groups_the_digits_of_large_numbers(home: Path, tmp_path: Path) -> None:
    ids = np.tile(np.arange(8)[:, None, None], (1200, 1, 1))
    Trace.from_arrays(expert_ids=ids, seq_len=[8] * 1200, num_experts=8).save(tmp_path / "long")
    options = ("--policy", "lru", "--batch", "2000", "--out", tmp_path / "o")
    done = curve(tmp_path / "long", *options)
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "o/curve.json").read_text())
    assert ": 1,200 requests, 9,600 rows, 1 layers" in data["routing"]
    assert "batch 2,000 (the trace has 1,200 requests: all together)" in data["replay"]
    assert "1,200 requests, 9,600 rows" in (tmp_path / "o/plots/curve.svg").read_text()


def test_a_link_adds_missed_bytes_and_a_bound(home: Path) -> None:
    sizes = ["--expert-bytes", "1MiB", "--link", "1MiB/s", "--capacity", "1"]
    done = curve(home / "trace", "--policy", "lru", *sizes)
    assert done.exit_code == 0, done.output
    _, missed, bound = done.stdout.split("\n\n")
    assert missed.startswith("# missed bytes (MiB per token), with experts of 1 MiB (as stated)")
    assert bound.startswith("# lower bound on the time of a token: ")
    assert "(ms per token; 1MiB/s, no latency per copy)" in bound
    # At one MiB a second, a MiB takes a second.
    mib, ms = (float(part.splitlines()[-1].split()[1]) for part in (missed, bound))
    assert ms == pytest.approx(1000 * mib, rel=0.05)


def test_a_profile_is_a_link_with_its_latency(home: Path) -> None:
    done = curve(home / "sized", "--policy", "lru", "--link", "rtx-4090")
    assert done.exit_code == 0, done.output
    assert "us per copy)" in done.stdout


def test_the_size_of_an_expert_is_the_header_s_or_that_of_the_named_model(
    home: Path, tmp_path: Path
) -> None:
    sources = {"sized": (12_345, "the trace's header"), "mixtral": (352321536, "mixtral-8x7b, 16")}
    for name, (nbytes, source) in sources.items():
        done = curve(home / name, "--policy", "lru", "--no-plots", "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        expert = json.loads((tmp_path / name / "curve.json").read_text())["expert"]
        assert expert["bytes"] == nbytes
        assert expert["source"].startswith(source)
    done = curve(home / "mixtral", "--policy", "lru", "--model", "mixtral-8x7b")
    assert "experts of 336 MiB (mixtral-8x7b, 16 bits)" in done.stdout


def test_a_folder_holds_the_curve_with_intervals_and_is_named_last(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments: list[str | Path] = [
        home / "trace",
        "--policy",
        "lru",
        "--policy",
        "min",
        "--out",
        out,
    ]
    done = curve(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out)
    assert {path.name for path in out.iterdir()} == {"curve.csv", "curve.json", "plots"}
    stored = json.loads((out / "curve.json").read_text())
    assert stored["intervals"]["requests"] == 4
    assert "not resampled" in stored["intervals"]["note"]
    assert all(p["hit_rate_low"] <= p["hit_rate"] <= p["hit_rate_high"] for p in stored["points"])
    # The document on stdout is the stored one, and rates are those of a call without a folder.
    again = json.loads(curve(*arguments, "--force", "--no-plots", "--json").stdout)
    assert again == {"out": str(out), **stored}
    rates = json.loads(curve(*arguments[:5], "--json").stdout)
    assert [rates[p["policy"]][str(p["capacity"])] for p in stored["points"]] == [
        p["hit_rate"] for p in stored["points"]
    ]
    refused = curve(*arguments)
    assert refused.exit_code == 1
    assert "already exists" in str(refused.exception)


BAD: list[tuple[list[str], str]] = [
    (["--link", "25GB/s"], "--link needs the size of an expert"),
    (["--link", "25Gb", "--expert-bytes", "1MiB"], "no bandwidth like 25GB/s, and no hardware"),
    (["--link", "0GB/s", "--expert-bytes", "1MiB"], "--link 0GB/s: must be positive"),
    (["--expert-bytes", "0"], "--expert-bytes 0: must be positive"),
    (["--expert-bytes", "big"], "--expert-bytes big: "),
    (["--expert-bytes", "1MiB", "--model", "mixtral-8x7b"], "leave one of them away"),
    (["--model", "mixtral-8x7b"], "32 layers of 8 experts, and the trace"),
    (["--model", "mixtrall-8x7b"], "mixtral-8x7b"),
    (["--seed", "-1"], "seed must not be negative"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: " ".join(value)[:40])
def test_options_that_make_no_sense_are_refused(
    options: list[str], message: str, home: Path
) -> None:
    done = curve(home / "trace", "--policy", "lru", *options)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
