"""The convolutions of a model, counted without computing them."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fused_resnet.bench import geometry
from fused_resnet.bench.child import BenchError
from fused_resnet.bench.geometry import Layer, convolutions


def layer(**fields):
    usual = {"N": 2, "C": 8, "K": 12, "R": 3, "S": 3, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return Layer(**usual | {"groups": 1, "H": 9, "W": 11} | fields)


def test_convolutions_of_a_model_that_is_born_fused():
    found = convolutions("fused_resnet:resnet20", 4, 32)
    assert {geometry.text: count for geometry, count in found.items()} == {
        "3x3 3>16 32x32": 1,
        "3x3 16>16 32x32": 6,
        "3x3/2 16>32 32x32": 1,
        "3x3 32>32 16x16": 5,
        "3x3/2 32>64 16x16": 1,
        "3x3 64>64 8x8": 5,
    }
    assert {geometry.N for geometry in found} == {4}


def test_arithmetic_of_resnet50():
    found = convolutions("torchvision:resnet50", 2, 224)
    multiply_adds = 4.089e9 - 2048 * 1000  # torchvision's figure, without the linear layer
    assert sum(count * g.flop for g, count in found.items()) == pytest.approx(2 * 2 * multiply_adds, rel=1e-3)
    assert sum(found.values()) == 53 and len(found) == 23


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "3x3 8>12 9x11"),
        ({"R": 1, "S": 1, "padding": (0, 0), "stride": (2, 2)}, "1x1/2 8>12 9x11"),
        ({"groups": 4, "stride": (2, 1)}, "3x3/2x1 8>12 9x11 groups 4"),
        ({"dilation": (2, 2), "padding": (2, 2)}, "3x3 8>12 9x11 dilation 2"),
        ({"padding": (0, 0)}, "3x3 8>12 9x11 padding 0"),
        ({"R": 1, "padding": (0, 1)}, "1x3 8>12 9x11"),
        ({"R": 1, "S": 1, "padding": (1, 1)}, "1x1 8>12 9x11 padding 1"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_a_layer_in_words_and_numbers(fields, text):
    subject = layer(**fields)
    assert subject.text == text
    x, weight = torch.zeros(subject.input_shape), torch.zeros(subject.weight_shape)
    with FlopCounterMode(display=False) as counter:
        y = nn.functional.conv2d(x, weight, None, *subject.conv)
    assert y.shape == subject.output_shape
    assert subject.flop == counter.get_total_flops()


def test_only_convolutions_in_two_dimensions_count(monkeypatch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
            self.transposed = nn.ConvTranspose2d(4, 4, 2)
            self.line = nn.Conv1d(4, 4, 3)

        def forward(self, x):
            return self.line(self.transposed(self.same(self.same(x)[:, :3])).flatten(2))

    monkeypatch.setattr(geometry, "create_model", lambda name: Model())
    expected = layer(N=1, C=3, K=4, dilation=(2, 2), padding=(2, 2), H=7, W=7)
    assert convolutions("some", 1, 7) == {expected: 2}


def test_a_model_without_convolutions(monkeypatch):
    monkeypatch.setattr(geometry, "create_model", lambda name: nn.Flatten())
    with pytest.raises(BenchError, match="expected a model with 2-d convolutions, got some with none"):
        convolutions("some", 1, 7)


def test_images_that_are_too_small():
    with pytest.raises(BenchError, match=r"torchvision:alexnet does not run for images of 8x8: .*size"):
        convolutions("torchvision:alexnet", 1, 8)
