"""benchmarks/launch_overhead.py measures every op of both GPU backends, and no kernel runs in it."""

from __future__ import annotations

from importlib.util import find_spec

import launch_overhead
import pytest


@pytest.mark.parametrize("backend", launch_overhead.BACKENDS)
def test_every_op_has_its_microseconds(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    if backend == "triton" and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    rows = launch_overhead.main(backend, seconds=0.01)
    assert len(rows) == 7 and all(us > 0 for row in rows.values() for us in row.values())
    assert rows["bn_act_conv"]["op"] > rows["bn_act_conv"]["backend"]
    assert rows["bn_act_conv"]["backend"] < 2000  # interpreted or emulated it takes 10 ms
    assert "| `bn_add_act_backward` |" in capsys.readouterr().out
