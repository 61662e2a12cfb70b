"""Files of `torch.save`, read without running what they hold.

Only zip archives are read, and only with `weights_only=True`: tensors, lists, dicts, numbers and
texts. A checksum and the unpacked size are checked first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.errors import MissingExtra, SourceError, first_line
from moesim.trace.importers.arrays import check_zip
from moesim.trace.importers.source import Glimpse, nature

__all__ = ["load_torch"]


def load_torch(path: Path) -> Any:
    """Return the content of a `.pt` file.

    Raises:
        SourceError: it is no such file, is damaged, or holds objects that could run code.
        MissingExtra: torch is not installed.
    """
    if not Glimpse(path).is_torch:
        raise SourceError(path, "", f"is {nature(path)}; expected a zip archive of torch.save")
    check_zip(path)
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "reading .pt files") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on files that are not its own
        raise SourceError(path, "", _refusal(error)) from None


def _refusal(error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Unsupported" in text:
        return (
            "is refused: a .pt file is a pickle, and this one holds more than tensors, numbers, "
            "texts, lists and dicts (torch.load with weights_only=True)"
        )
    return f"is a .pt file that torch cannot read: {first_line(error)}"
