"""The op suite and the fused convolution's tests again, on the kernels built with sanitizers: memory and undefined
behaviour, races, unwritten memory.

The exercises of tests/cuda_on_cpu run on these builds too; here are all types and activations, and both tiles.
"""

from __future__ import annotations

import pytest
from cuda_on_cpu.sanitized import KERNELS, assert_nothing_is_reported

# The shadow knows of shared memory alone, of which all activations make the same use; the variants of an op have their
# twin in the fused convolution's tests.
SELECTIONS = {
    "asan": KERNELS,
    "tsan": KERNELS,
    "shadow": "matches_stock and (test_fused_conv or cuda_emulated and test_matches_stock"
    " and not (89 or emulated-fused or emulated-tf32))",
}


@pytest.mark.timeout(900)  # where builds and other tests share the machine
@pytest.mark.parametrize("mode", SELECTIONS)
def test_nothing_is_reported(mode: str) -> None:
    assert_nothing_is_reported(mode, SELECTIONS[mode])
