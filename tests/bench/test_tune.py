"""``fused-resnet tune`` on emulated CUDA and interpreted Triton kernels: times mean nothing here, the path does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import cuda_emulated
from torch import nn

from fused_resnet.backends import backends, cuda, tune
from fused_resnet.backends.arguments import Activation, Conv
from fused_resnet.backends.cuda.conv_algorithm import conv_tile
from fused_resnet.bench import op_calls
from fused_resnet.bench import tune as bench_tune
from fused_resnet.cli import main

COMMAND = ["tune", "resnet18", "--batch", "1", "--size", "6", "--rounds", "1"]
RELU = Activation("relu")


class Tiny(nn.Module):
    """A stem that pools, a 1x1 with a prologue, and a tail with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 8, 1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(16), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.bn1(self.stem(x)).relu())
        y = self.bn2(self.conv1(x)).relu()
        return (self.bn3(self.conv2(y)) + x).relu()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tune_file: Path) -> None:
    monkeypatch.setattr(op_calls, "create_model", lambda name: Tiny())
    for name in ("CUDA", "TRITON"):
        monkeypatch.delenv(f"FUSED_RESNET_{name}_CONV", raising=False)


def kept() -> dict[str, str]:
    return json.loads(tune.tune_file().read_text())["choices"]


def test_calls_of_a_fused_model() -> None:
    calls = op_calls.op_calls("any", 2, 6, training=True)
    assert [(call.op, call.text, call.is_first) for call in calls] == [
        ("bn_act_conv", "3x3 3>8 6x6", True),
        ("bn_act_max_pool", "8 6x6", False),
        ("bn_act_conv", "1x1 8>16 3x3", False),
        ("bn_act_conv", "1x1 16>8 3x3", False),
        ("bn_add_act", "8 3x3", False),
    ]
    assert calls[2].arguments["mean"] is None and calls[3].arguments["mean"] is not None
    assert [call.op for call in op_calls.op_calls("any", 2, 6, training=False)].count("conv_bn_add_act") == 2


def test_cuda(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_emulated.ensure()
    # The clock finds the last candidate fastest: the large tile, and PyTorch's convolution.
    monkeypatch.setattr(bench_tune, "median_ms", lambda calls, *_: {n: 1.0 / (i + 1) for i, n in enumerate(calls)})
    path = tmp_path / "out.json"
    assert main([*COMMAND, "--backend", cuda_emulated.NAME, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["key"]: row["chosen"] for row in rows} == kept()
    assert not any(row["left_out"] for row in rows)
    assert {(row["call"], row["slot"], row["chosen"]) for row in rows} == {
        *(("3x3 3>8 6x6", f"{op}.kernel", "cudnn") for op in ("bn_act_conv", "bn_act_conv_backward")),
        *(
            (call, f"{op}.{slot}", chosen)
            for call in ("1x1 8>16 3x3", "1x1 16>8 3x3")
            for op in ("bn_act_conv", "bn_act_conv_backward")
            for slot, chosen in (("tile", "large"), ("kernel", "cudnn"))
        ),
    }
    x, weight, conv = (
        torch.randn(1, 8, 3, 3).bfloat16(),
        torch.randn(16, 8, 1, 1).bfloat16(),
        Conv((1, 1), (0, 0), (1, 1), 1),
    )
    assert conv_tile("bn_act_conv", x, weight, conv) is None  # obeyed
    assert conv_tile("bn_act_conv", x.repeat(2, 1, 1, 1), weight, conv) == "automatic"  # another shape
    assert "1x1 8>16 3x3" in capsys.readouterr().out


# What is chosen for the model on Triton: tiles of each kernel, the passes around a library's convolution included, and
# whose convolution.
SLOTS = {
    "infer": {
        "bn_act_conv",
        "bn_act_conv.kernel",
        "bn_act_max_pool",
        "bn_add_act",
        "conv_bn_add_act",
        "conv_bn_add_act.kernel",
    },
    "train": {
        "bn_act_conv",
        "bn_act_conv.kernel",
        "bn_act_conv_backward.kernel",
        "bn_act_max_pool",
        "bn_act_max_pool_backward",
        "bn_add_act",
        "bn_add_act_backward",
        "channel_statistics",
        "conv_dgrad",
        "conv_wgrad",
        "output_gradient",
    },
}


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_triton(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "out.json"
    assert main([*COMMAND, "--backend", "triton", "--mode", mode, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["key"]: row["chosen"] for row in rows} == kept()
    assert {row["slot"] for row in rows} == SLOTS[mode]
    assert len({row["key"] for row in rows}) == len(rows)  # what an earlier call has chosen is not measured again
    assert all(ms > 0 for row in rows for ms in row["ms"].values())


def test_a_candidate_that_is_wrong_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda_emulated.ensure()
    forward = cuda.fused_conv.FusedConv.forward

    def broken(self, x, *rest):
        if x.shape[1] == 8:
            raise RuntimeError("out of\nresources")
        return (forward(self, x, *rest)[0] * 2, *forward(self, x, *rest)[1:])

    monkeypatch.setattr(cuda.fused_conv.FusedConv, "forward", broken)
    path = tmp_path / "out.json"
    assert main([*COMMAND, "--backend", cuda_emulated.NAME, "--dtype", "fp32", "--json", str(path)]) == 0
    rows = {row["call"]: row for row in json.loads(path.read_text())["rows"] if row["slot"] == "bn_act_conv.kernel"}
    assert {row["chosen"] for row in rows.values()} == {"cudnn"}
    assert rows["1x1 8>16 3x3"]["left_out"] == {"fused": "RuntimeError: out of resources"}
    assert "differs from PyTorch by" in rows["1x1 16>8 3x3"]["left_out"]["fused"]
    assert rows["1x1 16>8 3x3"]["ms"]["fused"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backend cpu", "unknown backend 'cpu'; known: cuda, triton"),
        ("--dtype int8", "unknown dtype 'int8'; known: fp32, bf16, fp16"),
        ("--batch 0", "batch: expected at least 1, got 0"),
        ("--mode both", "unknown mode 'both'; known: train, infer"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    assert main(["tune", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(backends()["cuda"].unavailable is None, reason="there is a device")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["tune"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert f"backend 'cuda' cannot be tuned here: {backends()['cuda'].unavailable}" in output.err
    cuda_emulated.ensure()
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    assert main(["tune", "--backend", cuda_emulated.NAME]) == 2
    assert "FUSED_RESNET_CUDA_CONV: expected auto, which leaves a choice, got 'fused'" in capsys.readouterr().err
