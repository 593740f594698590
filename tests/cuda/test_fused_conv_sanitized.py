"""The fused convolution's tests again, on the sanitizers' builds: undefined behaviour, races, unwritten memory.

The exercises of tests/cuda_on_cpu run on these builds too; here are more types and both tiles.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from cuda_on_cpu import build, cuda_emulated

# TSan takes some tenths of a second for each block: it gets the smallest shapes.
SELECTION = {
    "asan": "test_matches_stock or test_large_tile or test_inference or test_tf32_gradients",
    "tsan": "matches_stock and (grouped-tails or large and 1x1-stride2 and bfloat16 or 1x1-stride2-torch.float32)",
    "shadow": "matches_stock",
}


@pytest.mark.parametrize("mode", SELECTION)
def test_fused_conv(mode: str) -> None:
    cuda_emulated.ensure()
    build.build(mode, cuda_emulated.FOLDER / mode)
    tests = str(build.ROOT / "tests" / "cuda" / "test_fused_conv.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", SELECTION[mode], tests],
        cwd=build.ROOT,
        env=build.environment(mode),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
