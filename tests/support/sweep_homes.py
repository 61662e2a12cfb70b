"""Small sweeps for tests of places: their folder with a trace, and what their runs wrote."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from moesim.trace.synthetic import SyntheticKnobs, synthesize

KNOBS = SyntheticKnobs(requests=3, prompt_tokens=2, output_tokens=3, num_layers=32, num_experts=8)


def sweep_home(
    folder: Path, keys: str, *, vram: str = "80GB", knobs: SyntheticKnobs = KNOBS
) -> Path:
    """Return `folder` with a trace and a scenario `demo.yaml`, which ends with the lines `keys`."""
    synthesize(knobs).save(folder / "trace")
    (folder / "demo.yaml").write_text(
        f"trace: trace\nmodel: mixtral-8x7b\nhardware: {{profile: rtx-4090, vram: {vram}}}\n"
        f"bounds: false\n{keys}"
    )
    return folder


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file of every run, without the wall time of a manifest."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            text = file.read_bytes()
            if file.name == "manifest.json":
                text = json.dumps({**json.loads(text), "wall_s": None}).encode()
            digests[file.relative_to(folder).as_posix()] = sha256(text).hexdigest()
    return digests
