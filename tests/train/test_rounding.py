"""Training with convolutions that round more, the default, follows stock within the noise of stock's own seeds."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import fused_resnet
from fused_resnet import models

cpu = pytest.importorskip("fused_resnet.backends.cpu", reason="the native module is not built")

STEPS = 200
# Without tile registers bf16x3 is a specification, too slow for training.
ALGORITHMS = ["winograd_f4", "winograd_f5", *(["bf16x3"] if cpu.isa() == "amx" else [])]


def losses(seed: int, stock: bool) -> torch.Tensor:
    """Of 200 steps on digits at 16 pixels, each the mean over 20 steps; ``seed`` draws the weights and the batches."""
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], scale_factor=2.0)
    images, labels = images.expand(-1, 3, -1, -1), torch.tensor(digits.target)
    torch.manual_seed(seed)
    model = models.create_model("fused_resnet:resnet20", num_classes=10).train()
    if stock:
        fused_resnet.unfuse(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    found = []
    for _ in range(STEPS):
        batch = torch.randint(len(images), (16,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).view(-1, 20).mean(1)


stock_losses = cache(lambda seed: losses(seed, stock=True))


@pytest.mark.precision("high")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_200_steps_follow_stock(algorithm: str, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CONV", algorithm)
    chosen = []
    choose = cpu.engine.conv_algorithm
    monkeypatch.setattr(
        cpu.engine, "conv_algorithm", lambda *args, **kw: chosen.append(choose(*args, **kw)) or chosen[-1]
    )
    fused = losses(0, stock=False)
    assert chosen.count(algorithm) > len(chosen) / 2
    stock = [stock_losses(seed) for seed in range(3)]
    noise = max((a - b).abs().max() for a in stock for b in stock)
    assert stock[0][-1] < stock[0][0] / 4
    assert (fused - stock[0]).abs().max() <= noise
