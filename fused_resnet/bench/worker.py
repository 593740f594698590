"""The child process of one variant: reads requests and writes replies, one JSON object a line.

The first line of stdin is the :class:`Job`. Each further line is ``{"do": name, ...}`` with a name of ``COMMANDS``, and
gets one reply: what the command returns, or ``{"error": ...}``. The process ends with stdin, so also with its parent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from .environment import facts
from .settings import Job
from .trial import Trial

__all__ = ["main"]

COMMANDS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "check": lambda trial, path: {"saved_activation_bytes": trial.check(Path(path))},
    "warm_up": lambda trial, at_least_s: trial.warm_up(at_least_s),
    "step": lambda trial: {"step_ms": trial.step_ms(), "peak_bytes": trial.peak_bytes()},
}


def main() -> None:
    """Serves the parent until it closes stdin."""
    replies = _private_stdout()
    requests = _requests()

    def serve(command: Callable[[], dict[str, Any] | None]) -> None:
        try:
            reply = command() or {}
        except Exception as error:  # whatever it is, the parent has to tell the user
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    trial: Trial

    def start() -> dict[str, Any]:
        nonlocal trial
        job = Job(**next(requests))
        trial = Trial(job)
        return facts(job)

    serve(start)
    for request in requests:
        command = COMMANDS[request.pop("do")]
        serve(lambda command=command, request=request: command(trial, **request))


def _private_stdout() -> TextIO:
    """The stdout that the parent reads; what anyone else prints from now on, C code included, goes to stderr."""
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return private


def _requests() -> Iterator[dict[str, Any]]:
    """The parent's requests. A thread reads them, so that the end of stdin ends the process even in mid-step."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


if __name__ == "__main__":
    main()
