"""``make gpu-check``: what only a GPU can tell, in ten minutes, as one JSON and one page to keep.

The op suite on the device, compute-sanitizer on a part of it, ``fused-resnet tune``, the bandwidth of each kernel
beside a measured copy, and the training of ResNet-50. Each part is a process of its own: one that fails, hangs or is
not installed is reported as such, the others run, and both files are written after each. ``--dry-run`` goes the same
way on the CPU's execution of the kernels, at small sizes: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import kernel_bandwidths
import torch
from process_group import run

from fused_resnet.backends import backends
from fused_resnet.bench.environment import machine_facts

__all__ = ["DRY_RUN", "Part", "Plan", "batch_that_fits", "command_of", "device_plan", "main", "page"]

# Ten minutes, less what the first import and the end of a part that hangs may take.
BUDGET_S = 570


class Part(NamedTuple):
    """A process: Python with these arguments."""

    arguments: tuple[str, ...]
    limit_s: float
    keeps: str = ""  # the option that names a file for what it found
    must_say: str = ""  # a pattern: tests that are all skipped are no success
    sanitizer: tuple[str, ...] = ()  # the options of compute-sanitizer that it runs under


class Plan(NamedTuple):
    """What is run, in this order, and where."""

    device: str
    parts: Mapping[str, Part]


_PASSED = r"\d+ passed"
# A test that hangs in the driver cannot be interrupted, but the traceback tells where.
_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", "-o", "faulthandler_timeout=50")
_THIS = str(Path(__file__).resolve())
# Kernels of ours alone. A launch that fails raises by itself; what PyTorch asks the driver in vain is no matter.
_SANITIZER = ("--kernel-name", "kns=fused_resnet", "--report-api-errors", "no", "--error-exitcode", "1")
_OPS = tuple(f"tests/ops/test_{op}.py" for op in ("bn_act_conv", "bn_add_act", "bn_act_max_pool"))
_MEMCHECKED = (
    "test_matches_stock and not float64 and (cuda-fused and (1x1-stride2 or 3x3 or grouped)"
    " or cuda-tf32 and 1x1 or cuda-stem or cuda-gaps or 14 and channels_last and bfloat16 or 65 and contiguous)"
)
_RACED = "test_matches_stock and (cuda-fused and bfloat16 and (1x1-stride2 or 3x3-torch) or cuda-tf32-3x3-torch)"


def device_plan(batch: int) -> Plan:
    """The plan for a GPU, on which three ResNet-50s train at once with this batch."""
    on_device = (*_PYTEST, "-m", "gpu")
    sized = ("resnet50", "--batch", str(batch), "--dtype", "bf16")
    bench = ("--device", "cuda", "--rounds", "5", "--variants", "fused,channels_last,compile", "--minutes", "3")
    parts = {
        "tests": Part((*on_device, "tests/ops", "tests/cuda/test_device.py"), 180, "--junitxml", _PASSED),
        "bandwidths": Part((_THIS,), 30, "--bandwidths"),
        "tune": Part(("-m", "fused_resnet", "tune", *sized), 70, "--json"),
        "bench": Part(("-m", "fused_resnet", "bench", *sized, *bench, "--allocator", "default"), 240, "--json"),
        "memcheck": Part((*on_device, *_OPS, "-k", _MEMCHECKED), 60, "--junitxml", _PASSED, _SANITIZER),
        "racecheck": Part(
            (*on_device, _OPS[0], "-k", _RACED), 60, "--junitxml", _PASSED, ("--tool", "racecheck", *_SANITIZER)
        ),
    }
    return Plan("cuda", parts)


# Registers the backend cuda_emulated, of the tests, before the command line runs.
_EMULATED = (
    "import sys; from cuda_on_cpu import cuda_emulated as e; e.ensure(); from fused_resnet.cli import main; "
    "sys.exit(main(sys.argv[1:]))"
)
_TUNED = ("--batch", "1", "--size", "4", "--dtype", "fp32", "--backend", "cuda_emulated", "--mode", "infer")
_RACE = ("--batch", "2", "--image-size", "8", "--threads", "1", "--variants", "fused,eager", "--allocator", "default")
DRY_RUN = Plan(
    "cpu",
    {
        "tests": Part(
            (*_PYTEST, "tests/ops/test_bn_add_act.py", "-k", "emulated and empty"), 100, "--junitxml", _PASSED
        ),
        "bandwidths": Part((_THIS, "--dry-run"), 100, "--bandwidths"),
        "tune": Part(("-c", _EMULATED, "tune", "fused_resnet:resnet20", *_TUNED, "--rounds", "1"), 100, "--json"),
        "bench": Part(("-m", "fused_resnet", "bench", "fused_resnet:resnet20", *_RACE, "--rounds", "1"), 100, "--json"),
        "memcheck": Part(("-c", ""), 10, sanitizer=_SANITIZER),
    },
)


def batch_that_fits(memory_bytes: int) -> int:
    """Images a step: at 128 each of the three variants takes 11 to 12 GB by estimate, and all are resident."""
    return next((batch for least, batch in ((70e9, 128), (36e9, 64)) if memory_bytes >= least), 32)


def command_of(part: Part, kept: Path, sanitizer: str | None) -> list[str]:
    """The command of a part that keeps what it found in the file ``kept``."""
    tool = [str(sanitizer), *part.sanitizer] if part.sanitizer else []
    return [*tool, sys.executable, *part.arguments, *([part.keeps, str(kept)] if part.keeps else [])]


def _outcome(part: Part, kept: Path, left_s: float, device: str) -> dict[str, Any]:
    """What became of a part; ``ok`` is None where it cannot run here, or no time is left."""
    sanitizer = shutil.which("compute-sanitizer") if device == "cuda" else None
    if part.sanitizer and sanitizer is None:
        return {"ok": None, "tail": "compute-sanitizer is not installed", "rows": []}
    if left_s <= 0:
        return {"ok": None, "tail": "not started: no time left", "rows": []}
    # PyTorch's cache would hide where one tensor ends and the next begins.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if part.sanitizer else {}
    done = run(command_of(part, kept, sanitizer), min(part.limit_s, left_s), environment)
    rows = _rows(kept) if kept.exists() else []
    if refused := [row for row in rows if row.get("left_out")]:
        done["tail"] += f"\n{len(refused)} choices with candidates that failed or computed something else"
    ok = done["ok"] and not refused and re.search(part.must_say, done["tail"]) is not None
    return done | {"ok": ok, "rows": rows}


def _rows(kept: Path) -> list[dict[str, Any]]:
    """What a part kept: rows of JSON, or the failures of a JUnit file. A part that was killed may leave half a file."""
    try:
        if kept.suffix == ".json":
            return list(json.loads(kept.read_text())["rows"])
        cases = ElementTree.parse(kept).iter("testcase")
        reports = [(case, report) for case in cases for report in case if report.tag in ("failure", "error")]
    except (ValueError, KeyError, ElementTree.ParseError):
        return []
    return [{"test": case.get("name"), "why": (report.text or "")[-2000:]} for case, report in reports]


def _facts(device: str) -> dict[str, Any]:
    """Versions, processor and, where there is one, the device and its driver."""
    facts = machine_facts(device)
    if device != "cuda":
        return facts | {"device": "no device: a dry run"}
    of_driver = "driver_version,power.limit,clocks.max.sm,clocks.max.mem,ecc.mode.current"
    driver = run(["nvidia-smi", f"--query-gpu={of_driver}", "--format=csv"], 20)
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver["tail"].strip(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "device_memory_bytes": properties.total_memory,
        "devices": torch.cuda.device_count(),
    }


_VERDICTS = {True: "passed", False: "**not passed**", None: "not run"}


def page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"# gpu-check on {result['facts']['device']}", ""]
    lines += [f"- {name}: {' / '.join(str(value).split(chr(10)))}" for name, value in result["facts"].items()]
    for name, part in result["parts"].items():
        seconds = f", {part['seconds']:.0f} s" if "seconds" in part else ""
        lines += ["", f"## {name}", "", _VERDICTS[part["ok"]] + seconds, "", "```", part["tail"].strip(), "```"]
        lines += [f"- {row['test']}" for row in part["rows"] if "test" in row]
    lines += ["", "## Bandwidth", "", "| kernel | shape | dtype | GB/s | of a copy |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['kernel']} | {'x'.join(map(str, row['shape']))} | {row['dtype']} | {row['gb_per_s']:.0f} | "
        f"{row['of_copy']:.2f} |"
        for part in result["parts"].values()
        for row in part["rows"]
        if "of_copy" in row
    ]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Replaces the file whole: whatever comes, a reader finds the last that was complete."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)


def main(plan: Plan | None = None, folder: Path = Path("."), budget_s: float = BUDGET_S) -> int:
    """Runs everything and writes ``gpu-check.json`` and ``gpu-check.md``.

    Returns 0 where all passed, compute-sanitizer's parts if there was a chance to run them; 1 else, 2 without a device.
    """
    deadline = time.monotonic() + budget_s
    if plan is None:
        if reason := backends()["cuda"].unavailable:
            print(f"gpu-check: {reason}", file=sys.stderr)
            return 2
        plan = device_plan(batch_that_fits(torch.cuda.get_device_properties(0).total_memory))
    waiting = {"ok": None, "tail": "not started", "rows": []}
    result: dict[str, Any] = {"facts": _facts(plan.device), "parts": dict.fromkeys(plan.parts, waiting)}
    with tempfile.TemporaryDirectory() as temporary:
        if plan.device == "cpu":  # answers that mean nothing
            os.environ.setdefault("FUSED_RESNET_TUNE_FILE", f"{temporary}/tuned.json")
        for name, part in plan.parts.items():
            kept = Path(temporary) / f"{name}.{'xml' if part.keeps == '--junitxml' else 'json'}"
            result["parts"][name] = _outcome(part, kept, deadline - time.monotonic(), plan.device)
            _write(folder / "gpu-check.json", json.dumps(result, indent=1))
            _write(folder / "gpu-check.md", page(result))
    print(f"wrote {folder / 'gpu-check.json'} and {folder / 'gpu-check.md'}")
    passed = {name: outcome["ok"] for name, outcome in result["parts"].items()}
    return (
        0 if all(passed[name] or (part.sanitizer and passed[name] is None) for name, part in plan.parts.items()) else 1
    )


def write_bandwidths(path: Path, dry_run: bool) -> None:
    """Measures every kernel and writes the rows so far after each."""
    if dry_run:
        from cuda_on_cpu import cuda_emulated

        cuda_emulated.ensure()
    shapes = ((2, 8, 8, 8),) if dry_run else ((64, 64, 112, 112), (64, 256, 56, 56), (64, 2048, 7, 7))
    dtypes = (torch.float32,) if dry_run else (torch.bfloat16, torch.float32)
    rows = []
    for row in kernel_bandwidths.rows(torch.device("cpu" if dry_run else "cuda"), shapes, dtypes):
        rows.append(row)
        _write(path, json.dumps({"rows": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at small sizes; PYTHONPATH=tests")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the files go")
    parser.add_argument("--bandwidths", type=Path, metavar="JSON", help="measure the kernels' bandwidths alone")
    asked = parser.parse_args()
    if asked.bandwidths:
        write_bandwidths(asked.bandwidths, asked.dry_run)
        sys.exit()
    sys.exit(main(DRY_RUN if asked.dry_run else None, asked.folder))
