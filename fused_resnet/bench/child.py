"""The parent's end of one child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .settings import ALLOCATORS, Job

__all__ = ["BenchError", "Child"]

WORKER = (sys.executable, "-m", "fused_resnet.bench.worker")
# torch.compile starts processes for Triton's kernels ahead of use; it has none on the CPU.
COMPILE_ENVIRONMENT = {"cpu": {"TORCH_WARM_POOL": "0"}, "cuda": {}}


class BenchError(RuntimeError):
    """A benchmark that cannot give a result: a child failed or died, or a variant computes something else."""


class Child:
    """A process of ``command``, else of :mod:`.worker`. It lives no longer than its ``with`` block, nor than this one.

    It has a session of its own, so that Ctrl-C reaches the parent only. Its standard error goes to a file, which cannot
    block it as a pipe could.
    """

    def __init__(self, job: Job, allocator: str, command: Sequence[str] | None = None) -> None:
        self.name = f"{job.model}, variant {job.variant}"
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            command or WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
            env=os.environ
            | ALLOCATORS[allocator]
            | COMPILE_ENVIRONMENT[job.device]
            | {"OMP_NUM_THREADS": str(job.threads)},
        )
        self.send(**job._asdict())

    def send(self, **request: Any) -> None:
        """Writes a request; its reply is still to be read with :meth:`receive`."""
        assert self._process.stdin is not None
        with suppress(OSError):  # where it died, receive() says of what
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        """The reply to the oldest request without one. Raises BenchError where the child failed or died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BenchError(f"{self.name}: the process ended with code {code}: {self._last_words()}")
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
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session: torch.compile has started processes of its own
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(OSError):  # what a dead child did not read
                stream.close()  # type: ignore[union-attr]

    def _last_words(self, lines: int = 3) -> str:
        self._stderr.seek(0)
        return " | ".join(self._stderr.read().split("\n")[-lines - 1 :]).strip(" |") or "nothing on stderr"
