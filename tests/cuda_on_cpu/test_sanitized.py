"""The op suite again, on the kernels built with sanitizers: memory and undefined behaviour, races, unwritten memory."""

from __future__ import annotations

import pytest
from cuda_on_cpu.sanitized import KERNELS, OP_SUITE, assert_nothing_is_reported

# The shadow knows of shared memory alone, of which all activations make the same use; the variants have their twin in
# tests/cuda.
SELECTIONS = {
    "asan": KERNELS,
    "tsan": KERNELS,
    "shadow": "cuda_emulated and test_matches_stock and not (130 or emulated-fused or emulated-tf32)",
}


@pytest.mark.timeout(900)  # where builds and other tests share the machine
@pytest.mark.parametrize("mode", SELECTIONS)
def test_op_suite(mode: str) -> None:
    assert_nothing_is_reported(mode, SELECTIONS[mode], OP_SUITE)
