"""Which convolutions the cuda backend computes itself, and with which tile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.precision import convolutions_in
from torch import Tensor

from fused_resnet.backends import tune
from fused_resnet.backends.arguments import Conv
from fused_resnet.backends.choices import key
from fused_resnet.backends.cuda.conv_algorithm import conv_tile

Case = tuple[str, Tensor, Tensor, Conv]
ENVIRONMENT = "FUSED_RESNET_CUDA_CONV"


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch: pytest.MonkeyPatch, tune_file: Path) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def case(
    c: int = 64,
    k: int = 64,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    batch: int = 2,
    size: int = 8,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    x = torch.empty(batch, c, size, size, dtype=dtype, device="meta")
    weight = torch.empty(k, c // groups, kernel, kernel, dtype=dtype, device="meta")
    return "bn_act_conv", x, weight, Conv((stride, stride), (padding, padding), (1, 1), groups)


@pytest.mark.parametrize(
    ("changes", "is_ours"),
    [
        ({}, True),
        ({"dtype": torch.float16, "stride": 2}, True),
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float64}, False),
        ({"kernel": 3, "padding": 1}, False),
        ({"groups": 2}, False),
        ({"c": 12}, False),
        ({"k": 63}, False),
        ({"padding": 1}, False),
        ({"batch": 0}, False),
        ({"batch": 2**23}, False),  # 2^29 pixels
    ],
    ids=str,
)
def test_default(changes: dict, is_ours: bool) -> None:
    assert conv_tile(*case(**changes)) == ("automatic" if is_ours else None)


def test_forced_where_there_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "fused")
    assert conv_tile(*case(c=3, k=5, kernel=7, dtype=torch.float32)) == "automatic"
    assert conv_tile(*case(dtype=torch.float64)) is None
    assert conv_tile(*case(batch=0)) is None
    monkeypatch.setenv(ENVIRONMENT, "cudnn")
    assert conv_tile(*case()) is None


def test_unknown_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "winograd")
    with pytest.raises(ValueError, match="expected auto, fused or cudnn, got 'winograd'"):
        conv_tile(*case())


def test_what_was_tuned_comes_before_the_default_and_after_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    op, *rest = three = case(kernel=3, padding=1)
    kernel, tile = (key("cuda", f"{op}.{slot}", *rest) for slot in ("kernel", "tile"))
    tune.store({kernel: "fused", tile: "large"})
    assert conv_tile(*three) == "large"
    assert conv_tile("bn_act_conv_backward", *three[1:]) is None  # another op
    assert conv_tile(*case(kernel=3, padding=1, batch=3)) is None  # another shape
    monkeypatch.setenv(ENVIRONMENT, "cudnn")
    assert conv_tile(*three) is None
    monkeypatch.setenv(ENVIRONMENT, "auto")
    tune.store({tile: "huge"})  # what an older version may have written
    assert conv_tile(*three) == "automatic"


def test_float32_with_and_without_tf32_are_told_apart() -> None:
    op, *rest = case(dtype=torch.float32)
    with convolutions_in("tf32"):
        tf32 = key("cuda", op, *rest)
    with convolutions_in("ieee"):
        assert key("cuda", op, *rest) != tf32
