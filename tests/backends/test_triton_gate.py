"""The ahead-of-time gate, and the gate's own judgement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")
from triton_gate.budget import BUDGET, LIMITS, PRODUCTS, SHARED_BYTES, breaches, budget_text, widest
from triton_gate.resources import resources

from fused_resnet.backends.arguments import ACTIVATIONS
from fused_resnet.backends.triton.configs import PRODUCT

TESTS = Path(__file__).resolve().parent.parent
WITH_ACTIVATION = (
    "bn_add_act_kernel",
    "bn_add_act_backward_kernel",
    "bn_act_max_pool_kernel",
    "bn_act_max_pool_backward_kernel",
    *PRODUCTS,
)
# Types of a product and the bytes of an element.
PRODUCT_TYPES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
ROW = {
    "target": "sm_90",
    "kernel": "conv_dgrad_kernel",
    "type": "bfloat16",
    "case": "relu",
    "tile": "128x64x32",
    "registers": 128,
    "spill_bytes": 0,
    "stack_bytes": 0,
    "scalar_spills": 0,
    "shared_bytes": 60000,
    "warps": 8,
    "loads_128": 8,
    "stores_128": 4,
    "tensor_core": 4,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registers": 10_000}, "10000 registers, the budget is"),
        ({"spill_bytes": 8}, "8 bytes of registers spilled"),
        ({"stack_bytes": 16}, "16 bytes of stack"),
        ({"target": "gfx942", "stack_bytes": 24, "shared_bytes": 0}, "24 bytes of stack"),
        ({"target": "gfx942", "scalar_spills": 900, "shared_bytes": 0}, "900 scalar spills, the budget is"),
        ({"loads_128": 1}, "1 128-bit loads, the budget is"),
        ({"tensor_core": 1}, "1 tensor-core instructions, the budget is"),
        ({"shared_bytes": 232449}, "232449 bytes of shared memory, a block has 232448"),
        ({"target": "sm_86", "shared_bytes": 101377}, "a block has 101376"),
        ({"loads_128": 0}, "no 128-bit load"),
        ({"stores_128": 0}, "no 128-bit store"),
        ({"case": "unaligned", "loads_128": 0, "spill_bytes": 4}, "4 bytes of registers spilled"),
        ({"tensor_core": 0}, "no product on tensor cores"),
        ({"kernel": "unknown_kernel"}, "no budget"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_a_breach_is_named(change: dict, words: str) -> None:
    found = [b for b in breaches({**ROW, **change}) if words in b]
    assert len(found) == 1 and found[0].startswith(change.get("target", "sm_90"))


def test_what_keeps_the_budget_passes() -> None:
    few = {"registers": 1, "shared_bytes": 1}
    assert not list(breaches({**ROW, **few, **dict.fromkeys(("loads_128", "stores_128", "tensor_core"), 1000)}))
    rows = [ROW, {**ROW, "registers": 90, "loads_128": 2}, {**ROW, "target": "gfx942", "scalar_spills": 3}]
    budget = widest(rows)
    limits = {"sm_90": [128, 60000, 0, 2, 4, 4], "gfx942": [128, 60000, 3, 8, 4, 4]}
    assert budget == {"conv_dgrad_kernel": {"bfloat16 relu": limits}} and len(LIMITS) == 6
    assert json.loads(budget_text(budget)) == budget


# What LLVM writes at the end of a kernel's assembly, of one that spills both kinds of registers.
AMDGCN = """
        v_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]
        global_load_dwordx4 v[0:3], v[0:1], off
    .private_segment_fixed_size: 24
    .sgpr_count:     106
    .sgpr_spill_count: 450
    .vgpr_count:     512
    .vgpr_spill_count: 5
"""


def test_spills_and_scratch_of_amd_are_read() -> None:
    metadata = SimpleNamespace(shared=4096, num_warps=4)
    read = partial(resources, target="gfx942", rows=64)
    found = read(SimpleNamespace(metadata=metadata, asm={"amdgcn": AMDGCN}))
    expected = {"registers": 512, "spill_bytes": 20, "stack_bytes": 24, "scalar_spills": 450, "tensor_core": 1}
    assert {name: found[name] for name in expected} == expected
    assert (found["loads_128"], found["stores_128"]) == (1, 0)
    for line in ("private_segment_fixed_size", "sgpr_spill_count", "vgpr_spill_count", "vgpr_count"):
        changed = AMDGCN.replace(f".{line}:", ".renamed:")  # by another compiler
        with pytest.raises(ValueError, match=line):
            read(SimpleNamespace(metadata=metadata, asm={"amdgcn": changed}))


@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """Each case for one of seven targets, in turn; ``make triton-gate`` compiles all for all."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "triton_gate", "--in-turn", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["target"] for row in rows} == set(SHARED_BYTES)
    assert {row["kernel"] for row in rows} == json.loads(BUDGET.read_text()).keys()
    assert {(row["kernel"], row["case"]) for row in rows} >= {*product(WITH_ACTIVATION, ACTIVATIONS)}
    compiled = {(row["kernel"], row["case"], row["type"], row["tile"]) for row in rows}
    for kind, size in PRODUCT_TYPES.items():
        tiles = ["x".join(map(str, tile[:3])) for tile in PRODUCT[size]]
        assert compiled >= {*product(PRODUCTS, ("relu", "gelu"), (kind,), tiles)}
