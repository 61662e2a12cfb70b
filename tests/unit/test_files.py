"""A folder appears whole or not at all, and replaces only what it may replace."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import OutputError, UsageError
from moesim.files import check_may_write, clean_up, whole_file, whole_folder
from moesim.locks import exclusive


def fill(path: Path, text: str, *, force: bool = False) -> None:
    with whole_folder(path, force=force) as folder:
        (folder / "file").write_text(text)


def overtaken(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "file").write_text("the slower writer")
        path.mkdir()
        (path / "file").write_text("the faster writer")


def test_what_appeared_while_a_folder_was_written_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="written by another process meanwhile"):
        overtaken(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "the faster writer"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "theirs")
    (tmp_path / "out").symlink_to("elsewhere")
    fill(tmp_path / "out", "ours", force=True)
    assert (tmp_path / "out" / "file").read_text() == "ours"
    assert (tmp_path / "elsewhere" / "file").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]


def interrupted(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "first"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]
    with pytest.raises(OutputError, match=r"file\.txt"), whole_file(path / "below"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        said = "is a named pipe, not a regular file"
        with pytest.raises(OutputError, match=said), whole_file(path):
            pass
    assert pipe.is_fifo()
    assert link.is_symlink()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files have no path here")
def test_a_link_to_an_open_file_is_not_replaced_even_where_the_file_is_regular(
    tmp_path: Path,
) -> None:
    link = tmp_path / "stdout"
    with (tmp_path / "out.txt").open("w") as out:
        link.symlink_to(f"/proc/self/fd/{out.fileno()}")
        with pytest.raises(OutputError, match="is a link to an open file"), whole_file(link):
            pass
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("method", "call"), [("mkdir", 1), ("rename", 1), ("rename", 2)], ids=lambda value: str(value)
)
def test_an_interrupt_after_any_step_leaves_one_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    fill(tmp_path / "out", "before")
    original, calls = getattr(Path, method), []

    def interrupt(path: Path, *arguments: Any, **options: Any) -> Any:
        answer = original(path, *arguments, **options)
        if ".partial-" in str((path, *arguments)):
            calls.append(path)
            if len(calls) == call:
                raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(Path, method, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", "after", force=True)
    monkeypatch.undo()
    assert (tmp_path / "out" / "file").read_text() == ("after" if call == 2 else "before")
    fill(tmp_path / "out", "again", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- several processes ----------------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from moesim.files import whole_file, whole_folder
with {writer}(Path(sys.argv[1])) as partial:
    ((partial / "file") if partial.is_dir() else partial).write_text("half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def writing(path: Path, writer: str = "whole_folder") -> Iterator[subprocess.Popen[str]]:
    """Yield a process that is writing `path`, and that completes it at a line of input."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE.format(writer=writer), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("writer", ["whole_folder", "whole_file"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, writer: str) -> None:
    with writing(tmp_path / "out", writer) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = [path.name for path in tmp_path.iterdir() if ".partial-" in path.name]
    assert len(left) == 1
    (tmp_path / ".other.partial-x").mkdir()  # another path's
    fill(tmp_path / "out", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".other.partial-x"}


def test_leftovers_of_every_killed_writer_and_of_no_other_are_cleaned_up(tmp_path: Path) -> None:
    clean_up(tmp_path / "absent")
    with writing(tmp_path / "dead"):
        pass
    (tmp_path / ".download.partial-x").mkdir()  # another program's
    with writing(tmp_path / "alive") as process:
        clean_up(tmp_path)
        names = {path.name.partition(".partial-")[0] for path in tmp_path.iterdir()}
        assert names == {".download", ".alive", ".alive.moesim-lock"}
        process.communicate("\n")
    assert {path.name for path in tmp_path.iterdir()} == {".download.partial-x", "alive"}


def test_a_second_writer_is_refused_by_name_and_the_first_is_whole(tmp_path: Path) -> None:
    with writing(tmp_path / "out") as process:
        with pytest.raises(OutputError, match=f"written by process {process.pid} on "):
            fill(tmp_path / "out", "second")
        process.communicate("\n")
        assert process.returncode == 0
    assert (tmp_path / "out" / "file").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_writer_of_a_file_waits_for_the_first(tmp_path: Path) -> None:
    def second() -> None:
        with whole_file(tmp_path / "out") as partial:
            partial.write_text("second")

    with writing(tmp_path / "out", "whole_file") as process:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        process.communicate("\n")
        thread.join()
    assert (tmp_path / "out").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_process_that_waited_for_a_lock_holds_it_alone(tmp_path: Path) -> None:
    """The lock's file that was waited for is gone: a new one must be locked."""
    refusals: list[str] = []

    def second() -> None:
        with exclusive(tmp_path / "out", wait=True):
            try:
                with exclusive(tmp_path / "out"):
                    pass
            except OutputError as error:
                refusals.append(error.reason)

    with writing(tmp_path / "out") as process:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        process.communicate("\n")
        thread.join()
    assert [f"process {os.getpid()} " in reason for reason in refusals] == [True]


def test_the_only_whole_folder_is_kept_where_its_replacement_was_killed(tmp_path: Path) -> None:
    old = tmp_path / ".out.partial-x.old"
    fill(old, "whole")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert (old / "file").read_text() == "whole"
    fill(tmp_path / "out", "new")
    fill(tmp_path / "out", "newer", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_there_are_no_locks_nothing_is_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.locks.fcntl", None)
    (tmp_path / ".out.partial-x").mkdir()
    fill(tmp_path / "out", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.partial-x"}


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".out.moesim-lock").symlink_to("theirs")
    with pytest.raises(OutputError, match="out"), exclusive(tmp_path / "out"):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


def may_write(file: Path) -> None:
    check_may_write(file, "--out", "a table", (".txt", ".txt.gz"), b"made by moesim")


@pytest.mark.parametrize("name", ["table.txt", "table.txt.gz"])
def test_a_file_is_replaced_only_where_moesim_wrote_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    may_write(file)
    for ours in (b"", b"made by moesim 1.0\n1 2 3\n", b"made by moesim\n" + b"1 2 3\n" * 9999):
        file.write_bytes(gzip.compress(ours) if ours and name.endswith("gz") else ours)
        may_write(file)
    for foreign in (b"a letter", gzip.compress(b"a letter"), b"\x1f\x8b, and no gzip"):
        file.write_bytes(foreign)
        with pytest.raises(OutputError, match="moesim did not write it"):
            may_write(file)
        assert file.read_bytes() == foreign


def test_a_name_of_another_kind_of_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--out .*: the name of a table ends in \.txt or"):
        may_write(tmp_path / "table.json")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match=r"--out .*: this is a folder"):
        may_write(tmp_path / "folder.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(OutputError, match="is a named pipe"):
        may_write(tmp_path / "pipe.txt")
