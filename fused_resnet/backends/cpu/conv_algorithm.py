"""Which algorithm computes a convolution on CPU: the one table of the choice.

``FUSED_RESNET_CONV``, one of ``CONV_ALGORITHMS`` or ``auto``, overrules it wherever the algorithm exists, for tests;
:func:`fused_resnet.set_float32_conv_precision` leaves direct convolution alone, with all of the bits of float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..._cpu import has_dot_products, isa
from ..arguments import Conv
from ..precision import get_float32_conv_precision

__all__ = ["CONV_ALGORITHMS", "conv_algorithm"]

# The numbering is that of ConvAlgorithm in csrc/shapes.h.
CONV_ALGORITHMS = (
    "direct",
    "depthwise",
    "grouped",
    "winograd_f2",
    "winograd_f4",
    "winograd_f5",
    "winograd_s2",
    "winograd_stem",
    "bf16x1",
    "bf16x3",
    "bf16x6",
)

# Of a 3x3 convolution of stride 1: outputs of a tile along either dimension, and what a tile costs, in products of each
# pair of channels. F(5,3) has 49, but longer transforms.
_TILES = {"direct": (1, 9), "winograd_f2": (2, 16), "winograd_f4": (4, 36), "winograd_f5": (5, 52)}
# What packing a filter and reading it costs, in tiles; and reading one that is packed already.
_PACKING_TILES, _READING_TILES = 30, 10

# Floats in a register, by instruction set.
_LANES = {"baseline": 1, "neon": 4, "avx2": 8, "avx512": 16, "amx": 16}

_ENVIRONMENT = "FUSED_RESNET_CONV"


class Geometry(NamedTuple):
    """What the choice rests on."""

    conv: Conv
    weight_shape: Sequence[int]  # K, C / groups, R, S
    output_shape: Sequence[int]  # N, K, OH, OW
    dtype: torch.dtype
    keeps_filter: bool  # packed for many calls, as in inference
    weight_gradient: bool  # or the output, or the gradient of the input

    @property
    def has_winograd(self) -> bool:
        """3x3, stride 1, dense, with at most two pixels of padding."""
        conv, kernel = self.conv, tuple(self.weight_shape[2:])
        return kernel == (3, 3) and conv[0] == conv[2] == (1, 1) and conv.groups == 1 and max(conv.padding) <= 2

    @property
    def has_strided_winograd(self) -> bool:
        """3x3, stride 2, padding 1, dense."""
        conv, kernel = self.conv, tuple(self.weight_shape[2:])
        return kernel == (3, 3) and conv == Conv((2, 2), (1, 1), (1, 1), 1)

    @property
    def has_stem(self) -> bool:
        """7x7, stride 2, dense."""
        conv, kernel = self.conv, tuple(self.weight_shape[2:])
        return kernel == (7, 7) and conv[0] == (2, 2) and conv.dilation == (1, 1) and conv.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """One channel a group, in and out."""
        return self.conv.groups > 1 and self.weight_shape[1] == 1 and self.weight_shape[0] == self.conv.groups

    @property
    def is_grouped(self) -> bool:
        """2, 4 or 8 channels a group, in and out."""
        return self.weight_shape[1] in (2, 4, 8) and self.weight_shape[0] == self.conv.groups * self.weight_shape[1]

    @property
    def suits_grouped(self) -> bool:
        """A group is narrower than a register, so that a product of matrices would multiply zeros."""
        return self.is_grouped and self.weight_shape[1] < _LANES[isa()]

    @property
    def is_narrow_for_parts(self) -> bool:
        """Zeros between groups, in three products of parts, cost more than tile registers save."""
        width = self.weight_shape[1]
        if self.weight_gradient and self.conv.groups > 1:
            return width <= (16 if self.conv.stride == (1, 1) else 32)
        return self.is_grouped and width <= 4

    @property
    def allows_rounding(self) -> bool:
        """That of Winograd, or of 16 bits of 24, is no more than what the tensors or the user ask for."""
        return self.dtype != torch.float64 and get_float32_conv_precision() != "highest"

    @property
    def suits_winograd(self) -> bool:
        """Its rounding is allowed, and the transforms cost less than they save."""
        return self.has_winograd and self.allows_rounding and min(self.weight_shape[:2]) >= 16

    @property
    def cheapest(self) -> str:
        """Which of ``_TILES`` costs least, with the filter and what stands over the edges."""
        n, _, height, width = self.output_shape
        filter_tiles = _READING_TILES if self.keeps_filter else _PACKING_TILES

        def cost(algorithm: str) -> int:
            size, products = _TILES[algorithm]
            return products * (n * -(-height // size) * -(-width // size) + filter_tiles)

        return min(_TILES, key=cost)

    @property
    def suits_stem(self) -> bool:
        """The same for a stem: four times its channels must fill a register, or nearly."""
        return self.has_stem and self.allows_rounding and self.weight_shape[0] >= 16 and self.weight_shape[1] >= 3

    @property
    def suits_strided_winograd(self) -> bool:
        """The same for stride 2: a tile costs what 11.25 outputs cost directly, and the filter what 20 tiles do."""
        n, _, height, width = self.output_shape
        tiles = n * -(-height // 4) * -(-width // 4)
        is_worth_it = min(self.weight_shape[:2]) >= 32 and n * height * width > 11.25 * (tiles + 20)
        return self.has_strided_winograd and self.allows_rounding and is_worth_it

    @property
    def suits_dot_products(self) -> bool:
        """The processor has them for these numbers, and no more than half of a register would be padding."""
        is_wide = self.conv.groups == 1 and min(self.weight_shape[:2]) >= 16
        return self.dtype == torch.bfloat16 and is_wide and has_dot_products()

    @property
    def has_parts(self) -> bool:
        """Of a type whose numbers are sums of bfloat16 numbers."""
        return self.dtype != torch.float64

    @property
    def suits_tile_registers(self) -> bool:
        """The processor has them, and no more than half of a register would be padding."""
        k, c_per_group = self.weight_shape[:2]
        return isa() == "amx" and self.has_parts and min(k, c_per_group * self.conv.groups) >= 16

    def has(self, algorithm: str) -> bool:
        """Whether the algorithm computes this convolution at all."""
        if algorithm == "winograd_s2":
            return self.has_strided_winograd
        if algorithm == "winograd_stem":
            return self.has_stem
        if algorithm.startswith("winograd"):
            return self.has_winograd
        if algorithm == "depthwise":
            return self.is_depthwise
        if algorithm == "grouped":
            return self.is_grouped
        return algorithm == "direct" or self.has_parts


# The first line that holds decides. Why each is so: docs/cpu-engine.md.
_TABLE: tuple[tuple[str, Callable[[Geometry], bool]], ...] = (
    ("depthwise", lambda g: g.is_depthwise),
    ("bf16x1", lambda g: g.suits_tile_registers and g.dtype == torch.bfloat16),
    # float16 too, whose numbers are two parts
    ("bf16x3", lambda g: g.suits_tile_registers and g.allows_rounding and not g.is_narrow_for_parts),
    ("bf16x6", lambda g: g.suits_tile_registers and g.conv.groups == 1),
    ("grouped", lambda g: g.suits_grouped),
    ("winograd_f2", lambda g: g.suits_winograd and g.cheapest == "winograd_f2"),
    ("winograd_f4", lambda g: g.suits_winograd and g.cheapest == "winograd_f4"),
    ("winograd_f5", lambda g: g.suits_winograd and g.cheapest == "winograd_f5"),
    ("winograd_stem", lambda g: g.suits_stem),
    ("bf16x1", lambda g: g.suits_dot_products),
    ("winograd_s2", lambda g: g.suits_strided_winograd),
    ("direct", lambda g: True),
)


def conv_algorithm(
    conv: Conv,
    weight_shape: Sequence[int],
    output_shape: Sequence[int],
    dtype: torch.dtype,
    keeps_filter: bool = False,
    weight_gradient: bool = False,
) -> str:
    """One of ``CONV_ALGORITHMS``.

    ``weight_shape`` is (K, C / groups, R, S), ``output_shape`` (N, K, OH, OW); ``keeps_filter`` says that the filter is
    packed for many calls, ``weight_gradient`` that its gradient is asked for. Raises ValueError for an unknown name in
    ``FUSED_RESNET_CONV``.
    """
    geometry = Geometry(conv, weight_shape, output_shape, dtype, keeps_filter, weight_gradient)
    forced = os.environ.get(_ENVIRONMENT) or "auto"
    if forced not in ("auto", *CONV_ALGORITHMS):
        raise ValueError(f"{_ENVIRONMENT}: expected auto or one of {', '.join(CONV_ALGORITHMS)}, got {forced!r}")
    chosen = next(name for name, holds in _TABLE if holds(geometry))
    if forced == "auto":
        return chosen
    return forced if geometry.has(forced) else "direct"
