"""Tokens of domains: runs of ids, windows cut from them, and windows dealt out anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moesim.errors import UsageError
from moesim.training.text import Document, read_corpus
from moesim.training.tokenizer import train_tokenizer
from moesim.training.tokens import (
    WindowStream,
    draw_windows,
    shuffle_domains,
    spread_windows,
    token_stream,
    token_streams,
)

STREAMS = {"low": np.arange(0, 100), "high": np.arange(1000, 1057)}


def test_a_stream_is_its_documents_with_an_end_after_each() -> None:
    tokenizer = train_tokenizer(["one two three\n" * 20], 300)
    documents = [Document("a", "one two"), Document("b", "three")]
    ids = token_stream(tokenizer, documents)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == "one two<|end|>three<|end|>"
    assert list(token_streams(tokenizer, {"x": documents})["x"]) == list(ids)


def test_drawn_windows_are_consecutive_and_do_not_overlap() -> None:
    windows = draw_windows(STREAMS, 5, 10, seed=0, purpose="score")
    for domain, ids_WT in windows.items():
        assert ids_WT.shape == (5, 10)
        assert ids_WT.dtype == torch.int64
        assert (ids_WT.diff(dim=1) == 1).all()
        assert len(ids_WT.unique()) == 50
        assert set(ids_WT.flatten().tolist()) <= set(STREAMS[domain].tolist())


def test_each_purpose_and_seed_draws_for_itself() -> None:
    def starts(seed: int, purpose: str) -> list[int]:
        return draw_windows(STREAMS, 5, 10, seed, purpose)["low"][:, 0].tolist()

    assert starts(0, "score") == starts(0, "score")
    assert starts(0, "score") != starts(1, "score")
    assert starts(0, "score") != starts(0, "tune")
    alone = draw_windows({"low": STREAMS["low"]}, 5, 10, 0, "score")["low"]
    assert alone[:, 0].tolist() == starts(0, "score")  # another domain shifts nothing


def test_too_little_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"domain 'high' has 57 tokens; 6 windows of 10 need 60"):
        draw_windows(STREAMS, 6, 10, seed=0, purpose="score")
    assert draw_windows(STREAMS, 1, 57, seed=0, purpose="score")["high"][0, -1] == 1056


def test_a_stream_of_windows_has_each_once_a_pass_in_an_order_of_its_own() -> None:
    stream = WindowStream.of(STREAMS, 10, seed=0)
    assert stream.windows.shape == (15, 10)  # ten, and five of the 57 ids
    windows, domains = stream.take(0, 45)
    assert (windows.diff(dim=1) == 1).all()
    assert torch.equal(domains, (windows[:, 0] >= 1000).long())
    passes = windows[:, 0].view(3, 15)
    for order in passes:
        assert torch.equal(order.sort().values, stream.windows[:, 0])
    assert len({tuple(order.tolist()) for order in passes}) == 3
    other, _ = WindowStream.of(STREAMS, 10, seed=1).take(0, 15)
    assert not torch.equal(other, windows[:15])


@pytest.mark.parametrize("size", [1, 7, 40])
def test_any_part_of_a_stream_of_windows_is_that_of_the_whole(size: int) -> None:
    stream = WindowStream.of(STREAMS, 10, seed=0)
    whole, _ = stream.take(0, 80)
    parts = [stream.take(start, size)[0] for start in range(0, 80 - size + 1, size)]
    together = torch.cat(parts)
    assert torch.equal(together, whole[: len(together)])


def test_spread_windows_reach_from_end_to_end_and_repeat_what_is_short() -> None:
    ids = spread_windows(STREAMS["low"], 4, 10)
    assert ids[:, 0].tolist() == [0, 30, 60, 90]
    assert spread_windows(np.array([1, 2, 3]), 2, 5).tolist() == [[1, 2, 3, 1, 2]] * 2


def test_shuffled_domains_hold_the_same_windows_in_the_same_numbers() -> None:
    windows = draw_windows({"low": np.arange(800), "high": np.arange(1000, 1800)}, 40, 10, 0, "x")
    windows["low"] = windows["low"][:30]
    dealt = shuffle_domains(windows, seed=0)
    assert {d: len(w) for d, w in dealt.items()} == {"low": 30, "high": 40}
    before, after = (torch.cat(list(w.values()))[:, 0].sort().values for w in (windows, dealt))
    assert torch.equal(before, after)
    mixed = float((dealt["low"] >= 1000).float().mean())
    assert 0.3 < mixed < 0.85  # 40 of 70 would be 0.57
    assert torch.equal(dealt["low"], shuffle_domains(windows, seed=0)["low"])
    assert not torch.equal(dealt["low"], shuffle_domains(windows, seed=1)["low"])


def paragraphs(count: int) -> list[str]:
    return [f"paragraph {n}:" + f" word{n}" * 30 for n in range(count)]


@pytest.mark.parametrize("gap", ["\n\n", "\n"])
def test_a_file_that_repeats_itself_is_split_without_leaks(tmp_path: Path, gap: str) -> None:
    """Whole collections are found twice in one file; held out must mean unseen."""
    (tmp_path / "once").mkdir()
    (tmp_path / "text.txt").write_text(gap.join(paragraphs(400) * 2))
    (tmp_path / "once/text.txt").write_text(gap.join(paragraphs(400)))
    corpus = read_corpus({"x": tmp_path / "text.txt"})
    assert corpus.describe() == read_corpus({"x": tmp_path / "once/text.txt"}).describe()
    train, held_out = (
        [p.strip() for d in part["x"] for p in d.text.split("\n\n") if p.strip()]
        for part in (corpus.train, corpus.validation)
    )
    assert held_out
    assert set(train).isdisjoint(held_out)
    assert sorted(train + held_out) == sorted(p.strip() for p in paragraphs(400))


def test_the_shared_texts_give_four_domains(shared: Path) -> None:
    files = sorted((shared / "data/text").glob("*.txt"))
    corpus = read_corpus({file.stem.split("_")[0]: file for file in files})
    assert corpus.domains == ("arxiv", "c4", "github", "wikipedia")
    for domain in corpus.domains:
        held_out = sum(len(d.text) for d in corpus.validation[domain])
        learnt = sum(len(d.text) for d in corpus.train[domain])
        assert 0.05 < held_out / (held_out + learnt) < 0.2, domain
        assert learnt > 400_000, domain
