"""What nvcc made of every kernel, for every architecture, stays within kernel_budget.json.

It reads the built ``fused_resnet._cuda`` and compiles nothing. Where that or a tool is absent the test is skipped with
the reason, unless ``FUSED_RESNET_COMPILE_GATE=required``, as in .ci/run: then it fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from support.kernel_budget import BUDGET, budget_of, launch_of, violations
from support.kernel_usage import ARCHITECTURES, Usage, count_instructions, find_cuobjdump, read_usage, short_name

VECTOR = "conv_forward_kernel<ConvTraits<__half,tensor_core,64,64,2,2,true>>"
USED = Usage(126, 0, 1024, 0, 19, 0, 1, 3, 12, 16)


def absent(what: str) -> NoReturn:
    if os.environ.get("FUSED_RESNET_COMPILE_GATE") == "required":
        pytest.fail(f"the compile gate needs {what}")
    pytest.skip(what)


def built_module() -> Path:
    spec = importlib.util.find_spec("fused_resnet._cuda")
    if spec is None or spec.origin is None:
        absent("a built fused_resnet._cuda")
    return Path(spec.origin)


@pytest.fixture(scope="module")
def usage() -> dict[tuple[str, str], Usage]:
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        absent("cuobjdump: on PATH, or of the wheel of Triton or nvidia-cuda-cuobjdump")
    if shutil.which("c++filt") is None:
        absent("c++filt")
    return read_usage(cuobjdump, built_module())


def test_every_kernel_is_within_its_budget(usage: dict[tuple[str, str], Usage]) -> None:
    found = violations(usage, json.loads(BUDGET.read_text()))
    assert not found, f"{len(found)} violations:\n" + "\n".join(found)


def test_every_architecture_has_every_kernel(usage: dict[tuple[str, str], Usage]) -> None:
    kernels = {kernel for _, kernel in usage}
    assert len(kernels) > 50
    assert set(usage) == {(arch, kernel) for arch in ARCHITECTURES for kernel in kernels}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": 127}, "registers: at most 126, got 127"),
        ({"stack_bytes": 8, "local": 3}, "no stack and no spill, got 8 bytes and 3 local accesses"),
        ({"static_shared_bytes": 2048}, "static_shared_bytes: at most 1024, got 2048"),
        ({"scalar_loads": 1}, "scalar_loads: at most 0, got 1"),
        ({"scalar_loads": 2}, "at most a scalar load for 16 bytes stored, got 2 for 1"),
        ({"vector_stores": 0}, "vector_stores: at least 1, got 0"),
        ({"vector_stores": 0}, "stores of 128 bits, got none"),
        ({"async_copies": 0}, "async_copies: at least 12, got 0"),
        ({"async_copies": 0, "vector_loads": 0}, "loads of 128 bits, got none"),
        ({"tensor_core": 0}, "tensor cores, got none"),
        ({"registers": 200}, "warps a multiprocessor: at least 16, got 8"),
    ],
    ids=str,
)
def test_a_regression_is_named(change: dict[str, int], complaint: str) -> None:
    budget = budget_of({("80", VECTOR): USED})
    assert violations({("80", VECTOR): USED}, budget) == []
    found = violations({("80", VECTOR): USED._replace(**change)}, budget)
    assert f"sm_80 {VECTOR}: {complaint}" in found


def test_a_kernel_without_a_budget_and_one_that_is_gone_are_named() -> None:
    assert "not in the budget" in violations({("80", VECTOR): USED}, {})[0]
    assert "not in the module" in violations({}, budget_of({("80", VECTOR): USED}))[0]


def test_instructions_are_told_apart() -> None:
    body = """
        /*0010*/              @!P0 LDG.E.128.CONSTANT R8, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0030*/               @P1 STG.E.128 desc[UR4][R2.64], R8 ;
        /*0040*/                   STG.E desc[UR4][R2.64], R8 ;
        /*0050*/                   LD.E.128 R8, [R2.64] ;
        /*0060*/                   LDGSTS.E.BYPASS.128.ZFILL [R5], desc[UR4][R2.64], P0 ;
        /*0070*/             @!UP0 STL [R1], R3 ;
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0090*/                   LDSM.16.MT88.4 R4, [R9] ;
    """
    assert list(count_instructions(body)) == [1, 1, 2, 1, 1, 1, 1]


def test_names_are_short() -> None:
    long = (
        "void fused_resnet::conv::conv_wgrad_kernel<fused_resnet::conv::ConvTraits<__half, "
        "(fused_resnet::conv::Arithmetic)1, 64, 64, 2, 2, true> >(fused_resnet::conv::ConvWgradParams)"
    )
    assert short_name(long) == "conv_wgrad_kernel<ConvTraits<__half,fma,64,64,2,2,true>>"


@pytest.mark.parametrize(
    ("arch", "registers", "kernel", "warps"),
    [
        ("80", 32, "pointwise", 64),  # every warp that there is
        ("80", 64, "pointwise", 32),  # registers
        ("86", 33, "pointwise", 48),
        ("80", 128, VECTOR, 16),
        ("86", 128, VECTOR, 12),  # shared memory: three blocks of 31 KiB and more
        ("120", 128, VECTOR, 12),
    ],
)
def test_predicted_occupancy(arch: str, registers: int, kernel: str, warps: int) -> None:
    static = {"pointwise": 0}.get(kernel, 1024 if int(arch) < 90 else 2048)
    used = USED._replace(registers=registers, static_shared_bytes=static)
    assert used.warps(arch, *launch_of(kernel)) == warps
