"""The process that children are copies of: what they share with it, how they start and end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fused_resnet.bench.fork_server import BenchError, ForkServer

WORKER = """
import os, sys
from fused_resnet.bench.fork_server import serve_copies
imported = os.getpid()
serve_copies()
for line in sys.stdin:
    if line.startswith("exit"):
        os._exit(int(line.split()[1]))
    print(imported == os.getpid(), os.getsid(0) == os.getpid(), "torchvision" in sys.modules, flush=True)
"""


@pytest.fixture
def server():
    with ForkServer("default", 1, [sys.executable, "-c", WORKER]) as server:
        yield server


class Process:
    """A child with pipes."""

    def __init__(self, server, afresh=False):
        its_stdin, stdin = os.pipe()
        stdout, its_stdout = os.pipe()
        self.pid = server.start([its_stdin, its_stdout, 2], afresh)
        os.close(its_stdin)
        os.close(its_stdout)
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)

    def ask(self, line="\n"):
        print(line, file=self.stdin, flush=True)
        return self.stdout.readline().split()


def test_copies_have_the_imports_and_streams_of_their_own(server):
    first, second = Process(server), Process(server)
    assert first.pid != second.pid
    assert first.ask() == second.ask() == ["False", "True", "True"]
    first.stdin.close()
    assert server.wait(first.pid) == 0
    assert second.ask() == ["False", "True", "True"]  # no other holds its streams


def test_a_process_afresh_shares_nothing(server):
    assert Process(server, afresh=True).ask() == ["True", "True", "False"]


def test_how_a_child_ended(server):
    exits, dies = Process(server), Process(server)
    assert exits.ask("exit 7") == []
    os.kill(dies.pid, signal.SIGKILL)
    assert server.wait(dies.pid) == -9 and server.wait(exits.pid) == 7


def test_a_late_reply_is_no_answer_to_another_question(server):
    """Ctrl-C after the request to start a child and before the reply to it."""
    reply = server._reply
    server._reply = lambda kind: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        server.start([0, 1, 2], afresh=False)
    server._reply = reply
    with open(os.devnull) as null:
        pid = server.start([null.fileno(), 1, 2], afresh=False)
    assert Path(f"/proc/{pid}").exists() and server.wait(pid) == 0


@pytest.mark.parametrize(
    "script", ["raise SystemExit('no such module')", "import os; os.write(2, b'cut off'); os._exit(3)"]
)
def test_a_server_that_dies_says_its_last_words(script):
    with (
        ForkServer("default", 1, [sys.executable, "-c", script]) as server,
        pytest.raises(BenchError, match=r"ended with code [13]: (no such module|cut off)"),
    ):
        server.start([0, 1, 2], afresh=False)


def test_it_ends_with_its_parent():
    parent = f"""
import os, time
from fused_resnet.bench.fork_server import ForkServer
server = ForkServer("default", 1, [{sys.executable!r}, "-c", {WORKER!r}])
print(server._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 60
    while _state(pid) not in "ZX":
        assert time.monotonic() < end
        time.sleep(0.05)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return "X"
