"""Train a fused ResNet on several processes, on GPUs with synchronised batch norms.

usage: torchrun --nproc-per-node 2 train_ddp.py [--steps N]
"""

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch.nn.parallel import DistributedDataParallel

import fused_resnet

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=5)


def train(steps: int, device: torch.device) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).to(device)
    if device.type == "cuda":  # DistributedDataParallel refuses synchronised norms on the CPU
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before fuse or after it
    report = fused_resnet.fuse(model)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)

    generator = torch.Generator().manual_seed(dist.get_rank())  # each process has data of its own
    for step in range(steps):
        images = torch.randn(8, 3, 32, 32, generator=generator).to(device)
        labels = torch.randint(10, (8,), generator=generator).to(device)
        loss = F.cross_entropy(parallel(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    total = torch.stack([p.detach().double().sum() for p in parallel.parameters()]).sum()
    totals = [torch.zeros_like(total) for _ in range(dist.get_world_size())]
    dist.all_gather(totals, total)
    assert all(torch.equal(other, total) for other in totals), "the processes have come apart"
    if dist.get_rank() == 0:
        print(f"{len(report.fused)} modules fused, {dist.get_world_size()} processes with the same weights")


dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
device = torch.device("cuda", dist.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
train(parser.parse_args().steps, device)  # what holds the process group ends before it
dist.barrier()
dist.destroy_process_group()
