"""The ahead-of-time gate, and the gate's own judgement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from triton_gate.budget import BUDGET, SHARED_BYTES, breaches, widest

TESTS = Path(__file__).resolve().parent.parent
ROW = {
    "target": "sm_90",
    "kernel": "conv_dgrad_kernel",
    "type": "bfloat16",
    "case": "relu",
    "tile": "128x64x32",
    "registers": 128,
    "spill_bytes": 0,
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
    allowed = {**ROW, "registers": 1}
    assert not list(breaches(allowed))
    assert widest([ROW, {**ROW, "registers": 90}]) == {"conv_dgrad_kernel": {"nvidia-bfloat16-relu": 128}}


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
