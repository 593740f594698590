"""Which tests of the op suite run on the variants of ``cuda`` and ``cuda_emulated``: what reaches fused convolutions.

Without a variant an op goes where a user's call would go. ``-fused`` sends every convolution to our kernels, those of
float32 without tf32, at the tolerances of all backends; ``-tf32`` lets them round to tf32, as PyTorch does unless told.
Stock never does: both sides of a comparison would have the same error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support import cases
from support.precision import convolutions_in

__all__ = ["VARIANTS", "is_worth_emulating", "variant"]

VARIANTS = ("fused", "tf32")

# tf32 has 10 bits of mantissa: rounding is off by at most 2^-11, 5e-4, in each of two operands of a product, and in y,
# which the statistics' gradients are made of.
_TF32_TOLERANCE = 1e-3


def is_worth_emulating(item: pytest.Item) -> bool:
    """False for a test that a variant has no use for, true for everything else."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return True
    name, _, variant = str(item.callspec.params.get("target", "")).partition("-")
    if name not in ("cuda", "cuda_emulated") or not variant:
        return True
    if item.path.name not in ("test_bn_act_conv.py", "test_conv_bn_add_act.py"):
        return False
    if variant == "tf32":
        return "matches_stock" in item.name and "float32" in item.name
    return not any(word in item.name for word in ("float64", "gradcheck", "opcheck", "double_backward"))


@contextmanager
def variant(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs a test as the variant asks, and stock PyTorch beside it in float32; as a user would where it is empty."""
    if name:
        monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    if name == "tf32":
        monkeypatch.setitem(cases.TOLERANCE, torch.float32, _TF32_TOLERANCE)
        # Ours alone: PyTorch's setting would reach stock on a device too. tests/cuda obeys the setting itself.
        monkeypatch.setattr("fused_resnet.backends.cuda.fused_conv.tf32_is_allowed", lambda: True)
    with convolutions_in("ieee"):
        yield
