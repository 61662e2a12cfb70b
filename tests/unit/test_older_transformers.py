"""The project's own models work with a transformers that has no `SubConfigSpec` (before 5.23)."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="models need the torch extra")

SCRIPT = """
from transformers import configuration_utils, LlamaConfig
del configuration_utils.SubConfigSpec
from moesim.record.loading import know_own_kinds
from moesim.training.gated import GatedConfig
know_own_kinds()
for base in (None, {"model_type": "llama", "vocab_size": 77}, LlamaConfig(vocab_size=77)):
    config = GatedConfig(base=base)
    assert isinstance(config.base, LlamaConfig), base
    assert config.vocab_size == (77 if base else LlamaConfig().vocab_size)
    again = GatedConfig.from_dict(config.to_dict())
    assert isinstance(again.base, LlamaConfig) and again.vocab_size == config.vocab_size
"""


def test_a_configuration_reads_its_base_without_the_help_of_newer_versions() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
