"""What a batch norm module contributes to an op: its data, and its running statistics' update.

Everything is decided as ``nn.BatchNorm2d.forward`` decides it. torchvision's ``FrozenBatchNorm2d`` is read as a batch
norm that is always in evaluation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backends.arguments import BatchNorm
from ..functional import update_running_statistics

__all__ = ["StatisticsUpdate", "running_batch_norm", "uses_batch_statistics"]


class StatisticsUpdate(NamedTuple):
    """The step that a batch makes a batch norm's running statistics take; nothing moves before :meth:`commit`."""

    bn: nn.BatchNorm2d
    mean: Tensor  # [C]
    var: Tensor  # [C], biased
    size: torch.Size  # of the batch, [N, C, H, W]
    values: Tensor | None  # [], values per channel where the batch is spread over processes

    def commit(self) -> None:
        """Counts the batch and moves the running statistics, where ``bn`` trains and tracks them."""
        bn = self.bn
        if not (bn.training and bn.track_running_stats):
            return
        momentum: float | Tensor = 0.0 if bn.momentum is None else bn.momentum
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
            if bn.momentum is None:  # a cumulative average, as tensor arithmetic: float() would break a compiled graph
                momentum = bn.num_batches_tracked.to(self.mean.dtype).reciprocal()
        running = (bn.running_mean, bn.running_var)
        update_running_statistics(*running, self.mean, self.var, self.size, momentum, self.values)


def uses_batch_statistics(bn: nn.BatchNorm2d) -> bool:
    """Whether ``bn`` normalises a batch by its own statistics, rather than by the running ones."""
    return isinstance(bn, nn.BatchNorm2d | nn.SyncBatchNorm) and (
        bn.training or (bn.running_mean is None and bn.running_var is None)
    )


def running_batch_norm(bn: nn.BatchNorm2d) -> BatchNorm:
    """``bn`` with its running statistics.

    Where a gradient may be taken later they are copies ([C] each): a forward in training may move the buffers before
    this one's backward reads them, and stock batch norm does not mind.
    """
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None and var is not None
    if torch.is_grad_enabled():
        mean, var = mean.clone(), var.clone()
    return BatchNorm(mean, var, bn.weight, bn.bias, bn.eps)
