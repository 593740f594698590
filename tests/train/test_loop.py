"""A fused model learns as its stock twin does."""

import pytest
import torch
from torch import nn

from fused_resnet.train import TrainSettings, train
from fused_resnet.train.loop import accuracy


@pytest.fixture(autouse=True)
def threads():
    """A training run sets the number of threads of its process, which is also that of the other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def first_losses(steps, **settings):
    """The losses of the first steps of a longer training, ended as by Ctrl-C."""

    def interrupt(result, _):
        if len(result.losses) == steps:
            raise KeyboardInterrupt

    result = train(TrainSettings(**settings, threads=1), interrupt)
    assert result.interrupted and len(result.losses) == steps and result.epochs == []
    return torch.tensor(result.losses)


def test_fused_and_stock_have_the_same_first_losses():
    fused, stock = first_losses(20), first_losses(20, stock=True)
    assert (fused - stock).abs().max() < 1e-3
    assert stock[-5:].mean() < stock[0] - 0.2


@pytest.fixture
def fp64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_in_fp64_they_have_the_same_digits(fp64):
    """The sharp test: here one weight's gradient that is 1 % off changes the losses by 5e-2, and rounding by 1e-14."""
    settings = {"batch": 16, "lr": 5.0, "seed": 1}
    fused, stock = first_losses(10, **settings), first_losses(10, stock=True, **settings)
    assert (fused - stock).abs().max() < 1e-9


def test_the_seed_fixes_all():
    settings = {"batch": 16, "stock": True}
    assert torch.equal(first_losses(2, **settings), first_losses(2, **settings))
    assert not torch.equal(first_losses(2, **settings), first_losses(2, seed=1, **settings))


def test_an_epoch_is_tested_and_reported():
    result = train(TrainSettings(epochs=1, batch=479, threads=1))
    assert len(result.losses) == 3 and not result.interrupted
    (epoch,) = result.to_dict()["epochs"]
    assert epoch["loss"] == pytest.approx(sum(result.losses) / 3)
    assert 0 <= epoch["test_accuracy"] <= 1 and 0 < epoch["seconds"] <= result.seconds
    assert result.to_dict()["settings"]["batch"] == 479


def test_accuracy_counts_the_right_ones():
    images = torch.eye(4).repeat(
        75, 1
    )  # 300 images, more than one batch; the identity answers with the pixel that is set
    labels = torch.arange(4).repeat(75)
    labels[:30] = (labels[:30] + 1) % 4
    assert accuracy(nn.Identity(), images, labels) == pytest.approx(0.9)
