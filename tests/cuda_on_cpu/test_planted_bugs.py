"""Each bug of the table is planted once, and the check that it names reports it; without it, nothing is reported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from cuda_on_cpu import build, cuda_emulated, exercises
from cuda_on_cpu.planted_bugs import BUGS

from fused_resnet.backends.cuda import native


def report(families: Iterable[str], mode: str, module: Path, check: str = "verify") -> str:
    """What exercises have to say on this module; "" where all is well. Sanitizers need a process of their own."""
    if mode in ("plain", "shadow"):
        native.serve("cpu", build.load(module))
        try:
            for family in families:
                getattr(exercises, check)(family)
        except (AssertionError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            cuda_emulated.ensure()
        return ""
    done = subprocess.run(
        [sys.executable, exercises.__file__, str(module), *families],
        env=build.environment(mode) | {"CUDA_ON_CPU_RENEW": "1"},  # TSan: every two blocks may race
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1, build.SANITIZER_EXIT_CODE), done.stderr[-2000:]
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("name", BUGS)
def test_is_caught(name: str) -> None:
    cuda_emulated.ensure()
    bug = BUGS[name]
    module = build.build_planted(bug, cuda_emulated.FOLDER)
    assert re.search(bug.report, report([bug.exercise], bug.mode, module, bug.check))


@pytest.mark.parametrize(
    "name",
    [
        "conv-channels-that-nobody-wrote",
        "conv-bits-of-a-step-for-those-of-a-stage",
        "conv-no-pixel-that-a-tap-wraps-around",
        "partial-sums-from-the-last-block-on",
    ],
)
def test_what_shadow_ubsan_and_orders_catch_no_result_tells(name: str) -> None:
    cuda_emulated.ensure()
    bug = BUGS[name]._replace(mode="plain")
    assert report([bug.exercise], bug.mode, build.build_planted(bug, cuda_emulated.FOLDER)) == ""


@pytest.mark.parametrize("mode", build.MODES)
def test_nothing_is_reported_without_a_bug(mode: str) -> None:
    cuda_emulated.ensure()
    others = {} if mode == "tsan" else exercises.TYPED_EXERCISES  # which would take half a minute
    assert report(exercises.EXERCISES | others, mode, build.build(mode, cuda_emulated.FOLDER)) == ""
