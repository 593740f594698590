"""Which algorithm computes a convolution on CPU: the table, and what overrules it."""

from __future__ import annotations

import importlib

import pytest
import torch

from fused_resnet.backends.arguments import Conv

cpu = pytest.importorskip("fused_resnet.backends.cpu", reason="the native module is not built")

CHOICE = importlib.import_module("fused_resnet.backends.cpu.conv_algorithm")


@pytest.mark.precision("high")
def test_the_table_and_what_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHOICE, "isa", lambda: "avx512")
    monkeypatch.setattr(CHOICE, "has_dot_products", lambda: False)
    dense = Conv((1, 1), (1, 1), (1, 1), 1)

    def chosen(
        conv: Conv = dense, shape: tuple = (64, 64, 3, 3), size: int = 28, dtype=torch.float32, n: int = 4, **kept: bool
    ) -> str:
        return cpu.conv_algorithm(conv, shape, (n, shape[0], size, size), dtype, **kept)

    assert chosen() == chosen(n=1) == chosen(size=56) == chosen(size=7, n=32) == "winograd_f4"
    f2, f4, f5 = "winograd_f2", "winograd_f4", "winograd_f5"
    by_size = ["direct", f2, f4, f4, f5, f2, f4, f4, f5, f5, f4, f4, f5, f5, f5]
    assert [chosen(size=size, n=64) for size in range(1, 16)] == by_size
    assert chosen(size=14, n=16) == "winograd_f5"
    assert chosen(size=14, n=2) == chosen(size=7, n=3) == chosen(size=5, n=8) == "winograd_f2"  # smaller filters
    assert chosen(size=14, n=2, keeps_filter=True) == "winograd_f5"  # packed beforehand
    assert chosen(size=14, n=1, keeps_filter=True) == chosen(size=7, n=2, keeps_filter=True) == "winograd_f4"
    assert chosen(size=7, n=1) == "direct" and chosen(size=7, n=1, keeps_filter=True) == "winograd_f2"
    stem = Conv((2, 2), (3, 3), (1, 1), 1)
    assert chosen(stem, (64, 3, 7, 7)) == chosen(stem, (64, 64, 7, 7), n=1) == "winograd_stem"
    for other in ((64, 1, 7, 7), (8, 3, 7, 7), (64, 3, 5, 5)):
        assert chosen(stem, other) == "direct"
    assert chosen(stem._replace(stride=(1, 1)), (64, 3, 7, 7)) == "direct"
    strided = dense._replace(stride=(2, 2))
    assert chosen(strided, size=28) == chosen(strided, size=28, n=1) == chosen(strided, size=14, n=16) == "winograd_s2"
    assert chosen(strided, size=28, dtype=torch.bfloat16) == chosen(strided, size=28, dtype=torch.float16)
    assert chosen(strided, size=28, dtype=torch.float16) == "winograd_s2"
    assert (
        chosen(strided, size=14, n=8) == chosen(strided, size=7, n=32) == chosen(strided, size=28, dtype=torch.float64)
    )
    assert chosen(strided, size=28, shape=(64, 32, 3, 3)) == "winograd_s2"
    grouped = dense._replace(groups=64)
    assert chosen(grouped, (64, 1, 3, 3)) == chosen(grouped._replace(stride=(2, 2)), (64, 1, 7, 7)) == "depthwise"
    assert chosen(grouped, (64, 1, 3, 3), dtype=torch.float64) == "depthwise"
    narrow = [chosen(grouped, (64 * width, width, 3, 3), dtype=torch.float64) for width in (2, 4, 8, 16, 3)]
    assert narrow == ["grouped", "grouped", "grouped", "direct", "direct"]
    assert chosen(grouped, (64, 2, 3, 3)) == chosen(grouped, (512, 4, 1, 1)) == "direct"  # as many out as in
    assert chosen(grouped, (128, 1, 3, 3)) == chosen(dense, (64, 1, 3, 3)) == "direct"
    assert chosen(strided, size=28, shape=(32, 16, 3, 3)) == chosen(strided, size=14, n=8) == "direct"
    for other in (strided._replace(padding=(0, 1)), strided._replace(dilation=(2, 2)), strided._replace(groups=2)):
        assert chosen(other, size=28) == "direct"
    assert (
        chosen(dtype=torch.float64) == chosen(dense._replace(stride=(2, 1))) == chosen(shape=(64, 3, 3, 3)) == "direct"
    )
    assert chosen(dense._replace(groups=4)) == chosen(shape=(64, 64, 1, 1)) == "direct"
    assert chosen(dtype=torch.bfloat16) == chosen(dtype=torch.float16) == "winograd_f4"
    assert chosen(shape=(64, 64, 1, 1), dtype=torch.bfloat16) == "direct"
    monkeypatch.setattr(CHOICE, "has_dot_products", lambda: True)
    assert chosen(dtype=torch.bfloat16) == "winograd_f4"
    assert chosen(shape=(64, 64, 1, 1), dtype=torch.bfloat16) == "bf16x1"
    assert chosen(strided, size=28, dtype=torch.bfloat16) == "bf16x1"
    assert chosen(strided, size=28, dtype=torch.float16) == "winograd_s2"
    assert chosen(shape=(64, 3, 1, 1), dtype=torch.bfloat16) == chosen(shape=(64, 64, 1, 1)) == "direct"
    monkeypatch.setenv("FUSED_RESNET_CONV", "winograd_f2")
    assert chosen() == chosen(dtype=torch.float64) == "winograd_f2"
    assert chosen(strided, size=28) == "direct"
    assert chosen(shape=(64, 64, 1, 1)) == "direct"
    monkeypatch.setenv("FUSED_RESNET_CONV", "winograd_s2")
    assert chosen(strided, n=1, dtype=torch.float64) == "winograd_s2"
    assert chosen() == chosen(strided._replace(padding=(2, 2))) == "direct"
    monkeypatch.setenv("FUSED_RESNET_CONV", "direct")
    assert chosen() == chosen(strided, size=28) == "direct"
    monkeypatch.setenv("FUSED_RESNET_CONV", "fft")
    with pytest.raises(ValueError, match=r"FUSED_RESNET_CONV: expected auto or one of direct, .*, got 'fft'"):
        chosen()


