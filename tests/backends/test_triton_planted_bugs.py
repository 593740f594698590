"""Mistakes planted into the Triton kernels, one at a time: each is caught, and by what it should be caught by."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")
from triton_strict import KernelError, checks
from triton_strict.mutant import planted
from triton_strict.poison import poison_empty

from fused_resnet.backends import triton as backend


class Bug(NamedTuple):
    module: str
    before: str
    after: str
    case: str
    caught_by: str  # part of the message
    dtype: torch.dtype = torch.float32


BUGS = {
    "a load without its channel mask": Bug(
        "bn_act_max_pool",
        "tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32), bn, mean, scale, shift)\n        u = activate",
        "tl.load(x_ptr + offsets, mask=(pixel < P)[:, None], other=0.0).to(tl.float32), bn, mean, scale, shift)\n"
        "        u = activate",
        "bn_act_max_pool",
        "load out of bounds",
    ),
    "a filter's tail read as whatever is there": Bug(
        "conv_forward",
        "mask=k_ok[None, :] & c_ok[:, None], other=0.0)",
        "mask=k_ok[None, :] & c_ok[:, None])",
        "bn_act_conv, 1x1",
        "differs from float64 by nan",
    ),
    "padding that is act(norm(0))": Bug(
        "conv_forward", "tl.where(mask, z, 0.0)", "z", "bn_act_conv, strided", "differs from float64"
    ),
    "every tile's statistics in one row": Bug(
        "channel_statistics",
        "    out = parts_ptr + part.to(tl.int64) * C + c\n    step = tl.cast(parts, tl.int64) * C\n"
        "    tl.store(out, pivot, mask=c_ok)\n    tl.store(out + step, tl.sum(d, 0)",
        "    out = parts_ptr + c\n    step = tl.cast(parts, tl.int64) * C\n"
        "    tl.store(out, pivot, mask=c_ok)\n    tl.store(out + step, tl.sum(d, 0)",
        "bn_act_conv, 1x1",
        "race: program .* parts_ptr",
    ),
    "a method of a number that is compiled in where it is 1": Bug(
        "channel_statistics",
        "    step = tl.cast(parts, tl.int64) * C\n    pivot",
        "    step = parts.to(tl.int64) * C\n    pivot",
        "bn_act_conv, one tile",
        "'int' object has no attribute 'to'",
    ),
    "the last tile counted as a full one": Bug(
        "channel_statistics",
        "tl.maximum(tl.minimum(total - row * size, size), 0)",
        "(row * 0 + size)",
        "bn_act_conv, 1x1",
        "differs from float64",
    ),
    "shares of the filter's gradient in one place": Bug(
        "conv_wgrad",
        "(split.to(tl.int64) * size.groups * size.K + k)",
        "k.to(tl.int64)",
        "bn_act_conv_backward, 1x1",
        "race: program .* out_ptr",
    ),
    "a pixel stored twice by one program": Bug(
        "bn_act_max_pool",
        "offsets = (pixel.to(tl.int64) * C)[:, None] + c[None, :]\n    tl.store(out_ptr",
        "offsets = (pixel.to(tl.int64) // 2 * C)[:, None] + c[None, :]\n    tl.store(out_ptr",
        "bn_act_max_pool",
        "duplicate write: one store of program .* out_ptr",
    ),
    "the last of equals wins a window": Bug(
        "bn_act_max_pool", "(u > best)", "(u >= best)", "bn_act_max_pool", "differs from float64"
    ),
    "taps of every phase": Bug(
        "conv_dgrad",
        "first_r + tap // taps_s * phases_h.step",
        "first_r + tap // taps_s",
        "bn_act_conv_backward, strided",
        "differs",
    ),
    "the first tap where stride and dilation have no common divisor": Bug(
        "conv_dgrad", " * phases.inverse", "", "bn_act_conv_backward, phases", "differs"
    ),
    "columns of another phase": Bug(
        "conv_dgrad",
        "phase_w + line * size.stride_w",
        "phase_h + line * size.stride_w",
        "bn_act_conv_backward, strided",
        "race|out of bounds",
    ),
    "a window beyond the image": Bug(
        "conv_forward", "& (w < size.W)", "& (w <= size.W)", "bn_act_conv, grouped", "differs|out of bounds"
    ),
    "sums kept in bfloat16": Bug(
        "bn_add_act",
        "t += p * (x - mean[None, :])",
        "t = (t + p * (x - mean[None, :])).to(tl.bfloat16).to(tl.float32)",
        "bn_add_act_backward",
        "differs from float64",
    ),
    "the variance's share of the gradient forgotten": Bug(
        "output_gradient", " + g_var[None, :] * (y - mean[None, :])", "", "bn_act_conv_backward, 1x1", "differs"
    ),
    "the group's channels forgotten": Bug(
        "conv_dgrad", "    c += group * size.C\n", "", "bn_act_conv_backward, grouped", "race|differs"
    ),
    "the variance's gradient with the standard deviation once too often": Bug(
        "channel_sums",
        "-0.5 * scale * invstd * invstd * t",
        "-0.5 * scale * invstd * t",
        "bn_add_act_backward",
        "differs",
    ),
    "a row of sums that no fold reads": Bug(
        "channel_sums",
        "mask = (row < rows)[:, None] & ok[None, :]",
        "mask = (row < rows - 1)[:, None] & ok[None, :]",
        "bn_act_conv_backward, 1x1",
        "differs",
    ),
    "the residual in place of the sum": Bug(
        "conv_bn_add_act", "z += tl.load(residual_ptr", "z = tl.load(residual_ptr", "conv_bn_add_act", "differs"
    ),
    "the bias of another output": Bug(
        "conv_bn_add_act", "tl.load(bias_ptr + k,", "tl.load(bias_ptr + k + 1,", "conv_bn_add_act", "out of bounds"
    ),
    "pixels that do not exist, in the sums of the statistics": Bug(
        "channel_statistics",
        "        d = tl.where(mask, y - pivot[None, :], 0.0)",
        "        d = y - pivot[None, :]",
        "channel_statistics",
        "differs",
    ),
    "a gradient left unwritten": Bug(
        "conv_dgrad",
        "tl.store(g_x_ptr + offsets, p.to(g_x_ptr.dtype.element_ty), mask=mask)",
        "tl.store(g_x_ptr + offsets, p.to(g_x_ptr.dtype.element_ty), mask=mask & (m > 0)[:, None])",
        "bn_act_conv_backward, 1x1",
        "differs from float64 by nan",
    ),
}


@pytest.fixture(autouse=True)
def ours_on_uninitialised_memory_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")
    poison_empty(monkeypatch)


@pytest.mark.parametrize("bug", BUGS.values(), ids=list(BUGS))
def test_is_caught(bug: Bug, tmp_path: Path) -> None:
    with (
        planted(tmp_path, bug.module, bug.before, bug.after) as mutant,
        pytest.raises((KernelError, AssertionError, AttributeError), match=bug.caught_by),
    ):
        checks.check(mutant, bug.case, bug.dtype)


@pytest.mark.parametrize("dtype", checks.ALLOWED, ids=str)
@pytest.mark.parametrize("case", checks.CASES)
def test_nothing_is_caught_where_nothing_is_planted(case: str, dtype: torch.dtype) -> None:
    checks.check(backend, case, dtype)
