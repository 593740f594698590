"""The same bits whatever the order in which threads and blocks run, and whatever shared memory held before."""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu import cuda_emulated, exercises


@pytest.mark.parametrize("family", exercises.EXERCISES)
def test_same_bits_in_ten_orders(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    cuda_emulated.ensure()
    first = None
    for seed in range(10):
        monkeypatch.setenv("CUDA_ON_CPU_SEED", str(seed))
        results = [got for got, _ in exercises.EXERCISES[family]()]
        first = first or results
        assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True)), f"seed {seed}"
