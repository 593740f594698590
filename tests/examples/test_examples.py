"""The examples run, as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "swap_torchvision.py": "largest difference from stock",
    "swap_timm.py": "resnet26d: 9 fused",
    "backbones.py": "logits [2, 4, 64, 64]",
    "own_block.py": "2 fused, 0 partial, 0 skipped",
    "train_ddp.py": "9 modules fused, 2 processes with the same weights",
}
ARGUMENTS = {"swap_timm.py": ["resnet26d", "resnetv2_50"], "train_ddp.py": ["--steps", "2"]}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_all_of_them_are_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_runs(name: str) -> None:
    runner = TORCHRUN if name == "train_ddp.py" else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, *runner, str(EXAMPLES / name), *ARGUMENTS.get(name, [])]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert EXPECTED[name] in ran.stdout
