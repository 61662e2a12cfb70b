"""An unfinished training in one safetensors file: tensors, and a *story* (its history) as JSON."""

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
    """Write the whole file or nothing. Raise `OutputError` if it cannot be written."""
    from safetensors.torch import save_file

    # Under a temporary name first, so that a kill cannot destroy the last good checkpoint.
    with whole_file(path) as partial:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            partial,
            metadata={"story": json.dumps(story)},
        )


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the story and the tensors. Raise `MoesimError` for anything but a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            story = json.loads(file.metadata()["story"])
            return story, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise MoesimError(
            f"{path} is not a checkpoint of a training ({error}); delete it to start again"
        ) from error


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, with the prefix removed."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return an optimizer's state of each parameter, as `name.key`."""
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
    """Put the state that `moments` returned back into an optimizer."""
    for full_name, moment in remembered.items():
        name, _, key = full_name.rpartition(".")
        # A clone, because the optimizer updates its state in place.
        optimizer.state[parameters[name]][key] = moment.clone()
