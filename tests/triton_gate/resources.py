"""What a compiled kernel takes and which instructions it uses, read from its assembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton

__all__ = ["resources"]

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# Loads and stores of 16 bytes, and products on tensor cores. A `v4.b32` moves 16 bytes.
_PTX = {
    "loads_128": r"ld\.global[\w.:]*\.v4\.b32|ld\.global[\w.:]*\.v2\.b64|cp\.async\.cg",
    "stores_128": r"st\.global[\w.:]*\.v4\.b32|st\.global[\w.:]*\.v2\.b64",
}
# What multiplies matrices on a target, 64 rows at a time or more; mma.sync for fewer rows and elsewhere.
_TENSOR_CORE = {"sm_90": r"wgmma\.mma_async", "sm_100": r"tcgen05\.mma", "gfx942": r"v_mfma"}
_AMDGCN = {
    "loads_128": r"(?:global|buffer)_load_dwordx4",
    "stores_128": r"(?:global|buffer)_store_dwordx4",
}


def resources(compiled: Any, target: str, rows: int) -> dict[str, int]:
    """registers, spills and stack of a thread, shared memory of a block, 128-bit accesses, tensor-core instructions."""
    counts = {"shared_bytes": compiled.metadata.shared, "warps": compiled.metadata.num_warps}
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(_CUOBJDUMP), "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        counts["registers"] = _number(r"REG:(\d+)", usage)
        counts["spill_bytes"] = _number(r"LOCAL:(\d+)", usage)
        counts["stack_bytes"] = _number(r"STACK:(\d+)", usage)  # where ptxas spills to, too
        counts["scalar_spills"] = 0  # ptxas spills scalar registers to no memory of their own
        text, patterns = compiled.asm["ptx"], _PTX
    else:
        text, patterns = compiled.asm["amdgcn"], _AMDGCN
        counts["registers"] = _number(r"\.vgpr_count:\s+(\d+)", text)
        counts["spill_bytes"] = 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
        counts["stack_bytes"] = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)  # scratch
        counts["scalar_spills"] = _number(r"\.sgpr_spill_count:\s+(\d+)", text)  # to lanes of vector registers
    is_amd = "amdgcn" in compiled.asm
    product = _TENSOR_CORE[target] if target in _TENSOR_CORE and (rows >= 64 or is_amd) else r"mma\.sync"
    patterns = patterns | {"tensor_core": product}
    return counts | {name: len(re.findall(pattern, text)) for name, pattern in patterns.items()}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output: expected {pattern!r}, got {text[:200]!r}")
    return int(found[1])
