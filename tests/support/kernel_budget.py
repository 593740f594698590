"""The budget of every CUDA kernel, in tests/cuda/kernel_budget.json: what it may use, at worst, on any architecture.

``PYTHONPATH=tests python -m support.kernel_budget MODULE`` writes it anew from a built module, when a change is meant.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .kernel_usage import Usage, find_cuobjdump, read_usage

__all__ = ["BUDGET", "budget_of", "launch_of", "violations"]

BUDGET = Path(__file__).resolve().parent.parent / "cuda" / "kernel_budget.json"
_AT_MOST = ("registers", "static_shared_bytes", "scalar_loads", "scalar_stores")
_AT_LEAST = ("vector_loads", "vector_stores", "async_copies", "tensor_core")

# Threads and dynamic shared memory of a launch, by kernel. Those of the convolutions are asserted where they are
# launched, csrc/cuda/conv_forward.cu and its gradients; every other kernel has 256 threads and no dynamic memory.
_LAUNCHES = (
    (r"conv_forward_kernel<.*,64,64,", 128, 30720),
    (r"conv_dgrad_kernel<.*,64,64,", 128, 44544),
    (r"conv_wgrad_kernel<.*,64,64,", 128, 41472),
    (r"conv_forward_kernel<.*,128,128,", 256, 67584),
    (r"conv_dgrad_kernel<.*,128,128,", 256, 87552),
    (r"conv_wgrad_kernel<.*,128,128,", 256, 78336),
    (r"", 256, 0),
)
# What the names of kernels say that move 16 bytes at a time: several lanes a pack, or whole chunks.
_VECTOR_PATH = re.compile(r"Columns<[248],|ConvTraits<.*true>>$|conv_finish_wgrad_kernel<\w+,true>$")


def launch_of(kernel: str) -> tuple[int, int]:
    """Threads of a block, and its bytes of dynamic shared memory."""
    return next((threads, shared) for pattern, threads, shared in _LAUNCHES if re.match(pattern, kernel))


def budget_of(usage: Mapping[tuple[str, str], Usage]) -> dict[str, dict[str, Any]]:
    """The budget that ``usage`` just meets, by kernel."""
    of_kernel: dict[str, dict[str, Usage]] = defaultdict(dict)
    for (arch, kernel), used in usage.items():
        of_kernel[kernel][arch] = used
    return {kernel: _limits(kernel, of_kernel[kernel]) for kernel in sorted(of_kernel)}


def _limits(kernel: str, used: Mapping[str, Usage]) -> dict[str, Any]:
    limits: dict[str, Any] = {name: max(getattr(u, name) for u in used.values()) for name in _AT_MOST}
    limits |= {name: min(getattr(u, name) for u in used.values()) for name in _AT_LEAST}
    threads, shared = launch_of(kernel)
    return limits | {"warps": {arch: u.warps(arch, threads, shared) for arch, u in used.items()}}


def violations(usage: Mapping[tuple[str, str], Usage], budget: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for everything that a kernel may not do: ``sm_80 kernel: registers: at most 96, got 104``."""
    lines = [line for (arch, kernel), used in usage.items() for line in _violations(arch, kernel, used, budget)]
    missing = sorted(set(budget) - {kernel for _, kernel in usage})
    return [*lines, *(f"{kernel}: in the budget, but not in the module" for kernel in missing)]


def _violations(arch: str, kernel: str, used: Usage, budget: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    where = f"sm_{arch} {kernel}"
    if used.stack_bytes or used.local:
        yield f"{where}: no stack and no spill, got {used.stack_bytes} bytes and {used.local} local accesses"
    if re.match(r"conv_(forward|dgrad|wgrad)_kernel<.*true>>", kernel):  # its 16-byte path
        loads, stores = used.scalar_loads, used.vector_stores
        if loads > stores:
            yield f"{where}: at most a scalar load for 16 bytes stored, got {loads} for {stores}"
        if "fma" not in kernel and not used.tensor_core:
            yield f"{where}: tensor cores, got none"
    if _VECTOR_PATH.search(kernel):
        if not used.vector_loads and not used.async_copies:
            yield f"{where}: loads of 128 bits, got none"
        if not used.vector_stores and not kernel.startswith("channel_statistics_kernel"):  # which stores vectors alone
            yield f"{where}: stores of 128 bits, got none"
    if kernel not in budget:
        yield f"{where}: not in the budget: python -m support.kernel_budget MODULE adds it"
        return
    limits = budget[kernel]
    for name in _AT_MOST:
        if getattr(used, name) > limits[name]:
            yield f"{where}: {name}: at most {limits[name]}, got {getattr(used, name)}"
    for name in _AT_LEAST:
        if getattr(used, name) < limits[name]:
            yield f"{where}: {name}: at least {limits[name]}, got {getattr(used, name)}"
    warps = used.warps(arch, *launch_of(kernel))
    if warps < limits["warps"].get(arch, 0):
        yield f"{where}: warps a multiprocessor: at least {limits['warps'][arch]}, got {warps}"


if __name__ == "__main__":
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        sys.exit("no cuobjdump: pip install nvidia-cuda-cuobjdump, or put a toolkit's on PATH")
    usage = read_usage(cuobjdump, Path(sys.argv[1]))
    budget = budget_of(usage)
    rows = (f"{json.dumps(kernel)}: {json.dumps(limits)}" for kernel, limits in budget.items())
    BUDGET.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    sys.exit("\n".join(violations(usage, budget)))  # what no budget may allow, such as a spill
