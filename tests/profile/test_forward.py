"""Steps of the user's own: autocast, gradient accumulation, several inputs, a detector, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import BasicBlock

from fused_resnet.profile import ProfileResult, run
from fused_resnet.profile.forward import Forward

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, SIZE, CHANNELS = 4, 16, 8
LOADING_S = 0.01  # of a micro-batch
PIXELS = BATCH * SIZE * SIZE


class Net(nn.Sequential):
    """A stem, a basic block and a classifier."""

    def __init__(self) -> None:
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5))
        super().__init__(nn.Conv2d(3, CHANNELS, 3, padding=1), BasicBlock(CHANNELS, CHANNELS), *pool)


IMAGES, LABELS = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(5, (BATCH,))


def autocast_forward(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return cross_entropy(model(IMAGES), LABELS)


def test_autocast() -> None:
    plain, half = run(Net(), IMAGES, LABELS, steps=1), run(Net(), forward=autocast_forward, steps=1)
    assert half.settings == {**plain.settings, "autocast": "bfloat16"}
    assert half.settings["input"] == [BATCH, 3, SIZE, SIZE] and half.settings["dtype"] == "float32"
    of_both = [result.blocks[1] for result in (plain, half)]
    assert [block["block"] for block in of_both] == ["1", "1"]
    for variant in ("stock", "fused"):
        single, halved = (block[variant] for block in of_both)
        assert halved["flop"] == (single["flop"] if variant == "stock" else 0)
        assert halved["kept_bytes"] < 0.75 * single["kept_bytes"]
    weights = 2 * CHANNELS * CHANNELS * 9
    raw_and_out, vectors = 3 * PIXELS * CHANNELS, 2 * 2 * CHANNELS
    assert of_both[1]["fused"]["kept_bytes"] == 2 * (raw_and_out + weights) + 4 * vectors  # weights are cast, then kept


class Sleep(torch.autograd.Function):
    """The identity, which takes as long as told forward and backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_s)
        return g.clone(), None, None


class Sleeper(nn.Module):
    """A stem that takes 10 ms forward and 15 backward, a block, and a head that takes 20 and 25."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3)
        self.block = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.last = nn.Conv2d(CHANNELS, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(Sleep.apply(self.conv(x), 0.01, 0.015))
        return Sleep.apply(self.last(y), 0.02, 0.025).mean((2, 3))


def called_twice(model: nn.Module) -> Tensor:
    return (model(IMAGES) - model(IMAGES.flip(0))).square().mean()


def accumulated(model: nn.Module) -> Iterator[Tensor]:
    for images, labels in zip(IMAGES.split(BATCH // 2), LABELS.split(BATCH // 2), strict=True):
        time.sleep(LOADING_S)
        yield cross_entropy(model(images), labels) / 2


@pytest.mark.parametrize("forward", [called_twice, accumulated])
def test_parts_of_several_calls(forward: Forward) -> None:
    """Each call has its stem, its block and its head, in the clocks as in the trace of operators."""
    result = run(Sleeper(), forward=forward, steps=2)
    loading = 2e3 * LOADING_S if forward is accumulated else 0  # part of the stem
    assert [block["block"] for block in result.blocks] == ["(stem)", "block", "(head)"]
    for variant in ("stock", "fused"):
        step = result.steps[variant]
        for phase, stem, head in (("forward", 20 + loading, 40), ("backward", 30, 50)):
            parts = [block[variant][f"{phase}_ms"] for block in result.blocks]
            assert sum(parts) == pytest.approx(step[phase], rel=0.03) and min(parts) > 0
            assert stem <= parts[0] < stem + 25 and head <= parts[2] < head + 25, (phase, parts)
        assert sum(step[phase] for phase in ("forward", "backward", "optimizer")) == pytest.approx(step["step"])
    rows = [r for r in result.timeline if r["variant"] == "stock" and r["kind"] == "convolution"]
    calls = {"forward": ["(stem)", "block", "(head)"], "backward": ["(head)", "block", "(stem)"]}
    if forward is accumulated:
        order = [(phase, block) for phase in ("forward", "backward") for block in calls[phase]] * 2
    else:
        order = [(phase, block) for phase in ("forward", "backward") for block in calls[phase] * 2]
    assert [(row["phase"], row["block"]) for row in rows] == order


def test_accumulated_gradients() -> None:
    """The optimizer gets their sum; all micro-batches are computed, what one of them keeps is kept at a time."""
    model = Net()
    steps: list[list[Tensor]] = []

    def recorded(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        trained = optimizer.param_groups[0]["params"]
        optimizer.register_step_pre_hook(lambda *_: steps.append([p.grad.clone() for p in trained]))
        return optimizer

    whole = run(model, IMAGES, LABELS, steps=1)
    result = run(model, forward=accumulated, optimizer=recorded, steps=1)
    assert result.settings["input"] == [BATCH // 2, 3, SIZE, SIZE]
    for loss in accumulated(model.train()):
        loss.backward()
    for grads in steps:
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-5)
    for block, of_whole in zip(result.blocks, whole.blocks, strict=True):
        for variant in ("stock", "fused"):
            assert block[variant]["flop"] == of_whole[variant]["flop"]
            assert block[variant]["kept_bytes"] < 0.6 * of_whole[variant]["kept_bytes"] + 1000


def test_a_checkpointed_block() -> None:
    """It keeps nothing, and what backward computes again is backward's."""

    def forward(model: nn.Module) -> Tensor:
        stem, block, *head = model
        y = checkpoint(block, stem(IMAGES), use_reentrant=False)
        return cross_entropy(nn.Sequential(*head)(y), LABELS)

    result = run(Net(), forward=forward, steps=1)
    assert "input" not in result.settings  # the model itself is not called
    for variant in ("stock", "fused"):
        assert result.blocks[1][variant]["kept_bytes"] == 0
        for phase in ("forward", "backward"):
            parts = [block[variant][f"{phase}_ms"] for block in result.blocks]
            assert sum(parts) == pytest.approx(result.steps[variant][phase], rel=0.03) and min(parts) > 0


