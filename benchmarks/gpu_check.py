"""``make gpu-check``: what only a GPU can tell, in ten minutes, as one JSON and one page to keep.

The op suite on the device, compute-sanitizer on a part of it, the bandwidth of each kernel beside a measured copy, and
the training of ResNet-50. A part that fails or is not installed is reported as such, and the others run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fused_resnet
from fused_resnet.backends import backends, cuda
from fused_resnet.backends.arguments import Activation, BatchNorm, MaxPool

__all__ = ["bandwidths", "main", "page"]

TESTS = ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/ops")
SANITIZED = "test_matches_stock and not 130"
BENCH = ("bench", "resnet50", "--device", "cuda", "--dtype", "bf16", "--batch", "128", "--rounds", "5")
VARIANTS = ("--variants", "fused,channels_last,compile", "--allocator", "default")
RELU, SILU = Activation("relu"), Activation("silu")
POOL = MaxPool((3, 3), (2, 2), (1, 1))


def run(command: list[str], timeout_s: float) -> dict[str, Any]:
    """Exit code, last lines and seconds' limit of a command; what hangs counts as failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "tail": f"not done after {timeout_s:.0f} s"}
    return {"ok": done.returncode == 0, "tail": (done.stdout + done.stderr)[-4000:]}


def _kernels(x: Tensor) -> dict[str, tuple[Callable[[], Any], float]]:
    """By name: a call of each kernel on x [N, C, H, W], and the bytes that it must move."""
    c, b = x.shape[1], x.element_size()
    residual, g = torch.randn_like(x), torch.randn_like(x)
    vectors = [torch.rand(c, device=x.device) + 0.5 for _ in range(4)]
    bn = BatchNorm(*vectors, 1e-5)
    out, indices = cuda.bn_act_max_pool(x, bn, RELU, POOL)
    g_out, n = torch.randn_like(out), x.numel()
    pooled = out.numel() * (b + 1)
    return {
        "channel_statistics": (lambda: cuda.channel_statistics(x), n * b),
        "channel_statistics_backward": (
            lambda: cuda.channel_statistics_backward(g, *vectors[:2], x, vectors[2]),
            3 * n * b,
        ),
        "bn_add_act": (lambda: cuda.bn_add_act(x, bn, residual, None, RELU), 3 * n * b),
        "bn_add_act, silu": (lambda: cuda.bn_add_act(x, bn, residual, None, SILU), 3 * n * b),
        "bn_add_act_backward": (lambda: cuda.bn_add_act_backward(g, x, bn, residual, None, RELU), 5 * n * b),
        "bn_act_max_pool": (lambda: cuda.bn_act_max_pool(x, bn, RELU, POOL), n * b + pooled),
        "bn_act_max_pool_backward": (
            lambda: cuda.bn_act_max_pool_backward(g_out, indices, x, bn, RELU, POOL),
            2 * n * b + pooled,
        ),
    }


def bandwidths(x: Tensor, time_ms: Callable[[Callable[[], Any]], float]) -> list[dict[str, Any]]:
    """A row for each kernel on x [N, C, H, W]: ms, GB/s, and the part of a copy's GB/s on the same tensor."""
    target = torch.empty_like(x)
    copy = 2 * x.nbytes / time_ms(lambda: target.copy_(x)) / 1e6
    rows = [{"kernel": "copy", "shape": list(x.shape), "dtype": str(x.dtype), "gb_per_s": copy, "of_copy": 1.0}]
    for name, (call, moved_bytes) in _kernels(x).items():
        milliseconds = time_ms(call)
        rate = moved_bytes / milliseconds / 1e6
        rows.append(rows[0] | {"kernel": name, "ms": milliseconds, "gb_per_s": rate, "of_copy": rate / copy})
    return rows


def _device_ms(call: Callable[[], Any]) -> float:
    """Median of 20 calls by CUDA events, after three to warm up."""
    for _ in range(3):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(20)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in events)[len(events) // 2]


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"# gpu-check on {result['device']}", "", f"fused_resnet {result['version']}, torch {result['torch']}", ""]
    for part in ("tests", "compute_sanitizer", "bench"):
        verdict = "passed" if result[part]["ok"] else "**not passed**"
        lines += [f"## {part}", "", verdict, "", "```", result[part]["tail"].strip(), "```", ""]
    lines += ["## Bandwidth", "", "| kernel | shape | dtype | GB/s | of a copy |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['kernel']} | {'x'.join(map(str, row['shape']))} | {row['dtype']} | {row['gb_per_s']:.0f} | "
        f"{row['of_copy']:.2f} |"
        for row in result["bandwidths"]
    ]
    return "\n".join(lines) + "\n"


def main(folder: Path = Path(".")) -> int:
    """Runs everything and writes ``gpu-check.json`` and ``gpu-check.md``; 0 where all passed, 2 without a device."""
    if reason := backends()["cuda"].unavailable:
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    sanitizer = shutil.which("compute-sanitizer")
    images = [
        torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
        for dtype in (torch.bfloat16, torch.float32)
        for shape in ((64, 64, 112, 112), (64, 256, 56, 56), (64, 2048, 7, 7))
    ]
    bench_json = folder / "gpu-check-bench.json"
    result = {
        "device": torch.cuda.get_device_name(),
        "version": fused_resnet.info()["version"],
        "torch": torch.__version__,
        "tests": run([sys.executable, *TESTS], 240),
        "compute_sanitizer": run([sanitizer, sys.executable, *TESTS, "-k", SANITIZED], 120)
        if sanitizer
        else {"ok": True, "tail": "compute-sanitizer is not installed"},
        "bandwidths": [row for x in images for row in bandwidths(x, _device_ms)],
        "bench": run([sys.executable, "-m", "fused_resnet", *BENCH, *VARIANTS, "--json", str(bench_json)], 240),
    }
    result["bench_rows"] = json.loads(bench_json.read_text())["rows"] if bench_json.exists() else []
    (folder / "gpu-check.json").write_text(json.dumps(result, indent=1))
    (folder / "gpu-check.md").write_text(page(result))
    print(f"wrote {folder / 'gpu-check.json'} and {folder / 'gpu-check.md'}")
    ran = re.search(r"\d+ passed", result["tests"]["tail"]) is not None  # all skipped is no success
    return 0 if ran and all(result[part]["ok"] for part in ("tests", "compute_sanitizer", "bench")) else 1


if __name__ == "__main__":
    sys.exit(main())
