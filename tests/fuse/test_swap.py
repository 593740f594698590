"""A fused model is the same model: its parameters, copies, checkpoints, hooks and companions are those of stock."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.oracle import relative_error
from support.parity import assert_buffers_match, randomise_batch_norms, smooth, stock_twin
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import feature_extraction
from torchvision.models._utils import IntermediateLayerGetter

import fused_resnet

pytestmark = pytest.mark.usefixtures("one_thread")

BasicBlock = torchvision.models.resnet.BasicBlock


class Tiny(torchvision.models.ResNet):
    """A ResNet with one block a stage."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=10)


@pytest.fixture
def stock() -> nn.Module:
    return randomise_batch_norms(Tiny())


@pytest.fixture
def fused(stock: nn.Module) -> nn.Module:
    model = copy.deepcopy(stock)
    assert len(fused_resnet.fuse(model).fused) == 5
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 32, 32)


def types(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def assert_same_step(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    """Outputs, gradients and running statistics of one training step agree."""
    for model in (a, b):
        model.zero_grad()
    out, want = a(x), b(x)
    assert relative_error(out, want) < 1e-3
    for result in (out, want):
        F.cross_entropy(result, torch.arange(4)).backward()
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < 5e-2, name
    for p, q in zip(a.buffers(), b.buffers(), strict=True):
        assert relative_error(p, q) < 1e-4


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_state_dict_is_equal_before_during_and_after(stock: nn.Module) -> None:
    before = {key: value.clone() for key, value in stock.state_dict().items()}
    parameters, names = list(stock.parameters()), [name for name, _ in stock.named_modules()]
    kinds = types(stock)
    fused_resnet.fuse(stock)
    assert types(stock) != kinds
    assert_same_state(stock.state_dict(), before)
    assert all(a is b for a, b in zip(stock.parameters(), parameters, strict=True))
    assert [name for name, _ in stock.named_modules()] == names
    fused_resnet.unfuse(stock)
    assert types(stock) == kinds
    assert_same_state(stock.state_dict(), before)


def test_instances_keep_their_classes(fused: nn.Module) -> None:
    assert isinstance(fused, Tiny)
    assert isinstance(fused.layer1[0], BasicBlock)
    assert type(fused.layer1[0]) is type(fused.layer2[0])
    assert "FusedBasicBlock" in repr(fused)


def test_unfuse_twice_and_on_stock(stock: nn.Module, fused: nn.Module) -> None:
    fused_resnet.unfuse(fused)
    fused_resnet.unfuse(fused)
    assert types(fused) == types(stock)


def test_unfuse_refuses_a_class_that_inherits_from_a_fused_one() -> None:
    class Mine(fused_resnet.nn.BasicBlock):
        pass

    model = nn.Sequential(fused_resnet.nn.BasicBlock(8, 8), Mine(8, 8))
    with pytest.raises(TypeError, match="1 is a Mine, which inherits from a fused class"):
        fused_resnet.unfuse(model)
    assert type(model[0]) is fused_resnet.nn.BasicBlock


def test_one_model_is_fused_and_others_are_not(stock: nn.Module, fused: nn.Module) -> None:
    assert type(stock) is Tiny
    assert type(torchvision.models.resnet18().layer1[0]) is BasicBlock
    assert type(fused) is not Tiny


def test_strict_load_both_ways(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    for source, destination in ((stock, copy.deepcopy(fused)), (fused, Tiny())):
        destination.load_state_dict(randomise_batch_norms(source).state_dict(), strict=True)
        assert_same_step(destination, source, x)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stay_fused(duplicate: Callable[[nn.Module], nn.Module], fused: nn.Module, x: Tensor) -> None:
    twin = duplicate(fused)
    assert types(twin) == types(fused)
    assert_same_state(twin.state_dict(), fused.state_dict())
    torch.testing.assert_close(twin.eval()(x), fused.eval()(x), rtol=0, atol=0)
    fused_resnet.unfuse(twin)
    assert type(twin) is Tiny


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_protocols(protocol: int) -> None:
    for module in (torchvision.models.resnet.BasicBlock(8, 8), fused_resnet.nn.BasicBlock(8, 8)):
        fused_resnet.fuse(module)
        assert types(pickle.loads(pickle.dumps(module, protocol))) == types(module)


def test_a_saved_model_loads_in_another_process(tmp_path: Path) -> None:
    model, x = torchvision.models.resnet18(num_classes=10).eval(), torch.randn(1, 3, 32, 32)
    fused_resnet.fuse(model)
    torch.save((model, x, model(x)), tmp_path / "model.pt")
    code = (
        "import sys, torch; model, x, want = torch.load(sys.argv[1], weights_only=False); import fused_resnet;"
        "fused_resnet.set_float32_conv_precision('highest');"  # as here
        "assert type(model).__name__ == 'FusedResNet' and len(fused_resnet.fuse(model).fused) == 9;"
        "torch.testing.assert_close(model(x), want); fused_resnet.unfuse(model);"
        "import torchvision; assert type(model) is torchvision.models.ResNet"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)


def test_torch_save_of_the_whole_model(fused: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    assert types(torch.load(buffer, weights_only=False)) == types(fused)


@pytest.mark.parametrize("when", ["before", "after"])
def test_optimizer_made_before_or_after(when: str, stock: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(smooth(stock))
    optimizers = [torch.optim.SGD(stock.parameters(), lr=1e-3, momentum=0.9)]
    if when == "before":
        optimizers.append(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
    fused_resnet.fuse(model)
    if when == "after":
        optimizers.append(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
    for _ in range(2):
        assert_same_step(model, stock, x)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(model.parameters(), stock.parameters(), strict=True):
        assert relative_error(a, b) < 1e-3


def test_averaged_copy(fused: nn.Module, x: Tensor) -> None:
    ema = AveragedModel(fused, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True)
    assert types(ema.module) == types(fused)
    ema.update_parameters(fused)
    fused(x).sum().backward()
    torch.optim.SGD(fused.parameters(), lr=0.1).step()
    want = 0.5 * (ema.module.conv1.weight + fused.conv1.weight).detach()
    ema.update_parameters(fused)
    torch.testing.assert_close(ema.module.conv1.weight.detach(), want)
    assert_same_step(ema.module, stock_twin(ema.module), x)


@pytest.mark.parametrize("path", ["layer1.0", "layer1.0.conv1", "layer1.0.bn1", "layer2.0.downsample", "bn1", ""])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_see_what_they_see_in_stock(register: str, path: str, stock: nn.Module, fused: nn.Module) -> None:
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    seen: dict[int, list[Tensor]] = {}
    handles = []
    for key, model in enumerate((stock, fused)):
        seen[key] = []
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # stock cannot have backward hooks before an in-place layer

        def hook(module: nn.Module, *values: object, key: int = key) -> None:
            for value in values:
                seen[key] += [t.detach().clone() for t in (value if isinstance(value, tuple) else (value,))]

        handles.append(getattr(model.get_submodule(path), register)(hook))
    assert_same_step(fused, stock, x)
    assert len(seen[0]) == len(seen[1]) > 0
    for a, b in zip(seen[1], seen[0], strict=True):
        assert relative_error(a, b) < 5e-2
    handles[1].remove()
    assert len(fused_resnet.fuse(fused).fused) == 5
    count = len(seen[1])
    assert_same_step(fused, stock, x)
    assert len(seen[1]) == count


def test_a_hook_can_change_what_flows(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    for model in (stock, fused):
        model.layer1[0].bn1.register_forward_hook(lambda module, args, output: output * 2)
    assert_same_step(fused, stock, x)


def test_hooks_for_all_modules(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    names: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__))
    try:
        stock(x)
        want = list(names)
        names.clear()
        fused(x)
    finally:
        handle.remove()
    assert [name.removeprefix("Fused") for name in names] == want


def test_a_child_replaced_after_fusing(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    for model in (stock, fused):
        model.layer1[0].relu = nn.Tanh()
        model.maxpool = nn.AvgPool2d(2)
        model.layer2[0].downsample = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128)
        )
    fused.layer2[0].downsample.load_state_dict(stock.layer2[0].downsample.state_dict())
    assert_same_step(fused, stock, x)


@pytest.mark.parametrize("when", ["before", "after"])
def test_synchronised_batch_norm(when: str, stock: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(stock)
    if when == "after":
        fused_resnet.fuse(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    report = fused_resnet.fuse(model)
    assert len(report.fused) == 5 and report.skipped == []
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    assert_same_step(model, stock, x)


def test_freezing_and_train_and_eval(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    for model in (stock, fused):
        model.train()
        model.layer1.eval().requires_grad_(False)
        model.bn1.eval()
    out, want = fused(x), stock(x)
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-4)
    for result in (out, want):
        result.square().mean().backward()
    for (name, p), q in zip(fused.named_parameters(), stock.named_parameters(), strict=True):
        assert (p.grad is None) == (q[1].grad is None), name
    for a, b in zip(fused.buffers(), stock.buffers(), strict=True):
        assert relative_error(a, b) < 1e-5


def test_feature_extractor_of_a_fused_model_holds_stock_layers(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    nodes = ["relu", "layer1.0.relu", "layer2.0.bn1", "layer4"]
    names = feature_extraction.get_graph_node_names(stock.eval())
    assert feature_extraction.get_graph_node_names(fused.eval()) == names
    want = feature_extraction.create_feature_extractor(stock, nodes)(x)
    got = feature_extraction.create_feature_extractor(fused, nodes)(x)
    assert list(got) == list(want)
    for key in want:
        torch.testing.assert_close(got[key], want[key])


@pytest.mark.parametrize("layers", [["layer1", "layer3"], ["relu", "layer2"], ["bn1", "layer1"], ["maxpool"]])
@pytest.mark.parametrize("order", ["getter_first", "fuse_first"])
def test_intermediate_layers(layers: list[str], order: str, stock: nn.Module, x: Tensor) -> None:
    wanted = {name: f"out_{name}" for name in layers}
    model = copy.deepcopy(stock)
    if order == "fuse_first":
        fused_resnet.fuse(model)
    getter, twin = IntermediateLayerGetter(model, wanted), IntermediateLayerGetter(stock, wanted)
    report = fused_resnet.fuse(getter)
    # A layer that is asked for must come out, so a run ends there; a lone convolution is no run.
    assert [e.reason for e in report.fused if e.name == ""] == [
        {"relu": "conv1 bn1 relu", "bn1": "conv1 bn1"}.get(layers[0], "conv1 bn1 relu maxpool")
    ]
    got, want = getter(x), twin(x)
    assert list(got) == list(want)
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-3, atol=1e-4)
    if layers == ["maxpool"]:
        assert_buffers_match(getter, twin)
    fused_resnet.unfuse(getter)
    assert types(getter) == types(twin)


def test_data_parallel_wrapper_is_fused_inside(stock: nn.Module, x: Tensor) -> None:
    wrapped = nn.DataParallel(copy.deepcopy(stock))
    report = fused_resnet.fuse(wrapped)
    assert {entry.name for entry in report.fused} == {"module", *(f"module.layer{i}.0" for i in (1, 2, 3, 4))}
    assert_same_step(wrapped.module, stock, x)
