"""timm's residual families: one model of each structure; ``make sweep`` runs them all."""

from __future__ import annotations

import copy
import time

import pytest
import timm
import torch
from support.oracle import relative_error
from support.timm_models import FAMILIES, architectures, check, check_model, small_model
from torch import nn

import fused_resnet

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fused_resnet runs on the reference path"),
]

# Model, and the least number of its modules that fuse whole or in part.
MODELS = {
    "resnet18": 5,  # basic blocks
    "resnetaa34d": 5,  # anti-aliasing, deep stem, average pooling in the shortcut
    "seresnext26d_32x4d": 5,  # squeeze and excitation, grouped
    "ecaresnet26t": 5,  # efficient channel attention, SiLU in the stem
    "resnetrs50": 5,  # a pool that is a convolution
    "resnetv2_50": 5,  # pre-activation, norms with an activation of their own
    "resnetv2_50d_gn": 0,  # group norm: left
    "regnety_002": 5,
    "regnetz_b16": 5,  # inverted bottlenecks
    "gernet_s": 5,
    "repvgg_a0": 5,  # three branches, one of them a batch norm
    "gcresnext26ts": 5,  # attention in the block, with a norm of another kind
    "resnest14d": 5,
    "res2net50_26w_4s": 5,
    "legacy_seresnet18": 4,
    "skresnet18": 5,
    "tresnet_m": 3,
    "darknet53": 3,
    "cspresnet50": 5,  # two paths, of which one is a split of the channels
    "cs3darknet_s": 5,
    "hrnet_w18_small": 5,
    "dla34": 5,
    "lambda_resnet26t": 5,  # lambda layers for convolutions
    "ese_vovnet19b_slim": 5,  # all outputs of a block concatenated
    "ese_vovnet19b_slim_dw": 5,  # its convolutions depthwise
    "selecsls60": 5,  # blocks that take and return lists
    "hgnetv2_b0": 5,  # an affine of one number behind each activation
    "mobileone_s0": 5,  # branches, one of them a batch norm
    "nf_regnet_b0": 0,  # no norm: left
    "mobilenetv2_100": 13,  # inverted residuals: of other modules, with depthwise convolutions
    "mobilenetv3_large_100": 14,
    "efficientnet_b0": 13,
    "ghostnet_100": 55,
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_buffers_are_those_of_stock(name: str) -> None:
    outcome = check(name)
    assert outcome.fused + outcome.partial >= MODELS[name]
    assert (MODELS[name] > 0) == (outcome.batch_norms > 0)


def test_no_family_is_without_a_model() -> None:
    assert [family for family in FAMILIES if MODELS.keys().isdisjoint(architectures(family))] == []


def test_fusing_is_quick_and_names_every_block() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet152d")
    start = time.perf_counter()
    report = fused_resnet.fuse(model)
    assert time.perf_counter() - start < 0.5
    names = {entry.name for entry in report.fused}
    assert {name for name, m in model.named_modules() if hasattr(m, "conv3")} | {""} == names
    assert report.partial == report.skipped == []


def test_drop_path_is_a_layer_in_training_and_nothing_in_evaluation() -> None:
    model = timm.create_model("resnet26", drop_path_rate=0.5, num_classes=5)
    block = model.layer4[1]
    report = fused_resnet.fuse(model)
    assert any("drop_path" in entry.reason for entry in report.partial if entry.name == "layer4.1")
    drops = []
    block.drop_path.register_forward_hook(lambda *_: drops.append(True))
    x = torch.randn(2, 3, 64, 64)
    model.train()(x)
    assert drops == [True]
    block.drop_path._forward_hooks.clear()
    stock = copy.deepcopy(model).eval()
    fused_resnet.unfuse(stock)
    assert relative_error(model.eval()(x), stock(x)) < 1e-5
    assert fused_resnet.fuse(model).partial == []


def test_drop_block_draws_as_in_stock() -> None:
    """It stands between batch norm and activation, which is a layer then: the block is fused around both."""
    stock = small_model("resnet18", drop_block_rate=0.3).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = copy.deepcopy(stock)
    assert fused_resnet.fuse(model).fused[-1].reason == "conv1 bn1, conv2 bn2 add act2"
    outputs = [(torch.manual_seed(seed), model.train()(x))[1] for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    check_model("resnet18", stock, x)
    assert fused_resnet.fuse(model.eval()).fused[-1].reason == "conv1 bn1 act1, conv2 bn2 add act2"


@pytest.mark.parametrize(("name", "training"), [("resnet26d", True), ("resnetv2_50", False)])
def test_compiles_without_a_break(name: str, training: bool) -> None:
    torch._dynamo.reset()  # every traced model shares one forward, and the limit of recompilations is the process's
    model = small_model(name).train(training)
    fused_resnet.fuse(model)
    eager = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), eager(x)) < 1e-4


def test_features_only_keeps_its_names() -> None:
    stock = timm.create_model("resnet18", features_only=True).eval()
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    assert report.fused[0].class_name == "FeatureListNet" and report.fused[0].reason.startswith("conv1 bn1")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for got, want in zip(model(x), stock(x), strict=True):
            assert relative_error(got, want) < 1e-5
    assert list(model.state_dict()) == list(stock.state_dict())


def test_frozen_norms_with_activation() -> None:
    stock = small_model("resnetv2_50")
    frozen = timm.layers.norm_act.freeze_batch_norm_2d(stock)
    model = copy.deepcopy(frozen)
    assert len(fused_resnet.fuse(model).partial) == 8
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model(x), frozen(x)) < 1e-5
