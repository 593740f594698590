"""DistributedDataParallel on gloo with two processes: gradients of the fused model are those of stock."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import torchvision
from support.oracle import relative_error
from support.parity import smooth
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fused_resnet


def gradients(fused: bool) -> dict[str, Tensor]:
    """Gradients and running statistics after two steps of this process's part of the batch."""
    torch.manual_seed(0)
    model = smooth(torchvision.models.resnet18(num_classes=10))
    x, target = torch.randn(2, 4, 3, 32, 32)[dist.get_rank()], torch.arange(4)
    if fused:
        fused_resnet.fuse(model)
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        F.cross_entropy(parallel(x), target).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients | {name: buffer.clone() for name, buffer in model.named_buffers()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    fused_resnet.set_float32_conv_precision("highest")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save((gradients(fused=True), gradients(fused=False)), f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    per_rank = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for fused, stock in per_rank:
        for name, want in stock.items():
            assert relative_error(fused[name], want) < 1e-3, name
    for name, gradient in per_rank[0][0].items():
        if name.endswith(("weight", "bias")):
            assert torch.equal(gradient, per_rank[1][0][name]), f"{name} differs between the processes"
