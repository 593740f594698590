"""Data sources for training: one table. A source is a function without arguments that returns :class:`Data`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

__all__ = ["SOURCES", "Data", "digits", "shifted"]


class Data(NamedTuple):
    """Images and labels in memory, in a fixed split; images in torch's default dtype, normalised."""

    train_images: Tensor  # [N, 3, S, S]
    train_labels: Tensor  # [N] int64
    test_images: Tensor  # [M, 3, S, S]
    test_labels: Tensor  # [M] int64
    classes: int


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, enlarged to 32x32 and repeated to 3 channels; 20 % for test.

    Raises ImportError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(f"data 'digits' needs scikit-learn, which cannot be imported: {error}") from error
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    small = torch.from_numpy(pixels).to(torch.get_default_dtype()).view(-1, 1, 8, 8)
    images = interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    train, test = (torch.from_numpy(indices) for indices in split)
    std, mean = torch.std_mean(images[train])
    images = ((images - mean) / std).expand(-1, 3, -1, -1)
    targets = torch.from_numpy(labels)
    return Data(images[train], targets[train], images[test], targets[test], classes=10)


def shifted(images: Tensor, generator: torch.Generator, pixels: int = 4) -> Tensor:
    """Images [N, C, S, S], each padded with zeros and cropped at a random place: He et al. 2015, section 4.2.

    Every image moves by up to ``pixels`` in both directions. The result is channels_last.
    """
    count, _, height, width = images.shape
    corners = torch.randint(2 * pixels + 1, (2, count, 1), generator=generator)
    rows = corners[0] + torch.arange(height)  # [N, S]
    columns = corners[1] + torch.arange(width)
    image = torch.arange(count)[:, None, None]
    cropped = pad(images, [pixels] * 4)[image, :, rows[:, :, None], columns[:, None, :]]  # [N, S, S, C]
    return cropped.permute(0, 3, 1, 2)


SOURCES: dict[str, Callable[[], Data]] = {"digits": digits}
