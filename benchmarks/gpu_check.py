"""``make gpu-check``: what only a GPU can tell, in ten minutes, as one JSON and one page to keep.

The op suite on the device, compute-sanitizer on a part of it, ``fused-resnet tune``, the bandwidth of each kernel
beside a measured copy, and the training of ResNet-50. A part that fails or is not installed is reported as such, and
the others run. ``--dry-run`` goes the same way on the CPU's execution of the kernels, at small sizes: its numbers mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fused_resnet
from fused_resnet.backends import backends, cuda
from fused_resnet.backends.arguments import Activation, BatchNorm, MaxPool
from fused_resnet.bench.device_time import median_ms

__all__ = ["DEVICE", "DRY_RUN", "Plan", "bandwidths", "main", "page"]

RELU, SILU = Activation("relu"), Activation("silu")
POOL = MaxPool((3, 3), (2, 2), (1, 1))
PARTS = ("tests", "compute_sanitizer", "tune", "bench")

# Registers the backend cuda_emulated, of the tests, before the command line runs.
_EMULATED = "import sys; from cuda_on_cpu import cuda_emulated as e; e.ensure(); from fused_resnet.cli import main; "


class Plan(NamedTuple):
    """What is run, and where; commands without the Python that runs them, and the seconds each may take."""

    device: str
    tests: tuple[str, ...]
    sanitized: str  # which of the tests under compute-sanitizer
    tune: tuple[str, ...]
    bench: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # [N, C, H, W] of the bandwidths
    dtypes: tuple[torch.dtype, ...]


DEVICE = Plan(
    device="cuda",
    tests=("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/ops"),
    sanitized="test_matches_stock and not 130",
    tune=("-m", "fused_resnet", "tune", "resnet50", "--batch", "128", "--dtype", "bf16"),
    bench=(
        *("-m", "fused_resnet", "bench", "resnet50", "--device", "cuda", "--dtype", "bf16", "--batch", "128"),
        *("--rounds", "5", "--variants", "fused,channels_last,compile", "--allocator", "default"),
    ),
    shapes=((64, 64, 112, 112), (64, 256, 56, 56), (64, 2048, 7, 7)),
    dtypes=(torch.bfloat16, torch.float32),
)
DRY_RUN = Plan(
    device="cpu",
    tests=("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_bn_add_act.py", "-k", "emulated and empty"),
    sanitized="nothing",
    tune=(
        *("-c", f"{_EMULATED}sys.exit(main(sys.argv[1:]))", "tune", "fused_resnet:resnet20", "--batch", "1"),
        *("--size", "4", "--dtype", "fp32", "--backend", "cuda_emulated", "--mode", "infer", "--rounds", "1"),
    ),
    bench=(
        *("-m", "fused_resnet", "bench", "fused_resnet:resnet20", "--batch", "2", "--image-size", "8", "--rounds", "1"),
        *("--threads", "1", "--variants", "fused,eager", "--allocator", "default"),
    ),
    shapes=((2, 8, 8, 8),),
    dtypes=(torch.float32,),
)


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


def _bandwidth_rows(plan: Plan) -> Iterator[dict[str, Any]]:
    device = torch.device(plan.device)
    for dtype in plan.dtypes:
        for shape in plan.shapes:
            x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            yield from bandwidths(x, _device_ms)


def _device_ms(call: Callable[[], Any], rounds: int = 20) -> float:
    """Median after three calls to warm up."""
    for _ in range(3):
        call()
    return median_ms({"": call}, torch.device("cuda" if torch.cuda.is_available() else "cpu"), rounds)[""]


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"# gpu-check on {result['device']}", "", f"fused_resnet {result['version']}, torch {result['torch']}", ""]
    for part in PARTS:
        verdict = "passed" if result[part]["ok"] else "**not passed**"
        lines += [f"## {part}", "", verdict, "", "```", result[part]["tail"].strip(), "```", ""]
    lines += ["## Bandwidth", "", "| kernel | shape | dtype | GB/s | of a copy |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['kernel']} | {'x'.join(map(str, row['shape']))} | {row['dtype']} | {row['gb_per_s']:.0f} | "
        f"{row['of_copy']:.2f} |"
        for row in result["bandwidths"]
    ]
    return "\n".join(lines) + "\n"


def main(plan: Plan = DEVICE, folder: Path = Path(".")) -> int:
    """Runs everything and writes ``gpu-check.json`` and ``gpu-check.md``; 0 where all passed, 2 without a device."""
    if plan.device == "cuda" and (reason := backends()["cuda"].unavailable):
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    if plan.device == "cpu":
        from cuda_on_cpu import cuda_emulated

        cuda_emulated.ensure()
        os.environ["FUSED_RESNET_TUNE_FILE"] = str(folder / "gpu-check-tuned.json")  # answers that mean nothing
    sanitizer, python = shutil.which("compute-sanitizer"), sys.executable
    kept = {part: folder / f"gpu-check-{part}.json" for part in ("tune", "bench")}
    sanitized = [str(sanitizer), python, *plan.tests, "-k", plan.sanitized]
    result = {
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "no device: a dry run",
        "version": fused_resnet.info()["version"],
        "torch": torch.__version__,
        "tests": run([python, *plan.tests], 200),
        "compute_sanitizer": run(sanitized, 100)
        if sanitizer and plan.device == "cuda"
        else {"ok": True, "tail": "compute-sanitizer is not installed"},
        "tune": run([python, *plan.tune, "--json", str(kept["tune"])], 90),
        "bandwidths": list(_bandwidth_rows(plan)),
        "bench": run([python, *plan.bench, "--json", str(kept["bench"])], 180),
    }
    for part, path in kept.items():
        result[f"{part}_rows"] = json.loads(path.read_text())["rows"] if path.exists() else []
    (folder / "gpu-check.json").write_text(json.dumps(result, indent=1))
    (folder / "gpu-check.md").write_text(page(result))
    print(f"wrote {folder / 'gpu-check.json'} and {folder / 'gpu-check.md'}")
    ran = re.search(r"\d+ passed", result["tests"]["tail"]) is not None  # all skipped is no success
    return 0 if ran and all(result[part]["ok"] for part in PARTS) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at small sizes; PYTHONPATH=tests")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the files go")
    asked = parser.parse_args()
    sys.exit(main(DRY_RUN if asked.dry_run else DEVICE, asked.folder))
