"""SyncBatchNorm over two gloo processes with uneven batches: what one process computes for the whole batch.

Stock's SyncBatchNorm refuses tensors of the CPU, so the whole batch in one process, in float64, is what it is held to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import timm
import timm.models.regnet
import timm.models.resnetv2
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.oracle import relative_error
from support.parity import smooth
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

import fused_resnet

PARTS = (5, 2)  # images of each process


def blocks() -> nn.Module:
    return smooth(nn.Sequential(BasicBlock(16, 16), Bottleneck(16, 4)))


def stem() -> nn.Module:
    """Its pool chooses by what is normalised; in float64 no candidate is within rounding of another."""
    return nn.Sequential(nn.Conv2d(16, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


def norm_acts() -> nn.Module:
    """Batch norms with an activation of their own, which timm converts to SyncBatchNormAct."""
    return timm.models.regnet.Bottleneck(16, 24, stride=2, group_size=8, downsample="conv1x1")


class Case(NamedTuple):
    """A model, how it is synchronised, and what ``fuse`` then says of it."""

    build: Callable[[], nn.Module]
    convert: Callable[[nn.Module], nn.Module]
    report: list[str]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().double()


BASIC = "conv1 bn1, conv2 bn2"
CASES = {
    "blocks": Case(blocks, nn.SyncBatchNorm.convert_sync_batchnorm, [f"{BASIC}, add", f"{BASIC}, conv3 bn3, add"]),
    "stem": Case(stem, nn.SyncBatchNorm.convert_sync_batchnorm, ["0 1 2 3"]),
    "norm_acts": Case(
        norm_acts,
        timm.layers.convert_sync_batchnorm,
        ["conv1.conv conv1.bn, conv2.conv conv2.bn, downsample.conv downsample.bn, conv3.conv conv3.bn add act3"],
    ),
}
RUNS = [*((name, when) for name in CASES for when in ("before", "after")), ("blocks", "compiled")]


def images() -> Tensor:
    return torch.randn(sum(PARTS), 16, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two steps: outputs, gradients and running statistics."""
    for _ in range(2):
        output = model(x)
        output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"output": output.detach()} | gradients | {n: b.clone() for n, b in model.named_buffers()}


def synchronised(case: Case, when: str) -> nn.Module:
    """The model, converted before or after it was fused; compiled or not."""
    made = case.model()
    if when == "after":
        fused_resnet.fuse(made)
    made = case.convert(made)
    report = fused_resnet.fuse(made)
    assert [entry.reason for entry in report.fused] == case.report and report.partial == report.skipped == []
    return torch.compile(made, backend="aot_eager", fullgraph=True) if when == "compiled" else made


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(PARTS))
    try:
        x = images().split(PARTS)[rank]
        results = {(name, when): step(synchronised(CASES[name], when), x) for name, when in RUNS}
        torch.save(results, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    """The results of each process."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, args=(str(folder),), nprocs=len(PARTS))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(len(PARTS))]


@pytest.mark.parametrize(("name", "when"), RUNS)
def test_two_processes_are_one(name: str, when: str, parts: list[dict[tuple[str, str], dict[str, Tensor]]]) -> None:
    found = [{key.removeprefix("_orig_mod."): t for key, t in part[name, when].items()} for part in parts]
    whole = step(CASES[name].model(), images())
    assert relative_error(torch.cat([part["output"] for part in found]), whole.pop("output")) < 1e-6
    buffers = dict(CASES[name].model().named_buffers())
    for key, want in whole.items():
        if key in buffers:  # the same everywhere, counts to the unit
            assert all(relative_error(part[key], want) < 1e-6 for part in found), key
        else:
            assert relative_error(sum(part[key] for part in found), want) < 1e-6, key


@pytest.mark.parametrize("name", CASES)
def test_without_processes_it_is_a_plain_batch_norm(name: str) -> None:
    case = CASES[name]
    alone = case.convert(case.model())
    assert len(fused_resnet.fuse(alone).fused) == len(case.report)
    got, want = step(alone, images()), step(case.model(), images())
    for key in want:
        assert relative_error(got[key], want[key]) < 1e-9, key


@pytest.mark.parametrize("fused_before", [False, True])
def test_where_it_fuses_in_part_it_is_a_plain_batch_norm_too(fused_before: bool) -> None:
    """A pre-activation block, whose first norm is called as a layer."""
    torch.manual_seed(0)
    layers = {"conv_layer": timm.layers.create_conv2d, "norm_layer": timm.layers.BatchNormAct2d}
    stock = timm.models.resnetv2.PreActBottleneck(16, 16, **layers).double()
    model = copy.deepcopy(stock)
    if fused_before:
        fused_resnet.fuse(model)
    model = timm.layers.convert_sync_batchnorm(model)
    assert len(fused_resnet.fuse(model).partial) == 1
    got, want = step(model, images()), step(stock, images())
    for key in want:
        assert relative_error(got[key], want[key]) < 1e-9, key
