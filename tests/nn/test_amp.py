"""Mixed precision as in stock: convolutions in the low type, statistics and parameters in float32, GradScaler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.oracle import relative_error
from support.parity import randomise_batch_norms, smooth, stock_twin
from support.timm_models import small_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fused_resnet

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {
    "torchvision": lambda: torchvision.models.resnet18(num_classes=5),
    "pre_activation": lambda: small_model("resnetv2_50"),
    "squeeze": lambda: small_model("seresnext26d_32x4d"),
}


class ConvTypes(TorchDispatchMode):
    """Notes the types of the images, the statistics and the outputs of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.images: set[torch.dtype] = set()
        self.statistics: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.fused_resnet.bn_act_conv.default:
            self.images |= {args[0].dtype, args[8].dtype, out[0].dtype}
            self.statistics |= {vector.dtype for vector in (*args[1:5], *out[1:]) if vector is not None}
        return out


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 32, 32)


def fused(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = randomise_batch_norms(smooth(MODELS[name]()))
    fused_resnet.fuse(model)
    return model.train()


def gradients(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        output = model(x)
        loss = F.cross_entropy(output, torch.arange(len(x)))
    loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.bfloat16) for name in MODELS), ("torchvision", torch.float16)]
)
def test_autocast_is_as_exact_as_stock(name: str, dtype: torch.dtype) -> None:
    model = fused(name)
    twin, exact = stock_twin(model), stock_twin(model).double()
    ratios = []
    for _ in range(3):  # of one input's gradients one side's may be all rounding
        x, types = torch.randn(4, 3, 32, 32), ConvTypes()
        with types:
            ours, our_gradients = gradients(model, x, dtype)
        stock, stock_gradients = gradients(twin, x, dtype)
        want, want_gradients = gradients(exact, x.double(), None)
        assert types.images == {dtype} and types.statistics == {torch.float32}
        assert ours.dtype == stock.dtype
        assert relative_error(ours, want) <= 2 * relative_error(stock, want)
        assert all(g.dtype == stock_gradients[n].dtype == torch.float32 for n, g in our_gradients.items())
        ours_error, stock_error = (
            torch.tensor([relative_error(g, want_gradients[n]) for n, g in found.items()]).square().mean().sqrt()
            for found in (our_gradients, stock_gradients)
        )
        ratios.append(float(ours_error / stock_error))
        if len(ratios) == 1:
            for (key, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
                assert a.dtype == b.dtype and relative_error(a, b) < 5e-2, key
    assert sorted(ratios)[1] <= 2, ratios


def test_grad_scaler_scales_steps_and_skips_what_overflows(x: Tensor) -> None:
    model = fused("torchvision")
    twin, exact = stock_twin(model), stock_twin(model).double()
    scales, updates = [], []
    for trained in (model, twin, exact):
        is_half = trained is not exact
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=is_half)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        before = trained.conv1.weight.detach().clone()
        for images in (x, x * float("inf"), x) if is_half else (x.double(), x.double()):
            with torch.autocast("cpu", torch.float16, enabled=is_half):
                loss = F.cross_entropy(trained(images), torch.arange(len(x)))
            kept = trained.conv1.weight.detach().clone()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert torch.equal(trained.conv1.weight, kept) != images.isfinite().all()
        scales.append(scaler.get_scale())
        updates.append(trained.conv1.weight.detach() - before)
    assert scales[:2] == [2.0**11, 2.0**11]  # doubled, halved, doubled
    errors = [relative_error(update, updates[2]) for update in updates[:2]]
    assert errors[0] <= 2 * errors[1]
