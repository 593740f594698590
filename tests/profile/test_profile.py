"""What a profile measures, and that its parts add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.browser import CHROMIUM, after
from torch import Tensor, nn

import fused_resnet
from fused_resnet import FuseReport
from fused_resnet.fuse import FuseEntry
from fused_resnet.profile import ProfileResult, run
from fused_resnet.profile.blocks import block_names
from fused_resnet.profile.table import stages

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = 4


def profiled() -> ProfileResult:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = fused_resnet.models.resnet20()
    model.eval()
    result = run(model, torch.randn(BATCH, 3, 32, 32), steps=3, name="resnet20")
    torch.set_num_threads(before)
    assert not model.training and all(p.grad is None for p in model.parameters())  # it is left as it was
    return result


@pytest.fixture(scope="module")
def result() -> ProfileResult:
    return profiled()


def test_phases_and_blocks_add_up(result: ProfileResult) -> None:
    for variant, step in result.steps.items():
        assert sum(step[phase] for phase in ("forward", "backward", "optimizer")) == pytest.approx(
            step["step"], rel=0.03
        )
        for phase in ("forward", "backward"):
            parts = [block[variant][f"{phase}_ms"] for block in result.blocks]
            assert sum(parts) == pytest.approx(step[phase], rel=0.03) and min(parts) > 0
        assert 0 < step["bare"] < 2 * step["step"]
    assert result.speedup == result.steps["stock"]["step"] / result.steps["fused"]["step"]


def test_blocks_are_those_of_the_model_in_order(result: ProfileResult) -> None:
    names = [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    assert [block["block"] for block in result.blocks] == ["(stem)", *names, "(head)"]
    assert {block["class"] for block in result.blocks[1:-1]} == {"BasicBlock"}
    assert [stage["stage"] for stage in stages(result.blocks)] == ["(stem)", "layer1", "layer2", "layer3", "(head)"]


def test_counts_are_those_of_the_arithmetic(result: ProfileResult) -> None:
    block = result.blocks[1]
    pixels = BATCH * 32 * 32
    assert block["stock"]["flop"] == 3 * 2 * (2 * pixels * 16 * 16 * 9)  # three passes of two convolutions
    vectors = 2 * 2 * 16 * 4  # mean and variance of both
    assert block["fused"]["kept_bytes"] == 3 * pixels * 16 * 4 + vectors  # two raw outputs and the block's
    assert block["stock"]["kept_bytes"] > 1.3 * block["fused"]["kept_bytes"]
    assert block["stock"]["moved_bytes"] > 1.2 * block["fused"]["moved_bytes"] > 0


def test_operators_and_memory(result: ProfileResult) -> None:
    ops = {(row["variant"], row["op"]) for row in result.ops}
    assert ("fused", "fused_resnet::bn_act_conv") in ops and ("stock", "aten::native_batch_norm") in ops
    assert not any(variant == "stock" and "fused_resnet" in op for variant, op in ops)
    for variant in ("stock", "fused"):
        memory = result.memory[variant]
        kept = sum(block[variant]["kept_bytes"] for block in result.blocks)
        assert memory["peak_bytes"] >= 0.9 * kept and memory["curve"][0][0] == 0.0
    assert result.memory["fused"]["peak_bytes"] < result.memory["stock"]["peak_bytes"]
    assert set(result.overhead) == {"clocks", "torch.profiler"}
    assert result.roof["bytes_per_s"] > 1e8


def test_trace_has_both_side_by_side(result: ProfileResult) -> None:
    events = result.trace["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {1: "stock", 2: "fused"}
    assert min(event["ts"] for event in events if "ts" in event) == 0
    assert {event["pid"] for event in events if event["name"].startswith("fused_resnet::")} == {2}


def test_as_text_as_data_and_as_a_page(result: ProfileResult) -> None:
    text = str(result)
    assert "forward" in text and "layer1.0" in text and "fused_resnet::bn_act_conv" in text
    data = json.loads(json.dumps(result.to_dict()))
    assert data["settings"]["input"] == [BATCH, 3, 32, 32] and "trace" not in data
    notebook = result._repr_html_()
    assert notebook.startswith("<iframe srcdoc=") and "<html" not in notebook  # escaped


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_in_a_browser(result: ProfileResult, tmp_path: Path) -> None:
    script = 'return [...document.querySelectorAll(".figure")].map((f) => f.querySelectorAll(".trace").length);'
    found = json.loads(after(result.to_html(), script, tmp_path))
    assert found == {"answer": [3, 2, 2, 3], "noted": []}  # phases; blocks; memory; roofline with its roof


class Regression(nn.Module):
    """No classifier: it needs a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layers(x)
        return y, y.mean()


def test_a_loss_and_an_optimizer_of_ones_own() -> None:
    made = []

    def adam(parameters: object) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters))
        return made[-1]

    result = run(
        Regression(), torch.randn(2, 3, 16, 16), targets=1.0, loss=lambda y, t: (y[1] - t) ** 2, optimizer=adam, steps=1
    )
    assert len(made) == 2 and [block["block"] for block in result.blocks] == ["(stem)", "layers", "(head)"]


def test_bad_input() -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="expected a model with something to fuse, got Sequential: nothing to fuse"):
        run(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), x)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        run(Regression(), x, steps=0)
    with pytest.raises(ValueError, match=r"the model on cpu, the device of inputs, got layers.0.weight on meta"):
        run(Regression().to("meta"), x)
    with pytest.raises(
        TypeError, match=r"expected a model that returns logits \[N, classes, ...\], or a loss, got tuple"
    ):
        run(Regression(), x)


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "count":
            raise KeyboardInterrupt

    result = run(fused_resnet.models.resnet20(), torch.randn(2, 3, 32, 32), steps=1, progress=interrupt)
    assert result.interrupted and result.steps["fused"]["step"] > 0 and result.ops == [] and result.memory == {}
    assert "forward" in str(result)


def test_nested_blocks_count_as_their_outermost() -> None:
    names = ("", "a", "a.b", "ab", "c.d")
    report = FuseReport(fused=[FuseEntry(name, "B", "") for name in names])
    assert block_names(report) == ["a", "ab", "c.d"]  # in the order of the report
