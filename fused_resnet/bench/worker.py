"""The child process of one variant: reads requests and writes replies, one JSON object a line.

The first line of stdin is the :class:`Job`. Each further line is ``{"do": name, ...}`` with a name of ``COMMANDS``, and
gets one reply: what the command returns, or ``{"error": ...}`` and the end of the process. It also ends with stdin, so
with its parent. The child processes of other benchmarks :func:`serve` other commands.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from .environment import facts
from .settings import Job
from .trial import Trial

__all__ = ["main", "serve"]

COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "check": lambda trial, path: {"saved_activation_bytes": trial.check(Path(path))},
    "allocator": lambda trial, name: trial.use_allocator(name) or {},
    "warm_up": lambda trial, at_least_s: {"steps": trial.warm_up(at_least_s)},
    "step": lambda trial, at_least_s: {"step_ms": trial.step_ms(at_least_s), "peak_bytes": trial.peak_bytes()},
}


def main() -> None:
    """Serves a trial."""
    serve(Trial, COMMANDS)


def serve(prepare: Callable[[Job], Any], commands: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Serves the parent until it closes stdin, or until something fails.

    ``prepare`` makes of the job what each command takes as its first argument.
    """
    replies = _private_stdout()
    requests = _requests()

    def reply(**values: Any) -> None:
        print(json.dumps(values), file=replies, flush=True)

    try:
        job = Job(**next(requests))
        subject = prepare(job)
        reply(**facts(job))
        for request in requests:
            reply(**commands[request.pop("do")](subject, **request))
    except Exception as error:  # whatever it is, the parent has to tell the user
        traceback.print_exc()
        reply(error=f"{type(error).__name__}: {error}")


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
