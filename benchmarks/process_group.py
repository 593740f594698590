"""A command with a time limit: what hangs ends with all that it started, and its last words are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["run"]

_TAIL = 4000  # characters
_GRACE_S = 6


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Whether it ended with 0 within the limit, its last characters, and the seconds it took."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # a pipe would wait for whoever inherits it
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | dict(environment or {}),
            )
        except OSError as error:
            return {"ok": False, "tail": str(error), "seconds": 0.0}
        last = ""
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            last = f"\nnot done after {limit_s:.0f} s"
        finally:
            _end(process)
        output.seek(0)
        tail = output.read()[-_TAIL:] + last
    return {"ok": not last and process.returncode == 0, "tail": tail, "seconds": round(time.monotonic() - start, 1)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the session: by an interrupt first, on which pytest and our command line write what they have."""
    if process.poll() is None:
        _signal(process, signal.SIGINT)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):  # the driver may hold a process for ever
        process.wait(_GRACE_S)
