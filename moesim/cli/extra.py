"""torch for commands that run models: loaded quietly, with a number of threads."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["ThreadsOption", "start_torch"]

ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads (default: chosen by torch).")
]


def start_torch(what: str, threads: int | None) -> None:
    """Load torch for `what` ("training a model"); None keeps torch's own number of threads.

    Raise `MissingExtra` without the torch extra.
    """
    from moesim.cli.progress import progress
    from moesim.record.extra import prepare_torch

    # Before `import torch`: without the extra, this says what to install.
    prepare_torch(what)
    with progress("starting torch"):
        import torch
        from transformers.utils import logging

    # Its bars would be written between those of moesim.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads is not None:
        torch.set_num_threads(threads)
