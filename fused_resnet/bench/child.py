"""The parent's end of one child process."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from contextlib import suppress
from typing import Any

from .fork_server import BenchError, ForkServer, last_words
from .settings import Job

__all__ = ["BenchError", "Child"]


class Child:
    """A process of ``server`` with a job. It lives no longer than its ``with`` block, nor than this one.

    It has a session of its own, so that Ctrl-C reaches the parent only. Its standard error goes to a file, which cannot
    block it as a pipe could.
    """

    def __init__(self, job: Job, server: ForkServer, name: str | None = None) -> None:
        self.name = name or f"{job.model}, variant {job.variant}"  # in errors
        self._server = server
        self._status: int | None = None  # of its exit
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in __exit__
        its_stdin, requests = os.pipe()
        replies, its_stdout = os.pipe()
        self._requests, self._replies = os.fdopen(requests, "w"), os.fdopen(replies)
        try:
            self.pid = server.start([its_stdin, its_stdout, self._stderr.fileno()], afresh=job.device != "cpu")
        except BenchError as error:
            raise BenchError(f"{self.name}: {error}") from None
        finally:
            os.close(its_stdin)
            os.close(its_stdout)
        self.send(**job._asdict())

    def send(self, **request: Any) -> None:
        """Writes a request; its reply is still to be read with :meth:`receive`."""
        with suppress(OSError):  # where it died, receive() says of what
            print(json.dumps(request), file=self._requests, flush=True)

    def receive(self) -> dict[str, Any]:
        """The reply to the oldest request without one. Raises BenchError where the child failed or died."""
        line = self._replies.readline()
        if not line:
            raise BenchError(f"{self.name}: the process ended with code {self._wait()}: {last_words(self._stderr)}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(f"{self.name}: {reply['error']}")
        return reply

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its reply."""
        self.send(do=do, **arguments)
        return self.receive()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        for kill in (os.kill, os.killpg):  # its session too: torch.compile has started processes of its own
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        with suppress(BenchError):  # a server that died has no children to wait for
            self._wait()
        for stream in (self._requests, self._replies, self._stderr):
            with suppress(OSError):  # what a dead child did not read
                stream.close()

    def _wait(self) -> int:
        """Its exit status, once it has ended."""
        if self._status is None:
            self._status = self._server.wait(self.pid)
        return self._status
