"""The budget of every CUDA kernel on every architecture, tests/cuda/kernel_budget.json: what it may use, at worst.

A kernel is a row, a quantity a number where all architectures agree, else a list in the order of ``architectures``;
what is left out is zero. ``PYTHONPATH=tests python -m support.kernel_budget MODULE`` writes it anew from a built
module, when a change is meant.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from .kernel_usage import ARCHITECTURES, Usage, find_cuobjdump, read_usage

__all__ = ["BUDGET", "Budget", "budget_of", "read_budget", "violations", "write_budget"]

BUDGET = Path(__file__).resolve().parent.parent / "cuda" / "kernel_budget.json"

# What nvcc made by (architecture, kernel); threads and dynamic shared memory of a launch by kernel; limits of a
# quantity by architecture, for each kernel.
UsageOf: TypeAlias = Mapping[tuple[str, str], Usage]
LaunchOf: TypeAlias = Mapping[str, tuple[int, int]]
Budget: TypeAlias = Mapping[str, Mapping[str, Mapping[str, int]]]

_AT_MOST = ("registers", "static_shared_bytes", "dynamic_shared_bytes", "scalar_loads", "scalar_stores")
_AT_LEAST = ("vector_loads", "vector_stores", "async_copies", "tensor_core", "warps")  # warps: of a multiprocessor

# What the names of kernels say that move 16 bytes at a time: several lanes a pack, or whole chunks.
_VECTOR_PATH = re.compile(r"Columns<[248],|ConvTraits<.*true>>$|conv_finish_wgrad_kernel<\w+,true>$")


def _quantities(arch: str, used: Usage, launch: tuple[int, int]) -> dict[str, int]:
    of_launch = {"dynamic_shared_bytes": launch[1], "warps": used.warps(arch, *launch)}
    return {name: of_launch[name] if name in of_launch else getattr(used, name) for name in (*_AT_MOST, *_AT_LEAST)}


def budget_of(usage: UsageOf, launches: LaunchOf) -> dict[str, dict[str, dict[str, int]]]:
    """The budget that ``usage`` just meets."""
    budget: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for (arch, kernel), used in usage.items():
        for name, value in _quantities(arch, used, launches[kernel]).items():
            budget[kernel][name][arch] = value
    return budget


def write_budget(path: Path, budget: Budget) -> None:
    def compact(of_arch: Mapping[str, int]) -> int | list[int]:
        values = [of_arch[arch] for arch in ARCHITECTURES]
        return values[0] if len(set(values)) == 1 else values

    rows = [f'"architectures": {json.dumps(list(ARCHITECTURES))}']
    for kernel in sorted(budget):
        limits = {name: value for name, of_arch in budget[kernel].items() if (value := compact(of_arch))}
        rows.append(f"{json.dumps(kernel)}: {json.dumps(limits)}")
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def read_budget(path: Path) -> Budget:
    rows: dict[str, Any] = json.loads(path.read_text())
    architectures = rows.pop("architectures")

    def spread(value: int | list[int]) -> dict[str, int]:
        values = value if isinstance(value, list) else [value] * len(architectures)
        return dict(zip(architectures, values, strict=True))

    names = (*_AT_MOST, *_AT_LEAST)
    return {kernel: {name: spread(limits.get(name, 0)) for name in names} for kernel, limits in rows.items()}


def violations(usage: UsageOf, launches: LaunchOf, budget: Budget) -> list[str]:
    """A line for each thing that a kernel may not do: ``kernel: registers: at most 96, got 104 (sm_80, sm_86)``."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (arch, kernel), used in sorted(usage.items(), key=lambda item: item[0][1]):
        complaints = [*_never_allowed(arch, kernel, used), *_beyond(arch, kernel, used, launches, budget)]
        for complaint in complaints:
            found[kernel, complaint].append(f"sm_{arch}")
    lines = [f"{kernel}: {complaint} ({', '.join(archs)})" for (kernel, complaint), archs in found.items()]
    missing = sorted({*budget, *launches} - {kernel for _, kernel in usage})
    return [*lines, *(f"{kernel}: in the budget or launched, but not in the module" for kernel in missing)]


def _never_allowed(arch: str, kernel: str, used: Usage) -> Iterator[str]:
    if used.stack_bytes or used.local:
        yield f"no stack and no spill, got {used.stack_bytes} bytes and {used.local} local accesses"
    if re.match(r"conv_(forward|dgrad|wgrad)_kernel<.*true>>", kernel):  # its 16-byte path
        loads, stores = used.scalar_loads, used.vector_stores
        if loads > stores:
            yield f"at most a scalar load for 16 bytes stored, got {loads} for {stores}"
        if "fma" not in kernel and not used.tensor_core:
            yield "tensor cores, got none"
    if _VECTOR_PATH.search(kernel):
        if not used.vector_loads and not used.async_copies:
            yield "loads of 128 bits, got none"
        if not used.vector_stores and not kernel.startswith("channel_statistics_kernel"):  # which stores vectors alone
            yield "stores of 128 bits, got none"


def _beyond(arch: str, kernel: str, used: Usage, launches: LaunchOf, budget: Budget) -> Iterator[str]:
    if kernel not in launches:
        yield "launched by nothing that tests/cuda_on_cpu/launches.py calls"
        return
    shared, limit = used.static_shared_bytes + launches[kernel][1], ARCHITECTURES[arch].block_shared_bytes
    if shared > limit:
        yield f"at most {limit} bytes of shared memory in a block, got {shared}"
    if kernel not in budget:
        yield "not in the budget: python -m support.kernel_budget MODULE adds it"
        return
    for name, got in _quantities(arch, used, launches[kernel]).items():
        allowed = budget[kernel][name][arch]
        if name in _AT_MOST and got > allowed:
            yield f"{name}: at most {allowed}, got {got}"
        if name in _AT_LEAST and got < allowed:
            yield f"{name}: at least {allowed}, got {got}"


def main(module: Path) -> int:
    """Writes the budget; shows what none may allow, such as a spill."""
    from cuda_on_cpu.launches import launches

    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        sys.exit("no cuobjdump: pip install nvidia-cuda-cuobjdump, or put a toolkit's on PATH")
    usage, asked = read_usage(cuobjdump, module), launches()
    write_budget(BUDGET, budget_of(usage, asked))
    found = violations(usage, asked, read_budget(BUDGET))
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
