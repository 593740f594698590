"""A process that has imported everything, of which the child processes of a benchmark are copies.

PyTorch and torchvision take 3 to 4 seconds of a processor to import. A copy is there at once, in the state of a process
that has just imported them: nothing has been computed, and the settings of malloc and OpenMP are those of its start.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .settings import ALLOCATORS

__all__ = ["BenchError", "ForkServer", "last_words", "serve_copies"]

WORKER = (sys.executable, "-m", "fused_resnet.bench.worker")
MESSAGE_BYTES = 4096  # at most; each is a JSON object
STREAMS = 3  # stdin, stdout, stderr


class BenchError(RuntimeError):
    """A benchmark that cannot give a result: a child failed or died, or a variant computes something else."""


class ForkServer:
    """The parent's end of a process of ``command``, else of :mod:`.worker`, under one setting of malloc.

    ``command`` calls :func:`serve_copies` when it has imported what it needs. The process lives no longer than the
    ``with`` block, nor than this one; the copies may outlive it. It has a session of its own, so that Ctrl-C reaches
    the parent only.
    """

    def __init__(self, allocator: str, threads: int, command: Sequence[str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in __exit__
        self._link, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_end:
            self._process = subprocess.Popen(
                command or WORKER,
                stdin=its_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
                env=os.environ | ALLOCATORS[allocator] | {"OMP_NUM_THREADS": str(threads)},
            )

    def start(self, streams: Sequence[int], afresh: bool) -> int:
        """Starts a child with these file descriptors as stdin, stdout and stderr; its process ID.

        It is a copy, or a process of the same command that starts ``afresh``. Raises BenchError where the server died.
        """
        with suppress(OSError):  # where it died, _reply() says of what
            socket.send_fds(self._link, [json.dumps({"afresh": afresh}).encode()], streams)
        return int(self._reply("started")["started"])

    def wait(self, pid: int) -> int:
        """The exit status of a child that ends, negative for a signal's number; raises as :meth:`start`."""
        with suppress(OSError):
            self._link.send(json.dumps({"wait": pid}).encode())
        while (reply := self._reply("ended"))["ended"] != pid:
            pass
        return int(reply["status"])

    def _reply(self, kind: str) -> dict[str, Any]:
        """The next reply of that kind: of a request that Ctrl-C cut off, another one may still be on its way."""
        with suppress(ConnectionResetError):
            while message := self._link.recv(MESSAGE_BYTES):
                reply: dict[str, Any] = json.loads(message)
                if kind in reply:
                    return reply
        raise BenchError(f"the process ended with code {self._process.wait()}: {last_words(self._stderr)}")

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._link.close()
        self._stderr.close()


def last_words(stderr: Any, lines: int = 3) -> str:
    """The end of what a process wrote to its standard error, a file."""
    stderr.seek(0)
    return " | ".join(stderr.read().split("\n")[-lines - 1 :]).strip(" |") or "nothing on stderr"


def serve_copies() -> None:
    """Where stdin is the link to a :class:`ForkServer`, returns in each copy only, its standard streams in place.

    Elsewhere it returns at once: in a child that starts afresh.
    """
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        return
    with suppress(ImportError):
        importlib.import_module("torchvision")
    link = socket.socket(fileno=0)
    while True:
        message, streams, _, _ = socket.recv_fds(link, MESSAGE_BYTES, STREAMS)
        if not message:  # the parent is gone
            os._exit(0)
        request = json.loads(message)
        if "wait" in request:
            pid = request["wait"]
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            link.send(json.dumps({"ended": pid, "status": status}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            link.detach()
            _begin(streams, request["afresh"])
            return
        for stream in streams:
            os.close(stream)
        link.send(json.dumps({"started": pid}).encode())


def _begin(streams: Sequence[int], afresh: bool) -> None:
    """A copy's own session and standard streams. CUDA may not work in a copy, so there the command starts anew."""
    os.setsid()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    if afresh:
        os.execv(sys.executable, sys.orig_argv)
