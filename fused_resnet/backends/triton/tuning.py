"""Which tile a launch uses: what was tuned for its device, type and shape, else the first of the short list."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from ..arguments import Activation, Conv
from ..choices import choose
from . import configs
from .launch import float32_precision

__all__ = ["pointwise", "product"]


def pointwise(op: str, x: Tensor) -> tuple[int, int]:
    """Elements and warps of a pointwise kernel's tile."""
    tiles = _pointwise_tiles(configs.POINTWISE)
    return tiles[choose("triton", op, tuple(tiles), next(iter(tiles)), x)]


def product(op: str, x: Tensor, activation: Activation, weight: Tensor, conv: Conv) -> configs.Config:
    """The tile of a convolution's matrix product.

    On tensor cores a thread may have all 255 registers where the activation takes some: ptxas aims at fewer, so that
    one block more fits, and would spill 8 to 16 bytes.
    """
    is_aligned = weight.shape[0] // conv.groups % 16 == 0 and weight.shape[1] % 16 == 0
    tiles = _product_tiles((configs.PRODUCT if is_aligned else configs.UNALIGNED)[x.element_size()])
    tile = tiles[choose("triton", op, tuple(tiles), next(iter(tiles)), x, weight, conv)]
    on_tensor_cores = x.element_size() == 2 or float32_precision(x) == "tf32"
    takes_registers = is_aligned and on_tensor_cores and activation.name not in ("identity", "relu")
    return tile._replace(registers=255) if takes_registers else tile


@cache
def _pointwise_tiles(tiles: tuple[tuple[int, int], ...]) -> dict[str, tuple[int, int]]:
    return {f"{elements}x{warps}": (elements, warps) for elements, warps in tiles}


@cache
def _product_tiles(tiles: tuple[tuple[int, int, int, int, int], ...]) -> dict[str, configs.Config]:
    return {
        f"{m}x{n}x{k}": configs.Config({"BM": m, "BN": n, "BK": k}, warps, stages) for m, n, k, warps, stages in tiles
    }
