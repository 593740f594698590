"""Which tile a launch uses: what was tuned for its device, type and shape, else the first of the short list."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from ..arguments import Conv
from ..choices import choose
from ..conv_choice import shape_of
from . import configs

__all__ = ["pointwise", "product"]


def pointwise(op: str, x: Tensor) -> tuple[int, int]:
    """Elements and warps of a pointwise kernel's tile."""
    tiles = _by_name(configs.POINTWISE, 2)
    elements, warps = tiles[choose("triton", op, tuple(tiles), next(iter(tiles)), x)]
    return elements, warps


def product(op: str, x: Tensor, weight: Tensor, conv: Conv) -> configs.Config:
    """The tile of a convolution's matrix product."""
    tiles = _by_name(configs.PRODUCT[x.element_size()], 3)
    m, n, k, warps, stages = tiles[choose("triton", op, tuple(tiles), next(iter(tiles)), x, *shape_of(x, weight, conv))]
    return configs.Config({"BM": m, "BN": n, "BK": k}, warps, stages)


@cache
def _by_name(tiles: tuple[tuple[int, ...], ...], fields: int) -> dict[str, Any]:
    """Tiles by their first fields: ``128x64x32``."""
    return {"x".join(map(str, tile[:fields])): tile for tile in tiles}
