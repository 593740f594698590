"""Which convolutions the cuda backend computes itself."""

from __future__ import annotations

import pytest
import torch

from fused_resnet.backends.arguments import Conv
from fused_resnet.backends.cuda.conv_algorithm import Geometry, conv_algorithm


def geometry(
    c: int = 64,
    k: int = 64,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    batch: int = 2,
    size: int = 8,
    dtype: torch.dtype = torch.bfloat16,
) -> Geometry:
    conv = Conv((stride, stride), (padding, padding), (1, 1), groups)
    return Geometry(conv, (batch, c, size, size), (k, c // groups, kernel, kernel), dtype)


@pytest.mark.parametrize(
    ("case", "want"),
    [
        (geometry(), "fused"),
        (geometry(dtype=torch.float16, stride=2), "fused"),
        (geometry(dtype=torch.float32), "cudnn"),
        (geometry(dtype=torch.float64), "cudnn"),
        (geometry(kernel=3, padding=1), "cudnn"),
        (geometry(groups=2), "cudnn"),
        (geometry(c=12), "cudnn"),
        (geometry(k=63), "cudnn"),
        (geometry(padding=1), "cudnn"),
        (geometry(batch=0), "cudnn"),
        (geometry(batch=2**23), "cudnn"),  # 2^29 pixels
    ],
    ids=str,
)
def test_default(case: Geometry, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSED_RESNET_CUDA_CONV", raising=False)
    assert conv_algorithm(case) == want


def test_forced_where_there_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    assert conv_algorithm(geometry(c=3, k=5, kernel=7, dtype=torch.float32)) == "fused"
    assert conv_algorithm(geometry(dtype=torch.float64)) == "cudnn"
    assert conv_algorithm(geometry(batch=0)) == "cudnn"
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "cudnn")
    assert conv_algorithm(geometry()) == "cudnn"


def test_unknown_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "winograd")
    with pytest.raises(ValueError, match="expected auto or one of fused, cudnn, got 'winograd'"):
        conv_algorithm(geometry())
