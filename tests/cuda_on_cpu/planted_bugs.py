"""The bugs that the checks must catch: a change to a source, and what must then be reported.

A row is (file of csrc/cuda, what stands there, what the bug makes of it). ``unit`` is the .cu that is compiled with it,
``exercise`` what then runs, in the build ``mode``, and ``report`` the expression that the report must match.
"""

from __future__ import annotations

from typing import NamedTuple

from cuda_on_cpu.conv_planted_bugs import CONV_BUGS

__all__ = ["BUGS", "PlantedBug"]

ORACLE = r"AssertionError: \w+: result \d+, shape .*: error "
RACE = r"WARNING: ThreadSanitizer: data race"
OUT_OF_BOUNDS = r"ERROR: AddressSanitizer: heap-buffer-overflow"
PAST_A_SHARED_ARRAY = r"ERROR: AddressSanitizer: use-after-poison"


class PlantedBug(NamedTuple):
    """One bug; ``before`` stands in ``file`` exactly once."""

    unit: str
    file: str
    before: str
    after: str
    exercise: str
    mode: str
    report: str
    check: str = "verify"  # what of the exercises is asked


BUGS = {
    "missing-barrier": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "      __syncthreads();\n      if (threadIdx.y < half) {",
        "      if (threadIdx.y < half) {",
        "channel_statistics",
        "tsan",
        RACE,
    ),
    "missing-fence": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "  __threadfence();\n  __syncthreads();\n",
        "  __syncthreads();\n",
        "channel_statistics",
        "tsan",
        RACE,
    ),
    "plain-add-for-an-atomic": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "atomicAdd(&counters[blockIdx.x], 1u)",
        "counters[blockIdx.x]++",
        "channel_statistics",
        "tsan",
        RACE,
    ),
    "partial-sums-of-two-blocks-in-one-place": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "workspace.partial[blockIdx.y * walk.channels + channel + c] = sums[c];",
        "workspace.partial[blockIdx.y / 2 * walk.channels + channel + c] = sums[c];",
        "channel_statistics",
        "tsan",
        RACE,
    ),
    "off-by-one-tail": PlantedBug(
        "bn_add_act.cu",
        "bn_add_act.cu",
        "row < walk.rows;",
        "row <= walk.rows;",
        "bn_add_act",
        "asan",
        OUT_OF_BOUNDS,
    ),
    "thread-without-a-column-stores": PlantedBug(
        "channel_statistics.cu",
        "channel_statistics.cu",
        "  if (!walk.inside()) return;\n",
        "",
        "channel_statistics_backward",
        "asan",
        OUT_OF_BOUNDS,
    ),
    "one-past-a-shared-array": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "sums[c].add(shared[thread + half * blockDim.x]);",
        "sums[c].add((shared + thread)[half * blockDim.x + 1]);",
        "channel_statistics",
        "asan",
        PAST_A_SHARED_ARRAY,
    ),
    # Each sum is right, and nothing races: only its last bits tell which block came last.
    "partial-sums-from-the-last-block-on": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "workspace.partial[block * walk.channels + channel + c]",
        "workspace.partial[(block + blockIdx.y) % gridDim.y * walk.channels + channel + c]",
        "channel_statistics",
        "plain",
        r"AssertionError: channel_statistics: other bits with seed \d",
        "same_bits",
    ),
    "return-before-a-barrier": PlantedBug(
        "bn_add_act_backward.cu",
        "bn_add_act_backward.cu",
        "  Sums<S> sums[Walk::kLanes];\n",
        "  Sums<S> sums[Walk::kLanes];\n  if (!walk.inside()) return;\n",
        "bn_add_act_backward",
        "plain",
        r"bn_add_act_backward: .*__syncthreads\(\) reached by \d+ of 256 threads",
    ),
    "unaligned-tensor-in-packs": PlantedBug(
        "bn_add_act.cu",
        "bn_add_act.cu",
        "const bool aligned = aligned16(a.x) && aligned16(a.residual) && aligned16(a.out);",
        "const bool aligned = true;",
        "bn_add_act",
        "plain",
        r"bn_add_act: misaligned vector load of 16 bytes",
    ),
    "half-of-the-rows-left-out": PlantedBug(
        "channel_statistics.cu",
        "column_sums.h",
        "for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {",
        "for (unsigned half = blockDim.y / 2; half > 1; half /= 2) {",
        "channel_statistics",
        "plain",
        ORACLE,
    ),
    "counters-not-cleared": PlantedBug(
        "channel_statistics.cu",
        "channel_statistics.cu",
        "      if (const cudaError_t error = workspace.clear(l, queue)) return error;\n",
        "",
        "channel_statistics",
        "plain",
        ORACLE,
    ),
    "norm-of-x-for-the-residual": PlantedBug(
        "bn_add_act_backward.cu",
        "bn_add_act_backward.cu",
        "p[i] * (widen(r.lane[i]) - residual_norm[c].mean)",
        "p[i] * (widen(r.lane[i]) - norm[c].mean)",
        "bn_add_act_backward",
        "plain",
        ORACLE,
    ),
    "swapped-strides": PlantedBug(
        "bn_act_max_pool_backward.cu",
        "bn_act_max_pool_backward.cu",
        "shape.pad_w - j * shape.stride_w",
        "shape.pad_w - j * shape.stride_h",
        "bn_act_max_pool_backward",
        "plain",
        ORACLE,
    ),
    "contiguous-pixels-of-the-output-for-those-of-x": PlantedBug(
        "bn_act_max_pool.cu",
        "bn_act_max_pool.cu",
        "offset_of_pixel(walk, pixel.n, shape.height * shape.width, from)",
        "offset_of_pixel(walk, pixel.n, Walk::kChannelsLast ? shape.height * shape.width : walk.inner_packs, from)",
        "bn_act_max_pool",
        "plain",
        ORACLE,
    ),
    "padding-that-takes-part": PlantedBug(
        "bn_act_max_pool.cu",
        "bn_act_max_pool.cu",
        "best[i] = S(-INFINITY);",
        "best[i] = h.begin > 0 || w.begin > 0 ? S(0) : S(-INFINITY);",
        "bn_act_max_pool",
        "plain",
        ORACLE,
    ),
}
BUGS |= {name: PlantedBug(*row) for name, row in CONV_BUGS.items()}
