"""A training under way in one safetensors file: its tensors, and its story as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesim.errors import MoesimError
from moesim.files import whole_file


def save(path: Path, story: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write whole or not at all. Raises `OutputError`."""
    from safetensors.torch import save_file

    with whole_file(path) as partial:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            partial,
            metadata={"story": json.dumps(story)},
        )


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The story and the tensors. Raises `MoesimError` for anything else than a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            story = json.loads(file.metadata()["story"])
            return story, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise MoesimError(
            f"{path} is no checkpoint of a training ({error}); delete it to begin anew"
        ) from error


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """What an optimizer remembers of parameters, as `name.key`."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def put_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    remembered: Mapping[str, Tensor],
) -> None:
    """Give an optimizer its memory back."""
    for full_name, moment in remembered.items():
        name, _, key = full_name.rpartition(".")
        optimizer.state[parameters[name]][key] = moment.clone()
