"""The environment of a result: what one has to know to repeat it."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from .settings import Job, Settings, available_cores

__all__ = ["command_line", "facts", "machine_facts", "request"]


def facts(job: Job) -> dict[str, Any]:
    """Versions, processor and device as a child process sees them. Imports torch."""
    from .memory import peak_method

    return machine_facts(job.device) | {"peak_memory_method": peak_method(job.device)}


def machine_facts(device: str) -> dict[str, Any]:
    """Versions, processor and device as this process sees them. Imports torch."""
    import torch

    import fused_resnet

    info = fused_resnet.info()
    return {
        "fused_resnet": info["version"],
        "fused_resnet_isa": info["isa"],
        "fused_resnet_backends": info["backends"],
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "torchvision": _version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def request(settings: Settings) -> dict[str, Any]:
    """When and how the benchmark was asked for."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "seed": settings.seed,
        "rounds": settings.rounds,
        "variants_left_out": settings.left_out,
        "onnxruntime": _installed_version("onnxruntime"),
        "openvino": _installed_version("openvino"),
        "environment_variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("FUSED_RESNET_", "MALLOC_"))
        },
    }


def command_line() -> str:
    """The command that was typed, without the folder it lies in."""
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, shlex.join(sys.argv[1:])]).strip()


def _version(package: str) -> str | None:
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError:
        return None


def _installed_version(distribution: str) -> str | None:
    """As the installer knows it: to import an engine costs memory that is none of a benchmark's."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The processor's name; Linux has it in /proc/cpuinfo only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
