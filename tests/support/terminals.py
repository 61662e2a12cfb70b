"""Commands on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["MOESIM", "on_a_terminal"]

MOESIM = [sys.executable, "-m", "moesim"]


def on_a_terminal(
    arguments: Sequence[str], kill_at: str | None = None, columns: int = 100
) -> tuple[int, str, list[str]]:
    """Return exit code, stdout (a pipe), and the lines on a terminal that is stderr.

    Ctrl-C is sent as soon as the terminal shows `kill_at`. However a command ends, it must leave a
    terminal that shows its cursor.
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
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return process.returncode, output, [line for line in re.split(r"[\r\n]+", text) if line.strip()]
