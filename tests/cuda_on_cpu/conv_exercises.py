"""Small runs of the fused convolution beside the reference in float64: see :mod:`cuda_on_cpu.exercises`.

What is named by its pass alone is in float16, the other types by their name; ``tf32`` is float32 on tensor cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fused_resnet.backends import reference
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv
from fused_resnet.backends.cuda.fused_conv import FusedConv

__all__ = ["CONV_EXERCISES", "TYPED_CONV_EXERCISES", "conv_tolerance"]

Pair = tuple[Tensor, Tensor]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
# Of the norm of a result. u, g and what is stored are rounded to nearest; what truncates instead, in bfloat16 or tf32,
# is off by about twice as much.
TOLERANCES = {"float16": 3e-3, "bfloat16": 3e-3, "float32": 2e-6, "tf32": 6e-4}

ACTIVATION = Activation("silu")
# x, weight, convolution: whole chunks and tails; strides that differ, padding, rows and columns beyond a tile.
CASES = (
    ((2, 40, 6, 7), (72, 40, 1, 1), Conv((1, 1), (0, 0), (1, 1), 1)),
    ((1, 8, 9, 7), (16, 8, 3, 3), Conv((2, 1), (1, 1), (1, 1), 1)),
    ((1, 5, 5, 4), (3, 5, 1, 1), Conv((1, 2), (0, 0), (1, 1), 1)),
)
# Of three phases of rows, each is reached by one tap, in another order; of two of columns, one by all, one by none.
PHASES = ((1, 8, 11, 8), (8, 8, 3, 3), Conv((3, 2), (1, 2), (2, 2), 1))
LONG = ((1, 8, 24, 25), (8, 8, 1, 1), Conv((1, 1), (0, 0), (1, 1), 1))  # more pixels than one split of wgrad takes
GROUPS = ((1, 16, 5, 5), (16, 8, 3, 3), Conv((1, 1), (1, 1), (1, 1), 2))
STEM = ((1, 8, 7, 6), (8, 8, 7, 7), Conv((2, 2), (3, 3), (1, 1), 1))  # more steps than a word has pairs of bits


class Inputs:
    """The arguments of all passes in a type, and in float64 for the reference."""

    def __init__(self, case: tuple[Any, ...], dtype: str, aligned: bool = True) -> None:
        x_shape, weight_shape, self.conv = case
        n, c, h, w = x_shape
        x = torch.randn(x_shape).to(DTYPES[dtype])
        room = torch.empty(x.numel() + 1, dtype=x.dtype)[0 if aligned else 1 :][: x.numel()]
        self.x = room.view(n, h, w, c).copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        self.weight = (torch.randn(weight_shape) * (c * weight_shape[2] * weight_shape[3]) ** -0.5).to(x.dtype)
        self.bn = BatchNorm(torch.randn(c), torch.rand(c) + 0.5, torch.randn(c), torch.randn(c) + 1, 1e-5)
        with (
            mock.patch.dict(os.environ, FUSED_RESNET_CUDA_CONV="fused"),
            mock.patch("fused_resnet.backends.cuda.fused_conv.tf32_is_allowed", lambda: dtype == "tf32"),
        ):
            fused = FusedConv.of("bn_act_conv", self.x, self.weight, self.conv)
        assert fused is not None
        self.fused = fused

    def wide(self) -> tuple[Tensor, BatchNorm, Activation, Tensor]:
        bn = BatchNorm(*(v.double() for v in self.bn[:4]), self.bn.eps)
        return self.x.double(), bn, ACTIVATION, self.weight.double()

    def forward(self) -> Iterator[Pair]:
        got = self.fused.forward(self.x, self.bn, ACTIVATION, None, True)
        yield from zip(got, reference.bn_act_conv(*self.wide(), None, self.conv, True), strict=True)

    def inference(self) -> Iterator[Pair]:
        k = self.weight.shape[0]
        bn = BatchNorm(torch.randn(k), torch.rand(k) + 0.5, torch.randn(k), torch.randn(k), 1e-5)
        wide = BatchNorm(*(v.double() for v in bn[:4]), bn.eps)
        residual = torch.randn_like(self.fused.empty_output(self.x))
        got = self.fused.bn_add_act(self.x, None, bn, residual, ACTIVATION)
        args = (self.x.double(), self.weight.double(), None, wide, residual.double(), ACTIVATION, self.conv)
        yield got, reference.conv_bn_add_act(*args)

    def backward(self, output_mask: tuple[bool, bool, bool]) -> Iterator[Pair]:
        y = reference.bn_act_conv(self.x, self.bn, ACTIVATION, self.weight, None, self.conv, False)[0]
        g_y, y_mean = torch.randn_like(y), y.float().mean((0, 2, 3))
        m = y.numel() // y.shape[1]
        g_mean, g_var = torch.randn(y.shape[1]) * m, torch.randn(y.shape[1]) * m
        got = self.fused.backward(g_y, g_mean, g_var, self.x, self.bn, ACTIVATION, self.weight, y, y_mean, output_mask)
        x, bn, activation, weight = self.wide()
        gradients = (g_y.double(), g_mean.double(), g_var.double())
        want = reference.bn_act_conv_backward(
            *gradients, x, bn, activation, weight, y.double(), y_mean.double(), self.conv, output_mask
        )
        yield from ((g, w) for g, w in zip(got, want, strict=True) if g is not None and w is not None)


def conv_tolerance(family: str) -> float:
    return TOLERANCES[family.partition("-")[2] or "float16"]


def conv_forward(dtype: str = "float16") -> Iterator[Pair]:
    torch.manual_seed(0)
    for case in (*CASES, STEM):
        yield from Inputs(case, dtype).forward()
    yield from Inputs(CASES[0], dtype, aligned=False).forward()


def conv_bn_add_act(dtype: str = "float16") -> Iterator[Pair]:
    torch.manual_seed(0)
    for case in (*CASES, GROUPS):
        yield from Inputs(case, dtype).inference()


def conv_dgrad(dtype: str = "float16") -> Iterator[Pair]:
    torch.manual_seed(0)
    for case in (*CASES, PHASES):
        yield from Inputs(case, dtype).backward((True, False, False))


def conv_wgrad(dtype: str = "float16") -> Iterator[Pair]:
    torch.manual_seed(0)
    for case in (*CASES, LONG):
        yield from Inputs(case, dtype).backward((False, True, False))


_PASSES = (conv_forward, conv_bn_add_act, conv_dgrad, conv_wgrad)
CONV_EXERCISES: dict[str, Callable[[], Iterator[Pair]]] = {f.__name__: f for f in _PASSES}
TYPED_CONV_EXERCISES: dict[str, Callable[[], Iterator[Pair]]] = {
    f"{f.__name__}-{dtype}": partial(f, dtype) for dtype in ("bfloat16", "float32", "tf32") for f in _PASSES
}
