"""Samples on disk are the samples, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.calibrate.samples import ExpertWork, Layer, Readback, Samples, TailWork
from moesim.calibrate.store import load_samples, save_samples
from moesim.errors import OutputError
from moesim.hardware.ops import BatchShape

BATCH = BatchShape(3, 40, 50, 1, 2)
SAMPLES = Samples(
    experts=[(ExpertWork((1, 2), False, copies=2), 100), (ExpertWork((3,), True, True), 90)],
    fronts=[(Layer(4, BATCH, True, 0), 800)],
    dense=[(Layer(0, BATCH, False, 3), 700)],
    readbacks=[(Readback(24, 2, 1), 50)],
    tails=[(TailWork(BATCH, 8, 2), 300)],
    copies=[(4096, 1000)],
    steps=[(2, 1, 1, 1, 1)],
)


def test_samples_on_disk_are_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "round-0.json"
    save_samples(path, SAMPLES)
    assert load_samples(path) == SAMPLES
    work, _ = load_samples(path).fronts[0]
    assert isinstance(work, Layer)
    assert isinstance(work.batch, BatchShape)
    more = Samples()
    more.add(SAMPLES)
    more.add(SAMPLES)
    assert more.steps == [(2, 1, 1, 1, 1), (4, 2, 2, 2, 2)]
    assert [one.name for one in path.parent.iterdir()] == ["round-0.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"experts": 3}'])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "samples.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OutputError, match="holds no samples"):
        load_samples(path)
