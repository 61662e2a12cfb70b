"""A trace folder is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_traces import EXPERTS, assert_same, tiny_trace

from moesim.errors import OutputError, TraceError
from moesim.trace import Trace, TraceMeta, TraceWriter, validate_trace

META = TraceMeta(num_layers=1, num_experts=EXPERTS, top_k=2)


def request(rows: int = 4, **changes: Any) -> dict[str, Any]:
    """Return one well-formed request: `rows` rows, two of them decoded."""
    ids = np.tile(np.array([[[0, 1]]]), (rows, 1, 1))
    return {
        "expert_ids": ids,
        "gate_weights": np.full(ids.shape, 0.5),
        "prompt_tokens": rows - 2,
        "output_tokens": 3,
        **changes,
    }


def test_nothing_bears_the_name_before_the_end(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", META, shard_rows=1) as writer:
        for _ in range(3):
            writer.add_request(**request())
            assert not (tmp_path / "trace").exists()
        with pytest.raises(TraceError, match="not finished"):
            _ = writer.trace
    assert writer.trace.num_rows == writer.close().num_rows == 12


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def crash() -> None:
        with TraceWriter(tmp_path / "trace", META, shard_rows=1) as writer:
            writer.add_request(**request())
            raise error

    with pytest.raises(error):
        crash()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_trace_that_was_to_be_replaced(tiny: Trace, tmp_path: Path) -> None:
    tiny.save(tmp_path / "trace")

    def crash() -> None:
        with TraceWriter(tmp_path / "trace", META, force=True) as writer:
            writer.add_request(**request())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert_same(tiny, validate_trace(tmp_path / "trace"))
    assert [file.name for file in tmp_path.iterdir()] == ["trace"]


def test_a_trace_without_rows_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", META)
    with pytest.raises(TraceError, match="at least one row"):
        writer.close()
    assert list(tmp_path.iterdir()) == []
    writer.abort()


def test_an_abandoned_trace_leaves_nothing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", META, shard_rows=1)
    writer.add_request(**request())
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "rows missing": (request(prompt_tokens=3), "expert_ids.*need 5 rows, not 4"),
    "weights of fewer rows": (request(gate_weights=np.ones((3, 1, 2))), "gate_weights.*not 3"),
    "fewer arrays than the first": (request(gate_weights=None), "other arrays"),
    "an id out of range": (request(expert_ids=np.full((4, 1, 2), 77)), "row 4.*77.*range"),
    "no prompt": (request(rows=2), "request 1.*prompt_tokens"),
    "no output": (request(prompt_tokens=5, output_tokens=0), "request 1.*output_tokens"),
    "an arrival before time": (request(arrival_s=-1.0), "request 1.*arrival_s"),
    "an arrival that never comes": (request(arrival_s=float("inf")), "request 1.*arrival_s"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_refused_at_once_and_harms_no_other(case: str, tmp_path: Path) -> None:
    bad, message = BAD_REQUESTS[case]
    with TraceWriter(tmp_path / "trace", META) as writer:
        writer.add_request(**request())
        with pytest.raises(TraceError, match=message):
            writer.add_request(**bad)
        writer.add_request(**request(rows=5))
    assert validate_trace(tmp_path / "trace").requests["num_rows"].tolist() == [4, 5]


def test_the_writer_keeps_no_hold_on_what_it_was_given(tmp_path: Path) -> None:
    buffer = np.tile(np.array([[[0, 1]]], np.uint8), (4, 1, 1))
    with TraceWriter(tmp_path / "trace", META) as writer:
        writer.add_request(**request(expert_ids=buffer))
        buffer[:] = 3
    assert writer.trace.expert_ids[:].tolist() == [[[0, 1]]] * 4


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_provenance_that_json_cannot_hold_is_refused_before_recording(
    value: object, tmp_path: Path
) -> None:
    meta = TraceMeta(num_layers=1, num_experts=5, top_k=2, provenance={"value": value})
    with pytest.raises(TraceError, match=r"provenance.*plain JSON"):
        TraceWriter(tmp_path / "trace", meta)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_an_output_error_naming_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/trace: .*file is a file, where a folder"):
        TraceWriter(tmp_path / "file" / "trace", META)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder without write access")
def test_an_unwritable_folder_is_an_output_error_naming_the_path() -> None:
    with pytest.raises(OutputError, match=r"cannot write /proc/trace: "):
        TraceWriter("/proc/trace", META)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write in any folder"
)
def test_a_read_only_folder_is_an_output_error_naming_the_path(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"trace: Permission denied"):
        TraceWriter(tmp_path / "trace", META)


def test_a_read_only_file_system_is_an_output_error_naming_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, *_: object, **__: object) -> None:
        if not folder.is_dir():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"trace: Read-only file system"):
        TraceWriter(tmp_path / "trace", META)


LIMITED = """
import resource, sys
import numpy as np
from moesim.errors import OutputError
from moesim.trace import TraceMeta, TraceWriter

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
meta = TraceMeta(num_layers=1, num_experts=5, top_k=2)
try:
    with TraceWriter(sys.argv[1], meta, shard_rows=10_000) as writer:
        for _ in range(20):
            writer.add_request(
                expert_ids=np.tile([[[0, 1]]], (500, 1, 1)), prompt_tokens=500, output_tokens=1
            )
except OutputError as error:
    sys.exit(str(error))
"""


# What fails is the shard (20 kB), the request table (2 kB), the header (1 kB), or nothing.
@pytest.mark.parametrize("limit", [10_000, 1_500, 100_000])
def test_a_full_disk_is_an_output_error_naming_the_path(limit: int, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "trace"), str(limit)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if limit == 100_000:
        assert done.returncode == 0, done.stderr
        assert validate_trace(tmp_path / "trace").num_rows == 10_000
    else:
        assert done.stderr.strip() == f"cannot write {tmp_path / 'trace'}: File too large"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["requests.parquet", "trace.json"])
def test_a_disk_that_fills_up_late_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    step = {"requests.parquet": "_write_requests", "trace.json": "write_json"}[name]
    monkeypatch.setattr(f"moesim.trace.writer.{step}", full)
    with pytest.raises(OutputError, match=r"trace: No space left on device"):
        tiny_trace().save(tmp_path / "trace")
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
import itertools, sys
import numpy as np
from moesim.trace import TraceMeta, TraceWriter

meta = TraceMeta(num_layers=1, num_experts=5, top_k=2)
for number in itertools.count():
    with TraceWriter(f"{sys.argv[1]}/trace{number}", meta, shard_rows=1) as writer:
        for _ in range(20):
            writer.add_request(expert_ids=[[[0, 1]]] * 3, prompt_tokens=3, output_tokens=1)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_being_killed_leaves_only_whole_traces_under_their_names(tmp_path: Path) -> None:
    interrupted = whole = 0
    draw = random.Random(5)
    for attempt in range(60):  # where a kill lands is up to the machine; six usually do
        if attempt >= 6 and interrupted:
            break
        random_delay = draw.uniform(0, 0.05)
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random_delay)
            process.kill()
        for found in folder.iterdir():
            if found.name.startswith("."):
                interrupted += 1
            else:
                whole += 1
                assert validate_trace(found).num_rows == 60
        tiny_trace().save(folder / "trace_after")
    assert interrupted, "no kill came in the middle of writing: the test proved nothing"
    assert whole
