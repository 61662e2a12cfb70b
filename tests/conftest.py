"""What all tests share: settings of hypothesis, the shared data, a tiny trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from paths import SHARED
from tiny_traces import tiny_trace

from moesim.errors import UsageError
from moesim.executor.device import DEVICES, Device, open_device
from moesim.trace import Trace, from_esft

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is read: no test asks the network

# Where the shell that starts the tests ignores Ctrl-C (a background job), children would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples in every run; `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("moesim", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("moesim")

STUDIES = Path(__file__).parent / "studies"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of the studies as slow: they train small models and run whole programs."""
    for item in items:
        if item.path.is_relative_to(STUDIES):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lives beside the repository and is never part of it."""
    if not SHARED.is_dir():
        pytest.skip("the shared data (../shared) is not here")
    return SHARED


@pytest.fixture(scope="session")
def esft(shared: Path) -> Callable[[str], Trace]:
    """Real routing of DeepSeek-V2-Lite, by task: intent, law, summary, translation."""
    folder = shared / "data/routing/esft_deepseek_v2_lite"
    return cache(lambda task: from_esft(folder / f"{task}.npz"))


@pytest.fixture
def tiny() -> Trace:
    """Three requests, 11 rows, two layers of five experts, top-2, with every optional array."""
    return tiny_trace()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each kind of device that this machine has, one after another."""
    try:
        opened = open_device(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, as the real machine does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
