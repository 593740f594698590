"""A GPU's kernels in a profile: a trace as Kineto writes it, by hand, since no test has a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import DeviceType

from fused_resnet.profile import ProfileResult
from fused_resnet.profile.kineto import operator_rows
from fused_resnet.profile.timeline import kernel_rows, timeline

GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128>(Params)"
BATCH_NORM = "void at::native::batch_norm_collect_statistics_kernel<float>(int, int)"

Event = dict[str, Any]


def host(name: str, ts: float, dur: float, category: str = "cpu_op") -> Event:
    return {"ph": "X", "cat": category, "name": name, "pid": 9, "tid": 9, "ts": ts, "dur": dur, "args": {}}


CORRELATIONS = count(70)


def launched(
    kernel: str, at: float, ts: float, dur: float, call: str = "cudaLaunchKernel", category: str = "kernel"
) -> Iterator[Event]:
    """A kernel that a call of the runtime, or of the driver, launches ``at``, and that runs later."""
    args = {"correlation": next(CORRELATIONS)}
    runtime = "cuda_driver" if call.startswith("cu") and not call.startswith("cuda") else "cuda_runtime"
    yield {**host(call, at, 5, runtime), "args": args}
    device = {"device": 0, "stream": 7}
    yield {"ph": "X", "cat": category, "name": kernel, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": args | device}
    yield {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": args["correlation"], "pid": 9, "tid": 9, "ts": at}


# The device lags behind: it runs what forward launched while backward is launched.
TRACE = {
    "traceEvents": [
        *launched("void before_the_step()", 50, 60, 900),
        host("phase: forward", 100, 1, "user_annotation"),
        host("aten::conv2d", 110, 60),
        host("aten::cudnn_convolution", 115, 50),
        *launched(GEMM, 120, 1000, 400),
        host("block: layer1.0", 180, 1, "user_annotation"),
        host("aten::to", 190, 4),
        *launched("Memcpy HtoD (Pageable -> Device)", 191, 1400, 100, "cudaMemcpyAsync", "gpu_memcpy"),
        host("fused_resnet::bn_act_conv", 200, 60),
        *launched("_conv_kernel", 210, 1500, 2000, "cuLaunchKernelEx"),
        *launched("_conv_kernel", 230, 3500, 3000, "cuLaunchKernelEx"),
        *launched(BATCH_NORM, 250, 6500, 50),
        host("block: (head)", 270, 1, "user_annotation"),
        *launched("between_operators", 280, 6550, 10),
        host("phase: backward", 300, 1, "user_annotation"),
        host("aten::mm", 310, 20),
        *launched(GEMM, 315, 6600, 700),
        host("phase: optimizer", 400, 1, "user_annotation"),
        host("Optimizer.step#SGD.step", 410, 90, "user_annotation"),
        host("Optimizer.step#SGD.step", 7400, 300, "gpu_user_annotation"),
        *launched("void multi_tensor_apply_kernel<1>()", 420, 7400, 300),
    ]
}


def test_kernels_of_a_trace() -> None:
    """Each by the operator, the phase and the block that launched it, however late it runs; the rest is left out."""
    rows = [tuple(row.values()) for row in kernel_rows(TRACE)]
    assert rows == [
        ("_conv_kernel", "fused_resnet::bn_act_conv", "forward", "layer1.0", 2, 5.0),
        (GEMM, "aten::mm", "backward", "(head)", 1, 0.7),
        (GEMM, "aten::conv2d", "forward", "(stem)", 1, 0.4),
        ("void multi_tensor_apply_kernel<1>()", "Optimizer.step#SGD.step", "optimizer", "", 1, 0.3),
        ("Memcpy HtoD (Pageable -> Device)", "aten::to", "forward", "layer1.0", 1, 0.1),
        (BATCH_NORM, "fused_resnet::bn_act_conv", "forward", "layer1.0", 1, 0.05),
        ("between_operators", "", "forward", "(head)", 1, 0.01),
    ]
    assert list(kernel_rows(TRACE)[0]) == ["kernel", "op", "phase", "block", "calls", "ms"]
    assert kernel_rows({"traceEvents": []}) == []
    on_cpu = [event for event in TRACE["traceEvents"] if event["cat"] in ("cpu_op", "user_annotation")]
    assert kernel_rows({"traceEvents": on_cpu}) == []


def test_kernels_are_no_operators() -> None:
    """Neither in the timeline, where some of their names read like an operator's, nor in the sums by operator."""
    named = {"traceEvents": [*TRACE["traceEvents"], *launched("cutlass::Kernel2", 215, 5000, 1000)]}
    ops = [row["op"] for row in timeline(named)]
    assert ops == ["aten::conv2d", "fused_resnet::bn_act_conv", "aten::mm", "Optimizer.step#SGD.step"]

    def average(key: str, device: DeviceType, cpu_us: float, device_us: float) -> SimpleNamespace:
        times = {"self_cpu_time_total": cpu_us, "self_device_time_total": device_us}
        return SimpleNamespace(key=key, count=3, device_type=device, **times)

    averages = [
        average("aten::mm", DeviceType.CPU, 20.0, 700.0),
        average("aten::view", DeviceType.CPU, 5.0, 0.0),
        average("fused_resnet::bn_act_conv", DeviceType.CPU, 60.0, 5050.0),
        average(GEMM, DeviceType.CUDA, 0.0, 700.0),
        average("_conv_kernel", DeviceType.CUDA, 0.0, 5000.0),
    ]
    rows = operator_rows(averages, {"fused_resnet::bn_act_conv": 1}, torch.device("cuda"))
    assert [tuple(row.values()) for row in rows] == [
        ("fused_resnet::bn_act_conv", "convolution and norm", 2, 5.05),
        ("aten::mm", "matrix product", 3, 0.7),
    ]


def test_kernels_in_table_page_and_data() -> None:
    step = {"forward": 2.0, "backward": 3.0, "optimizer": 1.0, "step": 6.0, "bare": 6.0}
    side = {"forward_ms": 2.0, "backward_ms": 3.0, "flop": 0, "moved_bytes": 0, "kept_bytes": 0}
    result = ProfileResult(
        model="net",
        settings={},
        environment={},
        steps={"stock": step, "fused": step},
        blocks=[{"block": "layer1.0", "stage": "layer1", "class": "BasicBlock", "stock": side, "fused": side}],
        kernels=[{"variant": variant, **row} for variant in ("stock", "fused") for row in kernel_rows(TRACE)],
    )
    text = str(result)
    lines = [line.split() for line in text.splitlines() if line.strip().startswith("void cutlass")]
    assert [line[-4:] for line in lines] == [["aten::mm", "1", "0.70", "11"], ["aten::conv2d", "1", "0.40", "6"]] * 2
    assert "kernels of fused, under torch.profiler" in text
    page = result.to_html()
    assert "<h2>Kernels</h2>" in page and page.count(">5.000</td><td>_conv_kernel</td>") == 2
    rows = json.loads(json.dumps(result.to_dict()))["kernels"]
    assert rows[0] == {"variant": "stock", **kernel_rows(TRACE)[0]} and len(rows) == 14
    result.kernels = []
    assert "kernels of" not in str(result) and "<h2>Kernels</h2>" not in result.to_html()
