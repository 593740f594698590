"""Digits and their augmentation."""

import pytest
import torch

from fused_resnet.train.data import digits, shifted


def test_digits_are_split_evenly_and_normalised():
    data = digits()
    assert data.train_images.shape == (1437, 3, 32, 32) and data.test_images.shape == (360, 3, 32, 32)
    assert data.train_images.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.train_images.std().item() == pytest.approx(1.0, abs=1e-3)
    shares = data.train_labels.bincount(minlength=10) / 1437 - data.test_labels.bincount(minlength=10) / 360
    assert shares.abs().max() < 3e-3
    assert all(torch.equal(a, b) for a, b in zip(data[:4], digits()[:4], strict=True))


def test_no_test_image_is_trained_on():
    data = digits()
    seen = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in seen for image in data.test_images)


def test_shifts_move_each_image_and_pad_with_zeros():
    images = torch.zeros(200, 2, 9, 9)
    images[:, 0, 4, 4] = torch.arange(1.0, 201.0)
    images[:, 1] = 1.0
    moved = shifted(images, torch.Generator().manual_seed(0), pixels=2)
    assert moved.shape == images.shape and moved.is_contiguous(memory_format=torch.channels_last)
    image, row, column = moved[:, 0].nonzero(as_tuple=True)
    assert torch.equal(moved[image, 0, row, column], torch.arange(1.0, 201.0))  # none lost, none doubled, in order
    assert {*row.tolist()} == {*column.tolist()} == {2, 3, 4, 5, 6}
    kept = (9 - (row - 4).abs()) * (9 - (column - 4).abs())  # of an image of ones, the rest is padding
    assert torch.equal(moved[:, 1].sum((1, 2)), kept.float())
