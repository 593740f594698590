"""The tile sizes that each kernel may run with: a short list, best guess first, all of them tested.

Registers bound a tile: a thread has 255, for its share of the accumulator, of what the epilogue loads, and addresses.
Shared memory bounds stages: a stage of 128 x 32 values of g_y, as many of y and 32 x 128 of the filter is 24 KiB in 16
bits, and the smallest device in the gate has 64. The sizes are what compiled without spills; no GPU has timed them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["FOLD", "PARTS", "POINTWISE", "PRODUCT", "UNALIGNED", "Config", "pixel_tile"]


class Config(NamedTuple):
    """A tile, as the kernel's compile-time constants, and how many warps and pipeline stages work on it."""

    tile: dict[str, Any]
    warps: int
    stages: int = 1
    registers: int | None = None  # of a thread, at most, on NVIDIA; None for what the compiler aims at


# Elements of a pointwise tile and warps: 16 elements a thread (8 of a wavefront of 64) keep enough bytes in flight.
POINTWISE: tuple[tuple[int, int], ...] = ((4096, 8), (2048, 4), (1024, 2))

# Tiles of a matrix product, BM x BN x BK, warps and stages, by the bytes of an element. 8 to 32 values of a tile a
# thread: the epilogues hold as many of x, and with 64 of each they would spill. float32 is smaller: without TF32 it is
# multiplied in registers, and every other size that was tried spilled somewhere.
PRODUCT: dict[int, tuple[tuple[int, int, int, int, int], ...]] = {
    2: ((128, 64, 32, 8, 3), (64, 64, 64, 4, 3), (64, 64, 32, 4, 3)),
    4: ((64, 32, 32, 4, 3), (32, 64, 32, 4, 3)),
}

# The same where pixels or filters do not lie at multiples of 32 bytes: their masks and addresses take registers.
UNALIGNED: dict[int, tuple[tuple[int, int, int, int, int], ...]] = {
    2: ((32, 32, 32, 4, 3),),
    4: ((32, 64, 32, 8, 3),),
}

# Programs at most, in a column of channels, that leave a row of partial results; each walks as many tiles as needed.
PARTS = 1024

# Rows of partial results that one program folds into one.
FOLD = 64


@lru_cache(4096)  # every call of a layer has the same
def pixel_tile(elements: int, warps: int, pixels: int, channels: int, channels_last: bool, stages: int = 1) -> Config:
    """A tile of that many elements at most, [BM pixels, BC channels], long in the direction memory runs."""
    if channels_last:
        columns = min(max(_power_of_two(channels), 8), 64)  # of fewer, the pixels' addresses would fill the registers
        rows = elements // columns
    else:
        rows = min(_power_of_two(pixels), 1024)
        columns = min(_power_of_two(channels), elements // rows)
    return Config({"BM": rows, "BC": columns}, warps, stages)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
