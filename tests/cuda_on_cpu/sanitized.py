"""Tests again on a build with a sanitizer, each mode in a process of its own.

``PYTHONPATH=tests python -m cuda_on_cpu.sanitized MODE ...`` runs all that reaches a kernel: the whole op suite and the
fused convolution's tests. CI runs selections of it, in test_sanitized.py and tests/cuda/test_fused_conv_sanitized.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from cuda_on_cpu import build, cuda_emulated

__all__ = ["KERNELS", "OP_SUITE", "assert_nothing_is_reported"]

_OPS = build.ROOT / "tests" / "ops"
OP_SUITE = [str(_OPS / f"test_{op}.py") for op in ("bn_add_act", "bn_act_max_pool", "bn_act_conv", "conv_bn_add_act")]
# Gradcheck and the like are PyTorch's code, slow, and reach no kernel that others do not.
KERNELS = "(cuda_emulated or test_fused_conv) and not gradcheck and not opcheck and not compile"


def command(selection: str, files: Iterable[str]) -> list[str]:
    options = ("-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=0")
    return [sys.executable, "-m", "pytest", *options, "-k", selection, *files]


def assert_nothing_is_reported(mode: str, selection: str, files: Iterable[str]) -> None:
    """Runs the tests of ``selection`` on the build of this mode: all pass, and none is skipped."""
    cuda_emulated.ensure()
    build.build(mode, cuda_emulated.FOLDER / mode)
    done = subprocess.run(
        command(selection, files),
        cwd=build.ROOT,
        env=build.environment(mode),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


if __name__ == "__main__":
    suite = [*OP_SUITE, str(build.ROOT / "tests" / "cuda" / "test_fused_conv.py")]
    for mode in sys.argv[1:]:
        build.build(mode, cuda_emulated.FOLDER / mode)
        print(f"{mode}: {KERNELS}", flush=True)
        subprocess.run(command(KERNELS, suite), cwd=build.ROOT, env=build.environment(mode), check=True)
