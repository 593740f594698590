"""What each kernel may take and must have: as written down, within the device, no spill to memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["BUDGET", "PRODUCTS", "SHARED_BYTES", "breaches", "budget_text", "widest"]

# What LIMITS allow, by kernel, type and case, and target.
BUDGET = Path(__file__).parent / "budget.json"
# Scalar spills: registers that LLVM keeps in lanes of vector registers, which takes instructions and no memory.
AT_MOST = {"registers": "registers", "shared_bytes": "bytes of shared memory", "scalar_spills": "scalar spills"}
AT_LEAST = {"loads_128": "128-bit loads", "stores_128": "128-bit stores", "tensor_core": "tensor-core instructions"}
LIMITS = AT_MOST | AT_LEAST

# Of a block, at most: CUDA C++ programming guide, "Technical Specifications per Compute Capability"; LDS of CDNA 3.
SHARED_BYTES = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
}
PRODUCTS = ("bn_act_conv_kernel", "conv_bn_add_act_kernel", "conv_dgrad_kernel", "conv_wgrad_kernel")
# Vectors of C channels are all that these load or store, a few bytes a thread.
SMALL = ("column_sums_kernel", "fold_statistics_kernel", "norm_gradients_kernel")
_NAME = ("target", "kernel", "type", "case", "tile")


Budget = dict[str, dict[str, dict[str, list[int]]]]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["kernel"], f"{row['type']} {row['case']}", row["target"]


def _name(row: dict[str, Any]) -> str:
    return " ".join(str(row[part]) for part in _NAME)


def widest(rows: Iterable[dict[str, Any]]) -> Budget:
    """The budget that these rows just keep, whatever the tile."""
    budget: Budget = {}
    for row in sorted(rows, key=_key):
        kernel, kind, target = _key(row)
        targets = budget.setdefault(kernel, {}).setdefault(kind, {})
        known = targets.get(target, [row[name] for name in LIMITS])
        pairs = zip(LIMITS, known, strict=True)
        targets[target] = [(max if name in AT_MOST else min)(limit, row[name]) for name, limit in pairs]
    return budget


def budget_text(budget: Budget) -> str:
    """A budget as JSON, a line for each kernel, type and case."""
    kernels = {
        kernel: ",\n".join(f"  {json.dumps(kind)}: {json.dumps(targets)}" for kind, targets in kinds.items())
        for kernel, kinds in budget.items()
    }
    return "{\n" + ",\n".join(f" {json.dumps(kernel)}: {{\n{lines}\n }}" for kernel, lines in kernels.items()) + "\n}\n"


def breaches(row: dict[str, Any]) -> Iterator[str]:
    """What of a row is beyond the budget, one line each."""
    kernel, kind, target = _key(row)
    name, budget = _name(row), json.loads(BUDGET.read_text())
    allowed = budget.get(kernel, {}).get(kind, {}).get(target)
    if allowed is None:
        yield f"{name}: no budget for {kind} on {target}"
    else:
        for limit, (what, words) in zip(allowed, LIMITS.items(), strict=True):
            if row[what] > limit if what in AT_MOST else row[what] < limit:
                yield f"{name}: {row[what]} {words}, the budget is {limit}"
    if row["spill_bytes"]:
        yield f"{name}: {row['spill_bytes']} bytes of registers spilled"
    if row["stack_bytes"]:
        yield f"{name}: {row['stack_bytes']} bytes of stack"
    if row["shared_bytes"] > SHARED_BYTES[row["target"]]:
        yield f"{name}: {row['shared_bytes']} bytes of shared memory, a block has {SHARED_BYTES[row['target']]}"
    has_vectors = kernel not in SMALL and row["case"] not in ("unaligned", "ones")
    if has_vectors and not row["loads_128"]:
        yield f"{name}: no 128-bit load"
    # MFMA leaves a thread four rows of a tile: CDNA stores products 64 bits at a time.
    narrow = kernel == "channel_statistics_kernel" or (row["target"].startswith("gfx") and kernel in PRODUCTS)
    if has_vectors and not narrow and not row["stores_128"]:
        yield f"{name}: no 128-bit store"
    if kernel in PRODUCTS and row["type"] != "float32" and not row["tensor_core"]:
        yield f"{name}: no product on tensor cores"