class Masked(nn.Module):
    """Takes two tensors and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()

    def forward(self, images: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(images * mask)}


def test_several_inputs() -> None:
    mask = torch.rand(BATCH, 1, SIZE, SIZE)
    result = run(Masked(), forward=lambda model: model(IMAGES, mask=mask)["logits"].square().mean(), steps=1)
    assert result.settings["input"] == f"[{BATCH}, 3, {SIZE}, {SIZE}], [{BATCH}, 1, {SIZE}, {SIZE}]"
    assert [block["block"] for block in result.blocks] == ["(stem)", "body.1", "(head)"]


@pytest.fixture(scope="module")
def detected() -> ProfileResult:
    """Faster R-CNN on a ResNet-18 with small images and few proposals."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    few = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    model = FasterRCNN(backbone, num_classes=3, min_size=64, max_size=64, **few)
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in images]
    result = run(model, forward=lambda model: sum(model(images, targets).values()), steps=1)
    torch.set_num_threads(before)
    return result


def test_detector(detected: ProfileResult) -> None:
    names = [f"backbone.body.layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [block["block"] for block in detected.blocks] == ["(stem)", *names, "(head)"]
    assert detected.settings["input"] == "2 x [3, 64, 64], 2 x [1, 4], 2 x [1]"
    for block in detected.blocks:
        for variant in ("stock", "fused"):
            assert min(block[variant][name] for name in ("forward_ms", "backward_ms", "moved_bytes", "kept_bytes")) > 0
    calls = {row["op"]: row["calls"] for row in detected.ops if row["variant"] == "fused"}
    assert calls["fused_resnet::bn_act_conv"] == 20  # those of the ResNet
    assert "backbone.body.layer4.1" in str(detected) and "backbone.body.layer4.1" in detected.to_html()


def test_the_model_is_left_as_it_is() -> None:
    model = Net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, forward=autocast_forward, steps=1)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


OTHER = Net()
REFUSED = {
    "beside inputs": ({"inputs": IMAGES, "loss": cross_entropy}, autocast_forward, "within forward, got inputs, loss"),
    "beside targets": ({"targets": LABELS}, autocast_forward, "within forward, got targets too"),
    "nothing": ({}, None, "a batch of images, or a forward, got neither"),
    "no tensor": ({}, lambda model: {"loss": model(IMAGES).mean()}, "a loss, a scalar tensor, got dict"),
    "no scalar": ({}, lambda model: model(IMAGES), r"a loss, a scalar tensor, got one of shape \[4, 5\]"),
    "no gradient": ({}, lambda model: model(IMAGES).mean().detach(), "requires grad, got one that depends on no"),
    "no loss": ({}, lambda model: iter(()), "the model given to forward, but none of its"),
    "another model": ({}, lambda model: OTHER(IMAGES).mean(), "the model given to forward, but none of its"),
}


@pytest.mark.parametrize(("arguments", "forward", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments: dict[str, object], forward: Forward | None, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        run(Net(), **arguments, forward=forward)


def test_a_model_on_two_devices() -> None:
    model = Net()
    model[4].to("meta")
    with pytest.raises(ValueError, match=r"the model on cpu, the device of 0.weight, got 4.weight on meta"):
        run(model, forward=autocast_forward)


def test_a_loss_that_is_no_scalar() -> None:
    with pytest.raises(ValueError, match=r"a scalar tensor, got one of shape \[4\]"):
        run(Net(), IMAGES, LABELS, loss=lambda output, targets: cross_entropy(output, targets, reduction="none"))
