"""``make gpu-check`` as far as it runs without a GPU: a dry run of all of it, the table, and the refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
import torch
from cuda_on_cpu import build, cuda_emulated

from fused_resnet.backends import backends


def test_every_kernel_has_a_row_that_counts_its_bytes() -> None:
    cuda_emulated.ensure()
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)

    def one_ms(call) -> float:
        call()
        return 1.0

    rows = {row["kernel"]: row for row in gpu_check.bandwidths(x, one_ms)}
    moved = {name: round(row["gb_per_s"] * 1e6 / x.nbytes, 3) for name, row in rows.items()}
    pooled = 0.25 + 0.25 / 4
    assert moved == {
        "copy": 2,
        "channel_statistics": 1,
        "channel_statistics_backward": 3,
        "bn_add_act": 3,
        "bn_add_act, silu": 3,
        "bn_add_act_backward": 5,
        "bn_act_max_pool": round(1 + pooled, 3),
        "bn_act_max_pool_backward": round(2 + pooled, 3),
    }


def test_dry_run(tmp_path: Path) -> None:
    """The script as it stands, in a process of its own: both files exist, and say what was run."""
    if reason := build.missing():
        pytest.skip(reason)
    command = [sys.executable, gpu_check.__file__, "--dry-run", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{build.ROOT}:{build.ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu-check.json").read_text())
    assert all(result[part]["ok"] for part in gpu_check.PARTS)
    assert {row["variant"] for row in result["bench_rows"]} == {"fused", "eager"}
    tuned = json.loads((tmp_path / "gpu-check-tuned.json").read_text())["choices"]
    assert tuned == {row["key"]: row["chosen"] for row in result["tune_rows"]} != {}
    text = (tmp_path / "gpu-check.md").read_text()
    assert "# gpu-check on no device: a dry run" in text and "| bn_add_act_backward | 2x8x8x8 | torch.float32 |" in text


@pytest.mark.skipif(backends()["cuda"].unavailable is None, reason="there is a device")
def test_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main() == 2
    assert capsys.readouterr().err == f"gpu-check: {backends()['cuda'].unavailable}\n"
