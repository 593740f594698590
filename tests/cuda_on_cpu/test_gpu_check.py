"""The parts of ``make gpu-check`` that run without a GPU: every kernel call, the table, and the refusal."""

from __future__ import annotations

import gpu_check
import pytest
import torch
from cuda_on_cpu import cuda_emulated

from fused_resnet.backends import backends


def test_every_kernel_has_a_row_that_counts_its_bytes() -> None:
    cuda_emulated.ensure()
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)

    def one_ms(call) -> float:
        call()
        return 1.0

    rows = {row["kernel"]: row for row in gpu_check.bandwidths(x, one_ms)}
    moved = {name: round(row["gb_per_s"] * 1e6 / x.nbytes, 3) for name, row in rows.items()}
    pooled = 0.25 + 0.25 / 4
    assert moved == {
        "copy": 2,
        "channel_statistics": 1,
        "channel_statistics_backward": 3,
        "bn_add_act": 3,
        "bn_add_act, silu": 3,
        "bn_add_act_backward": 5,
        "bn_act_max_pool": round(1 + pooled, 3),
        "bn_act_max_pool_backward": round(2 + pooled, 3),
    }
    part = {"ok": True, "tail": "1 passed"}
    result = {"device": "none", "version": "0", "torch": "0", "bandwidths": list(rows.values())}
    text = gpu_check.page(result | dict.fromkeys(("tests", "compute_sanitizer", "bench"), part))
    assert "| bn_add_act | 2x8x8x8 | torch.float32 | 0 | 1.50 |" in text


@pytest.mark.skipif(backends()["cuda"].unavailable is None, reason="there is a device")
def test_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main() == 2
    assert capsys.readouterr().err == f"gpu-check: {backends()['cuda'].unavailable}\n"
