"""The distinct convolutions of a model, found without computing one, and what is timed of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..backends.arguments import Conv
from ..fuse import unfuse
from ..models.registry import create_model
from .child import BenchError

__all__ = ["OURS", "PASSES", "STOCK", "Layer", "convolutions"]

PASSES = ("forward", "dgrad", "wgrad")
OURS = "ours"
STOCK = ("channels_last", "contiguous")  # PyTorch in either memory format


class Layer(NamedTuple):
    """A 2-d convolution and the size of its input, in pixels; bias is no matter."""

    N: int
    C: int
    K: int
    R: int
    S: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    H: int
    W: int

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Layer:
        """From what JSON made of ``_asdict()``: it has no tuples."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
        return Layer(**values)

    @property
    def conv(self) -> Conv:
        return Conv(self.stride, self.padding, self.dilation, self.groups)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.K, self.C // self.groups, self.R, self.S

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.K, *self.conv.output_size((self.H, self.W), (self.R, self.S))

    @property
    def flop(self) -> int:
        """Of one pass in direct arithmetic, two for a multiply-add: 2 N OH OW K C/g R S; the three passes are alike."""
        n, k, height, width = self.output_shape
        return 2 * n * height * width * k * self.C // self.groups * self.R * self.S

    @property
    def text(self) -> str:
        """``3x3/2 64>128 56x56``: filter, stride, channels, input; groups, dilation and padding where not the usual."""
        same = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, (self.R, self.S), strict=True))
        parts = (
            (f"{self.R}x{self.S}{_times('/', self.stride)} {self.C}>{self.K} {self.H}x{self.W}", True),
            (f"groups {self.groups}", self.groups > 1),
            (f"dilation {_times('', self.dilation)}", self.dilation != (1, 1)),
            (f"padding {_times('', self.padding) or '1'}", self.padding != same),
        )
        return " ".join(text for text, is_shown in parts if is_shown)


def convolutions(model: str, batch: int, image_size: int) -> dict[Layer, int]:
    """Each distinct convolution of a model by name, in the order it runs in, and how often it occurs.

    Counts what PyTorch runs for the unfused model in evaluation. Raises BenchError where that fails, or has no 2-d
    convolution.
    """
    built = create_model(model).eval().to("meta")
    unfuse(built)
    images = torch.empty(batch, 3, image_size, image_size, device="meta")  # [N, 3, S, S]
    try:
        with torch.no_grad(), _Recorder() as recorder:
            built(images)
    except (RuntimeError, ValueError, AssertionError) as error:  # what models say to images that are too small
        raise BenchError(f"{model} does not run for images of {image_size}x{image_size}: {error}") from error
    if not recorder.layers:
        raise BenchError(f"layers: expected a model with 2-d convolutions, got {model} with none")
    return dict(recorder.layers)


class _Recorder(TorchDispatchMode):
    """Within its ``with`` block, counts the 2-d convolutions that run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Counter[Layer] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self._count(*args)
        return func(*args, **kwargs or {})

    def _count(
        self,
        x: Tensor,  # [N, C, H, W]
        weight: Tensor,  # [K, C / groups, R, S]
        bias: Tensor | None,  # [K]
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        if transposed or x.ndim != 4:
            return
        n, c, h, w = x.shape
        k, _, r, s = weight.shape
        self.layers[Layer(n, c, k, r, s, _pair(stride), _pair(padding), _pair(dilation), groups, h, w)] += 1


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """For height and width; PyTorch lets one number stand for both."""
    return values[0], values[-1]


def _times(prefix: str, pair: tuple[int, int]) -> str:
    """``prefix`` and the pair, as one number where both are the same; empty for (1, 1)."""
    if pair == (1, 1):
        return ""
    return prefix + (str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}")
