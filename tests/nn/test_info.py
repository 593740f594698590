"""The package's own facts and its one setting."""

from __future__ import annotations

import json

import pytest
import torch

import fused_resnet


def test_info_is_json_and_names_every_backend() -> None:
    info = json.loads(json.dumps(fused_resnet.info()))
    assert {name for name, state in info["backends"].items() if state == "available"} == set(
        fused_resnet.available_backends()
    )
    assert info["torch"] == torch.__version__
    assert info["threads"] == torch.get_num_threads()
    assert info["default_backend"]["cpu"] == ("cpu" if info["backends"]["cpu"] == "available" else "reference")
    assert (info["isa"] is None) == (info["backends"]["cpu"] != "available")


def test_info_shows_the_backend_asked_for() -> None:
    with fused_resnet.use_backend("reference"):
        assert fused_resnet.info()["requested_backend"] == "reference"
    assert fused_resnet.info()["requested_backend"] is None


@pytest.mark.precision("high")
def test_convolution_precision() -> None:
    assert fused_resnet.get_float32_conv_precision() == "high"
    fused_resnet.set_float32_conv_precision("highest")
    assert fused_resnet.info()["float32_conv_precision"] == "highest"
    with pytest.raises(ValueError, match="expected one of high, highest, got 'low'"):
        fused_resnet.set_float32_conv_precision("low")


def test_public_names() -> None:
    assert all(hasattr(fused_resnet, name) for name in fused_resnet.__all__)
    assert callable(fused_resnet.fuse) and callable(fused_resnet.info)
