"""What a profile measures, and that its parts add up."""

from __future__ import annotations

import json
import time
import weakref
from pathlib import Path

import pytest
import torch
from support.browser import CHROMIUM, after
from torch import Tensor, nn

import fused_resnet
from fused_resnet import FuseReport
from fused_resnet.fuse import FuseEntry
from fused_resnet.profile import ProfileResult, run
from fused_resnet.profile.blocks import BlockClock, block_names
from fused_resnet.profile.table import stages
from fused_resnet.profile.timeline import timeline
from fused_resnet.profile.trainee import Trainee

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


class Sleep(torch.autograd.Function):
    """The identity, which takes 60 ms forward and 90 ms backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        time.sleep(0.06)
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        time.sleep(0.09)
        return g.clone()


class Sleeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return Sleep.apply(self.layers(x)).mean((2, 3))


class SleepingSGD(torch.optim.SGD):
    def step(self, *arguments: object) -> None:
        time.sleep(0.03)
        super().step(*arguments)


def test_phases_are_what_the_step_takes() -> None:
    """Phases of known length: each is found, and their sum is a step that is timed as a whole, without clocks in it.

    On an idle machine within 1 %; this one may be busy.
    """
    result = run(Sleeper(), torch.randn(2, 3, 4, 4), optimizer=lambda p: SleepingSGD(p, 0.1), steps=3)
    for step in result.steps.values():
        for phase, slept in (("forward", 60), ("backward", 90), ("optimizer", 30)):
            assert slept <= step[phase] < slept + 25, (phase, step)
        assert sum(step[p] for p in ("forward", "backward", "optimizer")) == pytest.approx(step["bare"], rel=0.1)
    assert all(abs(share) < 0.1 for share in result.overhead["clocks"].values())


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


def test_calls_are_counted_once(result: ProfileResult) -> None:
    calls = {row["op"]: row["calls"] for row in result.ops if row["variant"] == "fused"}
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in fused_resnet.models.resnet20().modules())
    assert calls["fused_resnet::bn_act_conv"] == calls["fused_resnet::bn_act_conv_backward"] == convolutions


def test_timeline_has_every_operator_in_its_phase_and_block(result: ProfileResult) -> None:
    for variant, convolution in (("stock", "aten::conv2d"), ("fused", "fused_resnet::bn_act_conv")):
        rows = [row for row in result.timeline if row["variant"] == variant]
        ends = [row["start_ms"] + row["ms"] for row in rows]
        assert all(row["start_ms"] >= end - 1e-3 for row, end in zip(rows[1:], ends, strict=False))  # none in another
        assert list(dict.fromkeys(row["phase"] for row in rows)) == ["forward", "backward", "optimizer"]
        blocks = {phase: [row["block"] for row in rows if row["phase"] == phase] for phase in ("forward", "backward")}
        order = [block["block"] for block in result.blocks]
        assert list(dict.fromkeys(blocks["forward"])) == order
        assert list(dict.fromkeys(blocks["backward"])) == order[::-1]
        convolutions = [row["block"] for row in rows if row["op"] == convolution]
        assert len(convolutions) == 19 and convolutions.count("layer2.1") == 2
        assert rows[-1]["kind"] == "optimizer" and rows[-1]["block"] == ""


def test_timeline_of_a_trace() -> None:
    """What runs before the step, nested and short operators are left out; between two blocks the later one counts."""
    events = [
        ("aten::randn", 0, 90),
        ("phase: forward", 100, 1),
        ("aten::pad", 102, 20),
        ("block: a", 130, 1),
        ("aten::conv2d", 140, 100),
        ("aten::convolution", 150, 80),
        ("aten::view", 241, 2),
        ("block: (head)", 250, 1),
        ("aten::cat", 260, 30),
        ("block: b", 300, 1),
        ("block: (head)", 310, 1),
        ("aten::linear", 320, 40),
        ("phase: backward", 400, 1),
        ("autograd::engine::evaluate_function: MmBackward0", 410, 80),
        ("aten::mm", 420, 50),
        ("block: b", 500, 1),
        ("aten::add", 510, 20),
        ("phase: optimizer", 600, 1),
        ("Optimizer.step#SGD.step", 610, 90),
    ]
    trace = {"traceEvents": [{"ph": "X", "name": n, "ts": ts, "dur": dur} for n, ts, dur in events]}
    rows = [(r["op"], r["kind"], r["phase"], r["block"], r["start_ms"], r["ms"]) for r in timeline(trace)]
    assert rows == [
        ("aten::pad", "other", "forward", "(stem)", 0.002, 0.02),
        ("aten::conv2d", "convolution", "forward", "a", 0.04, 0.1),
        ("aten::cat", "other", "forward", "b", 0.16, 0.03),
        ("aten::linear", "matrix product", "forward", "(head)", 0.22, 0.04),
        ("aten::mm", "matrix product", "backward", "(head)", 0.32, 0.05),
        ("aten::add", "add", "backward", "b", 0.41, 0.02),
        ("Optimizer.step#SGD.step", "optimizer", "optimizer", "", 0.51, 0.09),
    ]
    assert timeline({"traceEvents": []}) == []


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
    # Phases; operators of either variant; blocks; memory; roofline with its roof.
    assert found == {"answer": [3, 1, 1, 2, 2, 3], "noted": []}


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
    message = (
        r"expected a model that returns logits \[N, classes, ...\], or targets and a loss, or a forward, got tuple"
    )
    with pytest.raises(TypeError, match=message):
        run(Regression(), x)


def interrupt(doing: str, done: int, total: int) -> None:
    """Ctrl-C when all steps are timed."""
    if doing == "count":
        raise KeyboardInterrupt


def test_interrupted() -> None:
    result = run(fused_resnet.models.resnet20(), torch.randn(2, 3, 32, 32), steps=1, progress=interrupt)
    assert result.interrupted and result.steps["fused"]["step"] > 0 and result.ops == [] and result.memory == {}
    assert "forward" in str(result)


def test_bare_steps_and_those_with_clocks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One beside the other, first the one, then the other: a machine that slows down slows both alike."""
    ran: list[tuple[Trainee, bool]] = []
    step = Trainee._step
    monkeypatch.setattr(Trainee, "_step", lambda self, *begin: ran.append((self, bool(begin))) or step(self, *begin))
    run(fused_resnet.models.resnet20(), torch.randn(1, 3, 32, 32), steps=2, progress=interrupt)
    (stock, _), (fused, _) = ran[:2]
    turns = [(stock, False), (stock, True), (fused, False), (fused, True)]
    turns += [(stock, True), (stock, False), (fused, True), (fused, False)]
    assert stock is not fused and ran[4:] == turns


def test_clocks_keep_nothing_of_a_step() -> None:
    """The nodes of its graph at the heap's end would spare the next step page faults that every other step pays."""
    model = fused_resnet.models.resnet20()
    with BlockClock(model, ["layer1.0"], lambda: None):
        output = model(torch.randn(1, 3, 32, 32))
    kept = weakref.ref(output)
    del output
    assert kept() is None


def test_nested_blocks_count_as_their_outermost() -> None:
    names = ("", "a", "a.b", "ab", "c.d")
    report = FuseReport(fused=[FuseEntry(name, "B", "") for name in names])
    assert block_names(report) == ["a", "ab", "c.d"]  # in the order of the report


def test_a_backbone_is_no_block() -> None:
    """It holds fused blocks in several stages; what a block holds lies in the block, or in one container of it."""
    names = ("body", "body.layer1.0", "body.layer1.0.conv1", "body.layer1.0.down.1", "body.layer2.0", "head.conv")
    report = FuseReport(fused=[FuseEntry(name, "B", "") for name in names])
    assert block_names(report) == ["body.layer1.0", "body.layer2.0", "head.conv"]
