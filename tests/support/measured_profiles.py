"""Measured hardware profiles with invented figures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from workloads import TINY_CONFIG

from moesim.config.yaml_document import dump_document
from moesim.hardware.hardware import PROFILES
from moesim.hardware.measurement import shape_profile
from moesim.model.hf_config import shape_from_config
from moesim.model.shapes import ModelShape


def tiny_shape(**changes: Any) -> ModelShape:
    """Return the shape of the traces of `tiny_trace`."""
    return shape_from_config({**TINY_CONFIG, **changes})


def random_times(seed: int, shape: ModelShape) -> dict[str, Any]:
    """Return an `operations` entry for a shape, as plain data."""
    rng = random.Random(seed)

    def some(most: float) -> float:
        return rng.choice([0.0, round(rng.random() * most, 3), rng.random() * most])

    def layer() -> dict[str, float]:
        keys = ("token_ns", "sequence_ns", "kv_token_ns", "pair_ns")
        return {"base_ns": some(30_000), **{key: some(900) for key in keys}}

    tokens = sorted(rng.sample(range(1, 40), rng.randint(1, 6)))
    return {
        "shape": shape_profile(shape).model_dump(),
        "experts": {
            "call_ns": some(9_000),
            "tokens": tokens,
            "each_ns": sorted(some(90_000) for _ in tokens),
        },
        "front": layer(),
        "dense": layer(),
        "first": layer(),
        "tail": {"base_ns": some(50_000), "token_ns": some(900), "sampled_ns": some(9_000)},
        "readback": {"base_ns": some(30_000), "byte_ns": some(20)},
        "landing_ns": some(60_000),
        "copy_factor": 1 + some(2),
        "fetch": {key: some(40_000) for key in ("call_ns", "event_ns", "copy_ns")},
        "residuals": {
            "front": {
                "fitted": 9,
                "held_out": 9,
                "error_median": 0.02,
                "error_p90": 0.1,
                "bias": -0.01,
                "interval": 0.01,
            }
        },
    }


def measured_profile(path: Path, *times: dict[str, Any]) -> Path:
    """Write a profile in which every figure is measured, with these `operations`."""
    text = (PROFILES / "rtx-4090.yaml").read_text().replace("kind: assumed", "kind: measured")
    data = yaml.safe_load(text)
    data["measured"] = {"device": "cpu", "date": "2026-01-02", "machine": {"cores": 2}}
    data["overlap"] = {"compute": 1.25, "copies": 1}
    data["operations"] = list(times)
    path.write_text(dump_document(data))
    return path
