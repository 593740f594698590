"""The weight gradient in tile registers: blocks that threads share, NaN, and what working memory held before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.cases import image
from support.oracle import relative_error
from torch.nn.grad import conv2d_weight

from fused_resnet.backends.arguments import Activation, Conv

cpu = pytest.importorskip("fused_resnet.backends.cpu", reason="the native module is not built")

DENSE = Conv((1, 1), (1, 1), (1, 1), 1)


@pytest.fixture(params=["bf16x3", "bf16x6"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FUSED_RESNET_CONV", request.param)
    return request.param


@pytest.fixture(params=cpu.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(before)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def weight_gradient(
    x: torch.Tensor,  # [N, C, H, W]
    g: torch.Tensor,  # [N, K, OH, OW]
    kernel: int,
    conv: Conv = DENSE,
) -> torch.Tensor:
    weight = torch.empty(g.shape[1], x.shape[1], kernel, kernel)
    nothing = torch.empty(0)
    mask = (False, True, False)
    result = cpu.bn_act_conv_backward(
        g, None, None, x, None, Activation("identity"), weight, nothing, nothing, conv, mask
    )
    assert result[2] is not None
    return result[2]


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_that_threads_share(algorithm: str, threads: int, stride: int) -> None:
    """A result of more than a thread's share of L2, and some blocks, the last one shorter."""
    conv = DENSE._replace(stride=(stride, stride))
    x = image(4, 145, 13 * stride, 17 * stride)
    g = image(4, 272, 13, 17)
    got = weight_gradient(x, g, 3, conv)
    shape = (272, 145, 3, 3)
    want = conv2d_weight(x.double().contiguous(), shape, g.double().contiguous(), conv.stride, 1)
    assert relative_error(got, want) <= {"bf16x3": 6e-6, "bf16x6": 3e-7}[algorithm]
    assert torch.equal(weight_gradient(x, g, 3, conv), got)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -0x400000], ids=hex)
def test_a_nan_stays_in_its_channel(algorithm: str, isa: str, bits: int) -> None:
    x, g = image(2, 20, 9, 9), image(2, 20, 9, 9)
    x.view(torch.int32)[1, 3, 4, 4] = bits
    is_nan = weight_gradient(x, g, 3).isnan()
    assert is_nan[:, 3].all()
    assert is_nan.sum() == is_nan[:, 3].numel()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_working_memory_held_does_not_count(algorithm: str, kernel: int, stride: int) -> None:
    conv = Conv((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
    x, g = image(2, 33, 7, 9), image(2, 17, -(-7 // stride), -(-9 // stride))
    cpu.free_workspace()
    want = weight_gradient(x, g, kernel, conv)
    weight_gradient(image(3, 80, 20, 20).fill_(torch.nan), image(3, 80, 20, 20).fill_(torch.nan), 3)
    assert torch.equal(weight_gradient(x, g, kernel, conv), want)