@pytest.mark.parametrize(
    ("precision", "isa", "algorithm"),
    [("high", "amx", "bf16x3"), ("highest", "amx", "bf16x6"), ("highest", "avx512", "direct")],
)
def test_precision_and_tile_registers(
    precision: str, isa: str, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHOICE, "isa", lambda: isa)
    monkeypatch.setattr(CHOICE, "get_float32_conv_precision", lambda: precision)
    dense = Conv((1, 1), (1, 1), (1, 1), 1)

    def chosen(dtype: torch.dtype = torch.float32, c: int = 64, groups: int = 1) -> str:
        return cpu.conv_algorithm(dense._replace(groups=groups), (64, c, 3, 3), (4, 64, 14, 14), dtype)

    assert chosen() == algorithm
    assert chosen(c=3) == chosen(c=1, groups=8) == chosen(torch.float64) == "direct"
    assert chosen(c=8, groups=8) == ("bf16x3" if algorithm == "bf16x3" else "grouped")
    if isa == "amx":
        assert (chosen(torch.bfloat16), chosen(torch.float16)) == ("bf16x1", algorithm)
        assert chosen(torch.bfloat16, c=8, groups=8) == "bf16x1"


@pytest.mark.precision("high")
@pytest.mark.parametrize(
    ("width", "stride", "forward", "weight_gradient"),
    [
        (4, 1, "grouped", "grouped"),
        (4, 2, "grouped", "grouped"),
        (8, 1, "bf16x3", "grouped"),
        (16, 1, "bf16x3", "direct"),
        (32, 1, "bf16x3", "bf16x3"),
        (32, 2, "bf16x3", "direct"),
        (64, 2, "bf16x3", "bf16x3"),
    ],
)
def test_groups_beside_tile_registers(
    width: int, stride: int, forward: str, weight_gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHOICE, "isa", lambda: "amx")
    args = (Conv((stride, stride), (1, 1), (1, 1), 8), (8 * width, width, 3, 3), (4, 8 * width, 14, 14), torch.float32)
    assert cpu.conv_algorithm(*args) == forward
    assert cpu.conv_algorithm(*args, weight_gradient=True) == weight_gradient


@pytest.mark.parametrize(("isa", "widths"), [("baseline", ()), ("neon", (2,)), ("avx2", (2, 4)), ("avx512", (2, 4, 8))])
def test_groups_narrower_than_a_register(isa: str, widths: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHOICE, "isa", lambda: isa)
    for width in (2, 4, 8):
        conv = Conv((1, 1), (1, 1), (1, 1), 32)
        chosen = cpu.conv_algorithm(conv, (32 * width, width, 3, 3), (4, 32 * width, 14, 14), torch.float32)
        assert chosen == ("grouped" if width in widths else "direct")
