"""The fused convolution's tests again, on the sanitizers' builds: undefined behaviour, races, unwritten memory.

The exercises of tests/cuda_on_cpu run on these builds too; here are more types and both tiles.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_on_cpu.sanitized import assert_nothing_is_reported

# TSan takes some tenths of a second for each block: it gets the smallest shapes.
SELECTION = {
    "asan": "test_matches_stock or test_large_tile or test_inference or test_tf32_gradients",
    "tsan": "matches_stock and (grouped-tails or large and 1x1-stride2 and bfloat16 or 1x1-stride2-torch.float32)",
    "shadow": "matches_stock",
}


@pytest.mark.parametrize("mode", SELECTION)
def test_fused_conv(mode: str) -> None:
    assert_nothing_is_reported(mode, SELECTION[mode], [str(Path(__file__).with_name("test_fused_conv.py"))])
