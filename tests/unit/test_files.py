"""A folder appears whole or not at all, and takes the place of nothing that it was not told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.errors import OutputError
from moesim.files import whole_file, whole_folder


def fill(path: Path, text: str, *, force: bool = False) -> None:
    with whole_folder(path, force=force) as folder:
        (folder / "file").write_text(text)


def overtaken(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "file").write_text("the slower writer")
        fill(path, "the faster writer")


def test_what_appeared_while_a_folder_was_written_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="written by somebody else meanwhile"):
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
