"""The tables that moesim ships read alike with libyaml and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moesim.config import shipped_yaml
from moesim.model.formats import FORMATS
from moesim.model.shapes import SHAPES
from moesim.trace.localities import FACTS, FITTED


@pytest.mark.parametrize("file", [SHAPES, FORMATS, FACTS, FITTED], ids=lambda file: file.name)
def test_both_loaders_read_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = shipped_yaml.load_shipped(file)
    monkeypatch.setattr(shipped_yaml, "_LOADER", yaml.SafeLoader)
    assert repr(shipped_yaml.load_shipped(file)) == repr(read)
