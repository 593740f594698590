"""The bugs of the fused convolution that the checks must catch: see :mod:`cuda_on_cpu.planted_bugs`."""

from __future__ import annotations

__all__ = ["CONV_BUGS"]

_RACE = r"WARNING: ThreadSanitizer: data race"
_OUT_OF_BOUNDS = r"ERROR: AddressSanitizer: heap-buffer-overflow"
_ORACLE = r"AssertionError: conv_\w+: result \d+, shape .*: error "

# unit, file, what stands there, what the bug makes of it, exercise, build mode, report
CONV_BUGS = {
    "conv-missing-barrier-of-the-pipeline": (
        "conv_forward.cu",
        "conv_pipeline.h",
        "    operands.transform(at, stage);\n    __syncthreads();\n",
        "    operands.transform(at, stage);\n",
        "conv_forward",
        "tsan",
        _RACE,
    ),
    "conv-missing-barrier-before-the-tile": (
        "conv_dgrad.cu",
        "conv_pipeline.h",
        "  __syncthreads();\n  product.store(tile);\n",
        "  product.store(tile);\n",
        "conv_dgrad",
        "tsan",
        _RACE,
    ),
    "conv-missing-barrier-before-the-sums": (
        "conv_dgrad.cu",
        "conv_dgrad.h",
        "  __syncthreads();  // the sums take the tile's memory\n",
        "",
        "conv_dgrad",
        "tsan",
        _RACE,
    ),
    "conv-waits-for-one-stage-too-few": (
        "conv_forward.cu",
        "conv_pipeline.h",
        "ptx::cp_async_wait<kStages - 2>();",
        "ptx::cp_async_wait<kStages - 1>();",
        "conv_forward",
        "plain",
        _ORACLE + "nan",
    ),
    "conv-wrong-fragment": (
        "conv_forward.cu",
        "conv_product.h",
        "step * kStepBytes + lane / 16 * 16",
        "step * kStepBytes + lane / 8 % 2 * 16",
        "conv_forward",
        "plain",
        _ORACLE,
    ),
    "conv-fragment-not-transposed": (
        "conv_wgrad.cu",
        "conv_product.h",
        "ptx::ldmatrix_x4<true>(fragment, b +",
        "ptx::ldmatrix_x4<false>(fragment, b +",
        "conv_wgrad",
        "plain",
        _ORACLE,
    ),
    "conv-swapped-strides": (
        "conv_forward.cu",
        "conv_operands.h",
        "w * g.stride_w - g.pad_w",
        "w * g.stride_h - g.pad_w",
        "conv_forward",
        "plain",
        _ORACLE,
    ),
    "conv-padding-before-the-activation": (
        "conv_forward.cu",
        "conv_forward.h",
        "pixels.real.get(stage, i) ? valid : 0",
        "valid",
        "conv_forward",
        "plain",
        _ORACLE,
    ),
    # Nothing depends on what a tile multiplies for channels that are not there: no result tells.
    "conv-channels-that-nobody-wrote": (
        "conv_forward.cu",
        "conv_operands.h",
        "walk.tap;\n      fetch_chunk<Traits>(Chunks::at(operand, kPitch, i)",
        "walk.tap;\n      if (k < g.group_out_channels) fetch_chunk<Traits>(Chunks::at(operand, kPitch, i)",
        "conv_forward",
        "shadow",
        r"RuntimeError: conv_forward: a load of \d+ bytes of shared memory, of which nobody wrote byte \d+",
    ),
    "conv-off-by-one-tail-of-the-pixels": (
        "conv_forward.cu",
        "conv_operands.h",
        "if (pixel >= end) return",
        "if (pixel > end) return",
        "conv_forward",
        "asan",
        _OUT_OF_BOUNDS,
    ),
    "conv-statistics-of-rows-that-are-not-there": (
        "conv_forward.cu",
        "conv_forward.h",
        "const int rows = least(Traits::kRows, g.out_pixels - place.first_row);",
        "const int rows = Traits::kRows;",
        "conv_forward",
        "plain",
        _ORACLE,
    ),
    "conv-derivative-at-x-before-its-norm": (
        "conv_dgrad.cu",
        "conv_dgrad.h",
        "act.derivative(terms.apply(i, x[i]), slope)",
        "act.derivative(x[i], slope)",
        "conv_dgrad",
        "plain",
        _ORACLE,
    ),
    "conv-pixels-that-two-splits-count": (
        "conv_wgrad.cu",
        "conv_wgrad.h",
        "place.end_pixel = least(place.first_pixel + p.split_pixels, g.out_pixels);",
        "place.end_pixel = g.out_pixels;",
        "conv_wgrad",
        "plain",
        _ORACLE,
    ),
    "conv-unaligned-tensor-in-chunks": (
        "conv_forward.cu",
        "conv_dispatch.h",
        "const bool vector = aligned && has_whole_chunks(call)",
        "const bool vector = has_whole_chunks(call)",
        "conv_forward",
        "plain",
        r"conv_forward: .*cp.async.* misaligned|conv_forward: misaligned cp.async",
    ),
}
