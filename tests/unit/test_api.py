"""The public API is small, resolves, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import moesim

HEAVY = ("torch", "pandas", "matplotlib", "scipy", "transformers", "pyarrow", "altair", "jinja2")


@pytest.mark.parametrize("name", moesim.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(moesim, name) is getattr(moesim, name)
    assert name in dir(moesim)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = moesim.runn


def test_importing_moesim_loads_nothing_heavy() -> None:
    code = f"import sys, moesim; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_can_still_be_imported_from_their_former_places() -> None:
    from moesim.hardware import shapes
    from moesim.model.hf_config import shape_from_config

    assert shapes.shape_from_config is shape_from_config
    pytest.importorskip("greenlet")
    from moesim.executor.generate import generate
    from moesim.machine.real import generate as former

    assert former.generate is generate
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = former.absent
