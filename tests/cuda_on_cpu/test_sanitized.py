"""The op tests again, on the kernels built with sanitizers: memory and undefined behaviour, then races."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cuda_on_cpu import build, cuda_emulated

# Files below tests, and which of their tests. TSan takes a fifth of a second for a block: it gets the smallest shapes.
OPS = ("ops/test_bn_add_act.py", "ops/test_bn_act_max_pool.py", "ops/test_bn_act_conv.py")
CONV = ("cuda/test_fused_conv.py",)
SUITES = {
    # Every kernel in every type, layout and activation. The one large image would take minutes under TSan.
    "ops": (OPS, "cuda_emulated and (test_matches_stock or test_parts_and_activations) and not 130 and not grouped"),
    "fused-conv": (CONV, "test_matches_stock or test_large_tile or test_inference or test_tf32_gradients"),
    "fused-conv-small": (
        CONV,
        "test_matches_stock and (1x1-tails or 1x1-stride2 or grouped-tails) or large and 1x1-str",
    ),
}


@pytest.mark.parametrize(
    ("mode", "suite"), [("asan", "ops"), ("tsan", "ops"), ("asan", "fused-conv"), ("tsan", "fused-conv-small")]
)
def test_op_suite(mode: str, suite: str) -> None:
    cuda_emulated.ensure()
    build.build(mode, cuda_emulated.FOLDER / mode)
    names, selection = SUITES[suite]
    files = [str(build.ROOT / "tests" / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", selection, *files],
        cwd=build.ROOT,
        env=build.environment(mode),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
