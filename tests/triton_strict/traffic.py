"""Bytes that launches load and store, tensor by tensor, and the least of what several kernels have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from fused_resnet.backends.arguments import Conv
from fused_resnet.backends.triton.configs import FOLD
from fused_resnet.backends.triton.launch import ceil_div

from .memory import record_traffic

__all__ = ["assert_least", "norm_gradients", "statistics", "taps_inside", "traffic", "twice", "vectors"]


def traffic(backend: Any, run: Callable[[], object], **tiles: Any) -> Counter[str]:
    """Bytes by argument, loaded and stored together, over all launches of ``run`` with these lists of ``configs``."""
    total: Counter[str] = Counter()
    with record_traffic() as launches, mock.patch.multiple(backend.configs, **tiles):
        run()
    for launch in launches:
        total.update(launch.loaded)
        total.update(launch.stored)
    return total


def assert_least(measured: Counter[str], *least: dict[str, int]) -> None:
    """Raises AssertionError where what was measured is not the sum of these parts, to the byte."""
    expected: Counter[str] = Counter()
    for part in least:
        expected.update(part)
    wrong = {name: (measured[name], expected[name]) for name in measured | expected if measured[name] != expected[name]}
    if wrong:
        raise AssertionError(f"bytes, measured and least: {wrong}")


def vectors(name: str, times: int, channels: int, fields: str = "mean var weight bias") -> dict[str, int]:
    """The float32 vectors of a norm, read so many times."""
    return {f"{name}.{field}": times * channels * 4 for field in fields.split()}


def norm_gradients(rows: int, values: int, channels: int) -> Counter[str]:
    """The second stage of the sums of a norm: folds of all values, s and t of the last, four gradients."""
    total: Counter[str] = Counter(vectors("bn", 1, channels, "var weight"))
    while rows > FOLD:
        total["rows_ptr"] += rows * values * channels * 4
        rows = ceil_div(rows, FOLD)
        total["out_ptr"] += rows * values * channels * 4
    return total + Counter(rows_ptr=rows * 2 * channels * 4, out_ptr=4 * channels * 4)


def statistics(parts: int, channels: int) -> Counter[str]:
    """Three numbers of each part written, and read by the fold, which leaves as many of each group, or the result."""
    part = 3 * channels * 4
    total = Counter(parts_ptr=2 * parts * part, mean_ptr=channels * 4, var_ptr=channels * 4)
    while parts > FOLD:
        parts = ceil_div(parts, FOLD)
        total += Counter(folded_ptr=parts * part, parts_ptr=parts * part)
    return total


def taps_inside(height: int, width: int, kernel: int, conv: Conv) -> int:
    """Pairs of an output pixel and a tap that lies inside an image."""
    ones = torch.ones(1, 1, height, width)
    return int(F.unfold(ones, kernel, conv.dilation, conv.padding, conv.stride).sum())


def twice(line: str) -> tuple[str, str]:
    """A line of a kernel, and the same twice."""
    return line + "\n", f"{line}\n{line}\n"
