"""64-bit offsets: every kernel's last program, on tensors with more elements than 32 bits count.

Their memory is reserved and hardly touched. The strict interpreter raises where 32-bit arithmetic overflows.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")
from triton_strict import only_programs

from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, Conv, MaxPool
from fused_resnet.backends.triton import channel_statistics, conv_wgrad
from fused_resnet.backends.triton.output_gradient import output_gradient

PIXELS, CHANNELS, FEW = 2**21 + 3, 1024, 32
LAST = torch.arange(-16.0, 16).bfloat16()  # the last channels of the last pixel
FILTER = torch.eye(CHANNELS, dtype=torch.bfloat16)[-FEW:, :, None, None]  # [32, C, 1, 1], picks the last channels
ONE_BY_ONE = Conv((1, 1), (0, 0), (1, 1), 1)
POOL = MaxPool((1, 1), (1, 1), (0, 0))  # whose indices are 0
IDENTITY = Activation("identity")


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")


def reserved(channels: int = CHANNELS, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[1, channels, PIXELS, 1]: zeros in the last pixels, LAST at the very end, whatever memory holds before."""
    x = torch.empty(PIXELS * channels, dtype=dtype)
    x[-(2**12) * channels :] = 0
    if dtype.is_floating_point:
        x[-FEW:] = LAST
    return x.view(1, PIXELS, 1, channels).permute(0, 3, 1, 2)


def contiguous() -> torch.Tensor:
    """Of as many channels as there were pixels; the last pixels of the last one, as if they were channels."""
    x = reserved().permute(0, 2, 3, 1).view(1, PIXELS, CHANNELS, 1)
    return backend.bn_add_act(x, None, None, None, IDENTITY).flatten()[-FEW:].view(1, FEW, 1, 1)


def pool_backward() -> torch.Tensor:
    indices = reserved(dtype=torch.uint8)
    return backend.bn_act_max_pool_backward(reserved(), indices, reserved(), None, IDENTITY, POOL)[0]


def conv_backward(*products: bool) -> torch.Tensor | None:
    g_y, mean = reserved(FEW), torch.empty(0)
    args = (g_y, None, None, reserved(), None, IDENTITY, FILTER, g_y, mean, ONE_BY_ONE, products)
    return backend.bn_act_conv_backward(*args)[0]


def conv_forward(channels: int, weight: torch.Tensor) -> torch.Tensor:
    return backend.bn_act_conv(reserved(channels), None, IDENTITY, weight, None, ONE_BY_ONE, False)[0]


def conv_for_inference() -> torch.Tensor:
    return backend.conv_bn_add_act(reserved(FEW), FILTER.transpose(0, 1), None, None, None, IDENTITY, ONE_BY_ONE)


def gradient_of_output() -> torch.Tensor:
    nothing = torch.zeros(CHANNELS)
    return output_gradient(reserved(), nothing, nothing, reserved(), nothing)


CASES: dict[str, Callable[[], torch.Tensor | None]] = {
    "bn_add_act": lambda: backend.bn_add_act(reserved(), None, None, None, IDENTITY),
    "bn_add_act, contiguous": contiguous,
    "bn_add_act_backward": lambda: backend.bn_add_act_backward(reserved(), reserved(), None, None, None, IDENTITY)[0],
    "bn_act_max_pool": lambda: backend.bn_act_max_pool(reserved(), None, IDENTITY, POOL)[0],
    "bn_act_max_pool_backward": pool_backward,
    "bn_act_conv, of x": lambda: conv_forward(CHANNELS, FILTER),
    "bn_act_conv, of y": lambda: conv_forward(FEW, FILTER.transpose(0, 1)),
    "conv_bn_add_act": conv_for_inference,
    "conv_dgrad": lambda: conv_backward(True, False, False),
    "output_gradient": gradient_of_output,
}


@pytest.mark.parametrize("case", CASES)
def test_offsets_beyond_2_to_the_31(case: str) -> None:
    with only_programs(lambda count: {count - 1}):
        out = CASES[case]()
    assert out is not None and torch.equal(out[0, -FEW:, -1, 0], LAST)


def test_offsets_of_wgrad(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of the last pixels: the product of the last one with itself."""
    shares = list[torch.Tensor]()
    monkeypatch.setattr(conv_wgrad, "PROGRAMS", 2**20)  # short shares
    monkeypatch.setattr(conv_wgrad, "column_sums", lambda parts, out: shares.append(parts[-1].view(FEW, CHANNELS)))
    with only_programs(lambda count: {count - 1}):
        conv_backward(False, True, False)
    assert torch.equal(shares[0][:, -FEW:], LAST.float()[:, None] * LAST.float())


def test_offsets_of_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the last pixels: pivot 0, and the sums of the last one."""
    monkeypatch.setattr(channel_statistics, "fold_statistics", lambda parts, *_: parts[:, -1, -FEW:])
    with only_programs(lambda count: {count - 1}):
        part = channel_statistics.channel_statistics(reserved())
    assert torch.equal(torch.as_tensor(part), torch.stack((torch.zeros(FEW), LAST.float(), LAST.float() ** 2)))
