"""The CPU kernels without Python: under sanitizers, and as NEON code on an emulated processor.

Few types and activations, for the time that builds take; ``make sanitize`` and ``make neon`` have all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cpu_alone import build

# Threads that add up the sums of all before all are done.
RACE = ("gather_wgrad.cpp", "    barrier(parts);\n    write(", "    write(")
OVERRUN = ("gather_wgrad.cpp", "own.u.data + column * pixels_", "u_ - 1")


def built(mode: str, patch: build.Patch | None = None) -> Path:
    if reason := build.missing(mode):
        pytest.skip(f"{mode}: {reason}")
    return build.build(mode, few_types=True, patch=patch)


@pytest.mark.parametrize("mode", build.MODES)
def test_every_kernel_is_right_and_nothing_is_reported(mode: str) -> None:
    done = build.run(mode, built(mode))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " results, 0 wrong" in done.stdout


@pytest.mark.parametrize(
    ("mode", "patch", "report"), [("tsan", RACE, "data race"), ("asan", OVERRUN, "heap-buffer-overflow")]
)
def test_a_planted_bug_is_reported(mode: str, patch: build.Patch, report: str) -> None:
    done = build.run(mode, built(mode, patch))
    assert done.returncode != 0
    assert report in done.stderr
