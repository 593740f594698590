"""A block of one's own: fused by its traced forward, or by a mixin where a trace could prove nothing."""

import torch
from torch import Tensor, nn

import fused_resnet
from fused_resnet.nn import FusedConvs, conv_bn_act, conv_bn_add_act


class MyBlock(nn.Module):
    """An ordinary forward: fuse traces it, and finds the two convolutions and the add by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first_norm(self.first(x)))
        return self.act(self.second_norm(self.second(y)) + x)


class MyPickyBlock(MyBlock):
    """Its forward looks at the values, so that no trace holds for all inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("expected finite images")
        return super().forward(x)


class FusedMyPickyBlock(FusedConvs):
    """What to run in its place, for ``fuse(model, extra=...)``."""

    _convs = (("first", "first_norm"), ("second", "second_norm"))
    _activation = "act"

    def forward(self, x: Tensor) -> Tensor:
        if self.runs_stock(x):  # a hook inside, another norm, torch.func: the stock forward
            return super().forward(x)
        if not x.isfinite().all():
            raise ValueError("expected finite images")
        y = conv_bn_act(x, self.first, self.first_norm, self.act)
        return conv_bn_add_act(y, self.second, self.second_norm, x, self.act)


model = nn.Sequential(MyBlock(16), MyPickyBlock(16)).double()
images = torch.randn(4, 16, 8, 8, dtype=torch.float64)
want = model(images)
print(fused_resnet.fuse(model))
print(fused_resnet.fuse(model, extra={MyPickyBlock: FusedMyPickyBlock}))
torch.testing.assert_close(model(images), want)
fused_resnet.unfuse(model)
assert [type(block) for block in model] == [MyBlock, MyPickyBlock]
