"""Which tile a launch uses: what was tuned for its device, type and shape, else the first of the short list."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from ..arguments import Conv
from ..choices import choose
from . import configs

__all__ = ["pointwise", "product"]


def pointwise(op: str, x: Tensor) -> tuple[int, int]:
    """Elements and warps of a pointwise kernel's tile."""
    tiles = _pointwise_tiles(configs.POINTWISE)
    return tiles[choose("triton", op, tuple(tiles), next(iter(tiles)), x)]


def product(op: str, x: Tensor, weight: Tensor, conv: Conv) -> configs.Config:
    """The tile of a convolution's matrix product.

    The first of the list where pixels and filters do not lie at multiples of 32 bytes: their masks take registers that
    the other tiles do not have.
    """
    listed = configs.PRODUCT[x.element_size()]
    is_aligned = weight.shape[0] // conv.groups % 16 == 0 and weight.shape[1] % 16 == 0
    tiles = _product_tiles(listed if is_aligned else listed[:1])
    return tiles[choose("triton", op, tuple(tiles), next(iter(tiles)), x, weight, conv)]


@cache
def _pointwise_tiles(tiles: tuple[tuple[int, int], ...]) -> dict[str, tuple[int, int]]:
    return {f"{elements}x{warps}": (elements, warps) for elements, warps in tiles}


@cache
def _product_tiles(tiles: tuple[tuple[int, int, int, int, int], ...]) -> dict[str, configs.Config]:
    return {
        f"{m}x{n}x{k}": configs.Config({"BM": m, "BN": n, "BK": k}, warps, stages) for m, n, k, warps, stages in tiles
    }
