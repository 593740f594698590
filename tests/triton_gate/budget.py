"""What each kernel may take: shared memory within the device, registers as written down, no spill to memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["BUDGET", "PRODUCTS", "SHARED_BYTES", "breaches", "widest"]

# Kernel -> vendor, type and case -> registers of a thread, at most. With "-scalar-spills" behind the case: scalar
# registers that LLVM keeps in lanes of vector registers, which takes instructions and no memory.
BUDGET = Path(__file__).parent / "budget.json"

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


def _key(row: dict[str, Any]) -> tuple[str, str]:
    vendor = "amd" if row["target"].startswith("gfx") else "nvidia"
    return row["kernel"], f"{vendor}-{row['type']}-{row['case']}"


def _name(row: dict[str, Any]) -> str:
    return " ".join(str(row[part]) for part in _NAME)


def widest(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """The budget that these rows just keep."""
    registers: dict[str, dict[str, int]] = {}
    for row in sorted(rows, key=_key):
        kernel, kind = _key(row)
        kinds = registers.setdefault(kernel, {})
        kinds[kind] = max(kinds.get(kind, 0), row["registers"])
        if row["scalar_spills"]:
            spills = f"{kind}-scalar-spills"
            kinds[spills] = max(kinds.get(spills, 0), row["scalar_spills"])
    return registers


def breaches(row: dict[str, Any]) -> Iterator[str]:
    """What of a row is beyond the budget, one line each."""
    kernel, kind = _key(row)
    name, budget = _name(row), json.loads(BUDGET.read_text())
    allowed = budget.get(kernel, {}).get(kind)
    if allowed is None:
        yield f"{name}: no budget for {kind}"
    elif row["registers"] > allowed:
        yield f"{name}: {row['registers']} registers, the budget is {allowed}"
    if row["spill_bytes"]:
        yield f"{name}: {row['spill_bytes']} bytes of registers spilled"
    if row["stack_bytes"]:
        yield f"{name}: {row['stack_bytes']} bytes of stack"
    allowed = budget.get(kernel, {}).get(f"{kind}-scalar-spills", 0)
    if row["scalar_spills"] > allowed:
        yield f"{name}: {row['scalar_spills']} scalar registers spilled, the budget is {allowed}"
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
