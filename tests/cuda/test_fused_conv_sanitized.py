"""The fused convolution's tests again, on the sanitizers' builds: undefined behaviour, races, unwritten memory.

The exercises of tests/cuda_on_cpu run on these builds too; here are more types and both tiles.
"""

from __future__ import annotations

import pytest
from cuda_on_cpu.sanitized import FUSED_CONV, KERNELS, assert_nothing_is_reported

SELECTIONS = {"asan": KERNELS, "tsan": KERNELS, "shadow": "matches_stock"}


@pytest.mark.timeout(900)  # where builds and other tests share the machine
@pytest.mark.parametrize("mode", SELECTIONS)
def test_fused_conv(mode: str) -> None:
    assert_nothing_is_reported(mode, SELECTIONS[mode], FUSED_CONV)
