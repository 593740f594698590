"""Statistics of a batch that is spread over processes: an all-reduce between two ops, in plain autograd.

With n_i, mean_i and var_i those of each process: n = sum n_i, mean = sum n_i mean_i / n, and, centred so that nothing
cancels, var = sum n_i (var_i + (mean_i - mean)^2) / n.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["process_group", "synchronised_statistics"]


def process_group(bn: nn.Module) -> Any:
    """The processes that ``bn`` shares its batch with, or None: as ``nn.SyncBatchNorm`` decides it."""
    if not (isinstance(bn, nn.SyncBatchNorm) and bn.training and dist.is_available() and dist.is_initialized()):
        return None
    group = bn.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def synchronised_statistics(
    mean: Tensor,  # [C], of this process's part
    var: Tensor,  # [C], biased
    count: int,  # values per channel in this process's part
    group: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] of the whole batch, differentiable, and its number of values per channel []."""
    own = mean.new_full((1,), count, dtype=torch.float64)
    sums = _SumOverProcesses.apply(torch.cat((count * mean.double(), own)), group)
    total = sums[-1].detach()
    overall = sums[:-1] / total
    spread = count * (var.double() + (mean.double() - overall).square())
    overall_var = _SumOverProcesses.apply(spread, group) / total
    return overall.to(mean.dtype), overall_var.to(var.dtype), total.to(mean.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradient.contiguous(), ctx.group), None


def _all_reduce(x: Tensor, group: Any) -> Tensor:
    """Not in place, and traceable: torch.distributed.all_reduce would break a compiled graph."""
    from torch.distributed import _functional_collectives as collectives

    return collectives.wait_tensor(collectives.all_reduce(x, "sum", group))
