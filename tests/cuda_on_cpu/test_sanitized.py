"""The op tests again, on the kernels built with sanitizers: memory and undefined behaviour, races, unwritten memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cuda_on_cpu import build, cuda_emulated

# Every kernel in every type, layout and activation. Races do not depend on the activation; and TSan, to which a block
# of threads is dear, gets no contiguous image here, a block a channel: those of `exercises` have few channels.
# The variants of the target have their twin in tests/cuda.
_PLAIN = "cuda_emulated and not emulated-fused and not emulated-tf32 and "
SELECTIONS = {
    "asan": _PLAIN + "(test_matches_stock or test_parts_and_activations) and not 130",
    "tsan": _PLAIN + "test_matches_stock and not 130 and not contiguous and not sliced",
    "shadow": _PLAIN + "test_matches_stock and not 130",
}
FILES = ("test_bn_add_act.py", "test_bn_act_max_pool.py", "test_bn_act_conv.py")


@pytest.mark.parametrize("mode", SELECTIONS)
def test_op_suite(mode: str) -> None:
    cuda_emulated.ensure()
    build.build(mode, cuda_emulated.FOLDER / mode)
    files = [str(build.ROOT / "tests" / "ops" / name) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", SELECTIONS[mode], *files],
        cwd=build.ROOT,
        env=build.environment(mode),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
