"""The op suite again, on the kernels built with sanitizers: memory and undefined behaviour, races, unwritten memory."""

from __future__ import annotations

import pytest
from cuda_on_cpu.sanitized import KERNELS, OP_SUITE, assert_nothing_is_reported

# ASan runs all of it. To TSan a block of threads is dear: it gets no contiguous image here, a block a channel (those of
# `exercises` have few channels), none of many pixels, and nothing twice. The shadow knows of shared memory alone, of
# which all activations make the same use; the variants have their twin in tests/cuda.
_DEAR = "contiguous or sliced or 130 or same_bits or statistics_where or many_pixels or tf32-stem or tf32-grouped"
SELECTIONS = {
    "asan": KERNELS,
    "tsan": f"{KERNELS} and not ({_DEAR})",
    "shadow": "cuda_emulated and test_matches_stock and not (130 or emulated-fused or emulated-tf32)",
}


@pytest.mark.timeout(900)  # where builds and other tests share the machine
@pytest.mark.parametrize("mode", SELECTIONS)
def test_op_suite(mode: str) -> None:
    assert_nothing_is_reported(mode, SELECTIONS[mode], OP_SUITE)
