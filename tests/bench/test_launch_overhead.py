"""benchmarks/launch_overhead.py measures every op of both GPU backends, and no kernel runs in it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import launch_overhead
import pytest

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_op_has_its_microseconds(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    if backend == "triton" and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    rows = launch_overhead.main(backend, seconds=0.01)
    assert len(rows) == 7 and all(us > 0 for row in rows.values() for us in row.values())
    assert rows["bn_act_conv"]["op"] > rows["bn_act_conv"]["backend"]
    assert rows["bn_act_conv"]["backend"] < 2000  # interpreted or emulated it takes 10 ms
    assert "| `bn_add_act_backward` |" in capsys.readouterr().out


def test_with_tritons_launcher(tmp_path: Path) -> None:
    """In a process of its own, where kernels are compiled instead of interpreted."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, launch_overhead.__file__, "triton_launcher", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 7 and all(5 < float(row[2]) < 5000 for row in rows)
