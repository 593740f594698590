"""Tests again on a build with a sanitizer, each mode in a process of its own.

``PYTHONPATH=tests python -m cuda_on_cpu.sanitized MODE ...`` runs all that reaches a kernel: the op suite, but for
gradcheck, opcheck and compile, and the fused convolution's tests. CI does so too, in test_sanitized.py.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterable

from cuda_on_cpu import build, cuda_emulated

__all__ = ["KERNELS", "assert_nothing_is_reported"]

_OPS = ("bn_add_act", "bn_act_max_pool", "bn_act_conv", "conv_bn_add_act")
_FILES = [*(f"tests/ops/test_{op}.py" for op in _OPS), "tests/cuda/test_fused_conv.py"]
# Gradcheck and the like are PyTorch's code, slow, and reach no kernel that others do not; "same bits" repeats calls;
# work for a whole device is a choice between tiles that others run in.
KERNELS = "(cuda_emulated or test_fused_conv) and not (gradcheck or opcheck or compile or same_bits or whole_device)"


def command(selection: str) -> list[str]:
    settings = ("timeout=0", "console_output_style=progress-even-when-capture-no")
    options = ("-q", "-s", "-p", "no:cacheprovider", *(word for setting in settings for word in ("-o", setting)))
    return [sys.executable, "-m", "pytest", *options, "-k", selection, *_FILES]


def assert_nothing_is_reported(mode: str, selection: str) -> None:
    """Runs the tests of ``selection`` on the build of this mode: all pass, and none is skipped."""
    cuda_emulated.ensure()
    build.build(mode, cuda_emulated.FOLDER)
    done = subprocess.run(
        command(selection),
        cwd=build.ROOT,
        env=build.environment(mode),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


def processor_minutes() -> float:
    """Of the processes that have ended, user and system."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) / 60


def main(modes: Iterable[str]) -> int:
    """Shows the tests of each mode as they go, and what they cost; 1 if one fails or something is reported."""
    failed = False
    for mode in modes:
        build.build(mode, cuda_emulated.FOLDER)
        print(f"{mode}: {KERNELS}", flush=True)
        before = processor_minutes()
        code = subprocess.run(command(KERNELS), cwd=build.ROOT, env=build.environment(mode), check=False).returncode
        outcome = {0: "nothing is reported", build.SANITIZER_EXIT_CODE: "the sanitizer has reported"}
        minutes = processor_minutes() - before
        print(f"{mode}: {outcome.get(code, 'tests have failed')}, {minutes:.1f} processor minutes", flush=True)
        failed |= code != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
