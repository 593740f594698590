"""Each bug of the table is planted once, and the check that it names reports it; without it, nothing is reported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from cuda_on_cpu import build, cuda_emulated, exercises
from cuda_on_cpu.planted_bugs import BUGS

from fused_resnet.backends.cuda import native

SANITIZERS = ("asan", "tsan")  # which need a process of their own
IN_PROCESS = [name for name, bug in BUGS.items() if bug.mode not in SANITIZERS]

Run = tuple[Path, Iterable[str]]  # a module, and the families of exercises that run on it


def report(families: Iterable[str], module: Path, check: str = "verify") -> str:
    """What exercises have to say on this module; "" where all is well."""
    native.serve("cpu", build.load(module))
    try:
        for family in families:
            getattr(exercises, check)(family)
    except (AssertionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        cuda_emulated.ensure()
    return ""


def reports(mode: str, runs: Sequence[Run]) -> list[str]:
    """The same on modules with a sanitizer, for each run, from children of one process."""
    done = subprocess.run(
        [sys.executable, exercises.__file__, *(f"{module}={','.join(families)}" for module, families in runs)],
        env=build.environment(mode) | {"CUDA_ON_CPU_RENEW": "1"},  # TSan: every two blocks may race
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    texts: list[str] = json.loads(done.stdout)
    return texts


@pytest.mark.timeout(900)  # where builds and other tests share the machine
@pytest.mark.parametrize("mode", SANITIZERS)
def test_are_caught_by(mode: str) -> None:
    """And nothing is reported without a bug."""
    cuda_emulated.ensure()
    bugs = {name: bug for name, bug in BUGS.items() if bug.mode == mode}
    others = {} if mode == "tsan" else exercises.TYPED_EXERCISES  # which would take half a minute
    runs: list[Run] = [(build.build_planted(bug, cuda_emulated.FOLDER), [bug.exercise]) for bug in bugs.values()]
    sound: Run = (build.build(mode, cuda_emulated.FOLDER), exercises.EXERCISES | others)
    *texts, nothing = reports(mode, [*runs, sound])
    said = dict(zip(bugs, texts, strict=True))
    assert {name: said[name][-2000:] for name, bug in bugs.items() if not re.search(bug.report, said[name])} == {}
    assert nothing == ""


@pytest.mark.parametrize("name", IN_PROCESS)
def test_is_caught(name: str) -> None:
    cuda_emulated.ensure()
    bug = BUGS[name]
    module = build.build_planted(bug, cuda_emulated.FOLDER)
    assert re.search(bug.report, report([bug.exercise], module, bug.check))


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
    assert report([bug.exercise], build.build_planted(bug, cuda_emulated.FOLDER)) == ""


@pytest.mark.parametrize("mode", [mode for mode in build.MODES if mode not in SANITIZERS])
def test_nothing_is_reported_without_a_bug(mode: str) -> None:
    cuda_emulated.ensure()
    families = exercises.EXERCISES | exercises.TYPED_EXERCISES
    assert report(families, build.build(mode, cuda_emulated.FOLDER)) == ""
