"""SyncBatchNorm over two gloo processes with uneven batches: what one process computes for the whole batch.

Stock's SyncBatchNorm refuses tensors of the CPU, so the whole batch in one process, in float64, is what it is held to.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from support.oracle import relative_error
from support.parity import smooth
from torch import Tensor, nn

import fused_resnet

PARTS = (5, 2)  # images of each process
WHEN = ("before", "after", "compiled")


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [torchvision.models.resnet.BasicBlock(16, 16), torchvision.models.resnet.Bottleneck(16, 4)]
    return smooth(nn.Sequential(*layers)).double()


def images() -> Tensor:
    return torch.randn(sum(PARTS), 16, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two steps: outputs, gradients and running statistics."""
    for _ in range(2):
        output = model(x)
        output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"output": output.detach()} | gradients | {n: b.clone() for n, b in model.named_buffers()}


def synchronised(when: str) -> nn.Module:
    """The model, converted before or after it was fused; compiled or not."""
    made = model()
    if when == "after":
        fused_resnet.fuse(made)
    made = nn.SyncBatchNorm.convert_sync_batchnorm(made)
    report = fused_resnet.fuse(made)
    assert len(report.fused) == 2
    return torch.compile(made, backend="aot_eager", fullgraph=True) if when == "compiled" else made


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(PARTS))
    try:
        results = {when: step(synchronised(when), images().split(PARTS)[rank]) for when in WHEN}
        torch.save(results, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """The results of each process."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, args=(str(folder),), nprocs=len(PARTS))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(len(PARTS))]


@pytest.mark.parametrize("when", WHEN)
def test_two_processes_are_one(when: str, parts: list[dict[str, dict[str, Tensor]]]) -> None:
    found = [{name.removeprefix("_orig_mod."): t for name, t in part[when].items()} for part in parts]
    whole = step(model(), images())
    assert relative_error(torch.cat([part["output"] for part in found]), whole.pop("output")) < 1e-6
    buffers = dict(model().named_buffers())
    for name, want in whole.items():
        if name in buffers:  # the same everywhere, counts to the unit
            assert all(relative_error(part[name], want) < 1e-6 for part in found), name
        else:
            assert relative_error(sum(part[name] for part in found), want) < 1e-6, name


def test_without_processes_it_is_a_plain_batch_norm() -> None:
    alone, plain = nn.SyncBatchNorm.convert_sync_batchnorm(model()), model()
    assert len(fused_resnet.fuse(alone).fused) == 2
    got, want = step(alone, images()), step(plain, images())
    for name in want:
        assert relative_error(got[name], want[name]) < 1e-9, name
