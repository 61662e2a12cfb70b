"""A model and its tokenizer, from a Hub id or a local folder; weights from safetensors only."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from moesim.errors import UsageError, first_line

_OWN_KINDS = (  # on import these modules register their models with transformers
    "moesim.training.readme.model",
    "moesim.training.gated",
)
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> tuple[Any, Any]:
    """Return (model in evaluation mode on `device`, tokenizer or None if the model has none).

    `dtype` is `auto` (as stored) or a type of torch. Raise `UsageError` that says what is wrong.
    """
    from transformers import AutoConfig

    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    target = _device(device)
    source, options = _source(name, revision)
    try:
        # The configuration first: it says of which class the model is.
        config = AutoConfig.from_pretrained(source, **options)
        model = _class_for(config).from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: cannot load this model: {first_line(error)}") from error
    return model.eval().to(target), _tokenizer(source, options)


def load_empty(name: str | Path, *, revision: str | None = None) -> tuple[Any, Any]:
    """Return (model without weights, tokenizer or None): what `load_model` would build.

    Only the configuration and the tokenizer are read. Raise `UsageError` as `load_model` does.
    """
    from transformers import AutoConfig

    source, options = _source(name, revision)
    try:
        config = AutoConfig.from_pretrained(source, **options)
        kind = _class_for(config)
        with torch.device("meta"):
            build = getattr(kind, "from_config", None) or kind._from_config
            model = build(config)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: cannot build this model: {first_line(error)}") from error
    return model.eval(), _tokenizer(source, options)


def _source(name: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return what transformers loads, and with which options.

    Raise `UsageError` for a folder that is absent or holds no model.
    """
    know_own_kinds()
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise UsageError(f"{name}: no config.json in this folder; is it a saved model?")
    if not local and (folder.is_absolute() or str(name).startswith((".", "~"))):
        raise UsageError(f"{name}: no such folder")
    source = str(folder) if local else str(name)
    return source, {"revision": revision, "local_files_only": local}


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError):
        return None


def _class_for(config: Any) -> Any:
    """Return the class that generates text with a configuration.

    It is the one that saved the model, if it generates. Otherwise it is the first auto class that
    knows the configuration; models that read images or sound are known to others than text models.
    """
    import transformers

    named = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if named is not None and callable(getattr(named, "generate", None)):
        return named
    text = "Seq2SeqLM" if getattr(config, "is_encoder_decoder", False) else "CausalLM"
    kinds = (text, "ImageTextToText", "MultimodalLM", "Seq2SeqLM", "CausalLM")
    factories: list[Any] = [
        getattr(transformers, f"AutoModelFor{kind}")
        for kind in kinds
        if hasattr(transformers, f"AutoModelFor{kind}")
    ]
    return next((f for f in factories if type(config) in f._model_mapping), factories[0])


def know_own_kinds() -> None:
    """Register the models that this project defines with transformers."""
    for module in _OWN_KINDS:
        import_module(module)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: try cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: torch sees no CUDA device here; try cpu")
    return device
