"""Commands on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["MOESIM", "left_on_a_terminal", "on_a_terminal"]

MOESIM = [sys.executable, "-m", "moesim"]


def on_a_terminal(
    arguments: Sequence[str], kill_at: str | None = None, columns: int = 100
) -> tuple[int, str, list[str]]:
    """Return exit code, stdout (a pipe), and the lines on a terminal that is stderr.

    Ctrl-C is sent as soon as the terminal shows `kill_at`.
    """
    code, output, shown = _shown_by(arguments, kill_at, columns)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return code, output, [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def left_on_a_terminal(arguments: Sequence[str], columns: int = 100) -> list[str]:
    """Return the lines that a command leaves on a terminal, which is its stderr."""
    code, _, shown = _shown_by(arguments, None, columns)
    assert code == 0, shown
    return [line for line in _screen(shown) if line.strip()]


def _shown_by(arguments: Sequence[str], kill_at: str | None, columns: int) -> tuple[int, str, str]:
    """Return exit code, stdout, and all that a command writes to a terminal.

    However the command ends, it must leave a terminal that shows its cursor.
    """
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [*MOESIM, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
            if kill_at is not None and kill_at.encode() in shown:
                process.send_signal(signal.SIGINT)
                kill_at = None
    except OSError:  # how Linux reports that the other side of a terminal is closed
        pass
    os.close(ours)
    output, _ = process.communicate()
    assert shown.rfind(b"\x1b[?25h") >= shown.rfind(b"\x1b[?25l"), "the cursor stays hidden"
    return process.returncode, output, shown.decode()


def _screen(shown: str) -> list[str]:
    """Return the lines of a terminal after a text: it may go up, go left and erase its line."""
    lines, row, column = [""], 0, 0
    for up, erase, _, text in re.findall(
        r"\x1b\[(\d*)A|\x1b\[2(K)|(\x1b\[[0-9;?]*[A-Za-z])|([\r\n]|[^\x1b\r\n]+)", shown
    ):
        if erase:
            lines[row] = ""
        elif text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text == "\r":
            column = 0
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif up:
            row -= int(up)
    return lines
