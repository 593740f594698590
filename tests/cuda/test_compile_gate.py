"""What nvcc made of every kernel, for every architecture, and what launches ask for, stay within kernel_budget.json.

It reads the built ``fused_resnet._cuda``, and asks the launchers as they are built for the CPU. Where that or a tool
is absent the test is skipped with the reason, unless ``FUSED_RESNET_COMPILE_GATE=required``, as in .ci/run: then it
fails.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NoReturn

import pytest
from cuda_on_cpu import build, cuda_emulated
from cuda_on_cpu.launches import Launch, launches
from support.kernel_budget import BUDGET, budget_of, read_budget, violations, write_budget
from support.kernel_usage import ARCHITECTURES, Usage, count_instructions, find_cuobjdump, read_usage, short_name

VECTOR = "conv_forward_kernel<ConvTraits<__half,tensor_core,64,64,2,2,true>>"
USED = Usage(126, 0, 1024, 0, 19, 0, 1, 3, 12, 16)
LAUNCH = Launch(128, 30720)


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
def cuobjdump() -> Path:
    return find_cuobjdump() or absent("cuobjdump: on PATH, or of the wheel of Triton or nvidia-cuda-cuobjdump")


@pytest.fixture(scope="module")
def usage(cuobjdump: Path) -> dict[tuple[str, str], Usage]:
    if shutil.which("c++filt") is None:
        absent("c++filt")
    return read_usage(cuobjdump, built_module())


def test_every_kernel_is_within_its_budget(usage: dict[tuple[str, str], Usage]) -> None:
    found = violations(usage, launches(), read_budget(BUDGET))
    assert not found, f"{len(found)} violations:\n" + "\n".join(found)


def test_every_architecture_has_every_kernel(usage: dict[tuple[str, str], Usage]) -> None:
    kernels = {kernel for _, kernel in usage}
    assert len(kernels) > 50
    assert set(usage) == {(arch, kernel) for arch in ARCHITECTURES for kernel in kernels}


def test_ptx_is_there_for_architectures_between_and_to_come(cuobjdump: Path) -> None:
    command = [cuobjdump, "--list-ptx", built_module()]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    units = Counter(re.findall(r"\.sm_(\d+)\.ptx", listed))
    assert set(units) == {"80", "120"} and units["80"] == units["120"] >= 10


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": 127}, "registers: at most 126, got 127"),
        ({"stack_bytes": 8, "local": 3}, "no stack and no spill, got 8 bytes and 3 local accesses"),
        ({"static_shared_bytes": 2048}, "static_shared_bytes: at most 1024, got 2048"),
        ({"dynamic_shared_bytes": 30848}, "dynamic_shared_bytes: at most 30720, got 30848"),
        ({"dynamic_shared_bytes": 101376}, "at most 101376 bytes of shared memory in a block, got 102400"),
        ({"scalar_loads": 1}, "scalar_loads: at most 0, got 1"),
        ({"scalar_loads": 2}, "at most a scalar load for 16 bytes stored, got 2 for 1"),
        ({"vector_stores": 0}, "vector_stores: at least 1, got 0"),
        ({"vector_stores": 0}, "stores of 128 bits, got none"),
        ({"async_copies": 0}, "async_copies: at least 12, got 0"),
        ({"async_copies": 0, "vector_loads": 0}, "loads of 128 bits, got none"),
        ({"tensor_core": 0}, "tensor cores, got none"),
        ({"registers": 200}, "warps: at least 12, got 8"),
        ({"dynamic_shared_bytes": 40960}, "warps: at least 12, got 8"),
    ],
    ids=str,
)
def test_a_regression_is_named(change: dict[str, int], complaint: str) -> None:
    usage, asked = {("86", VECTOR): USED, ("89", VECTOR): USED}, {VECTOR: LAUNCH}
    budget = budget_of(usage, asked)
    assert violations(usage, asked, budget) == []
    of_launch = {name: value for name, value in change.items() if name in Launch._fields}
    of_kernel = {name: value for name, value in change.items() if name not in of_launch}
    changed = dict.fromkeys(usage, USED._replace(**of_kernel))
    found = violations(changed, {VECTOR: LAUNCH._replace(**of_launch)}, budget)
    assert f"{VECTOR}: {complaint} (sm_86, sm_89)" in found


def test_an_architecture_has_a_budget_of_its_own(tmp_path: Path) -> None:
    usage = {(arch, VECTOR): USED._replace(registers=100 + int(arch)) for arch in ARCHITECTURES}
    write_budget(tmp_path / "budget.json", budget_of(usage, {VECTOR: LAUNCH}))
    assert '"registers": [180, 186, 189, 190, 200, 220]' in (tmp_path / "budget.json").read_text()
    assert '"dynamic_shared_bytes": 30720' in (tmp_path / "budget.json").read_text()
    budget = read_budget(tmp_path / "budget.json")
    assert violations(usage, {VECTOR: LAUNCH}, budget) == []
    more = usage | {("90", VECTOR): USED._replace(registers=192)}  # on sm_100 it may
    assert violations(more, {VECTOR: LAUNCH}, budget) == [f"{VECTOR}: registers: at most 190, got 192 (sm_90)"]


def test_a_kernel_without_a_budget_and_what_is_gone_are_named() -> None:
    usage, asked = {("80", VECTOR): USED}, {VECTOR: LAUNCH}
    assert "not in the budget" in violations(usage, asked, {})[0]
    assert "launched by nothing" in violations(usage, {}, budget_of(usage, asked))[0]
    assert "not in the module" in violations({}, {}, budget_of(usage, asked))[0]


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
    ("arch", "registers", "launch", "warps"),
    [
        ("80", 32, Launch(256, 0), 64),  # every warp that there is
        ("80", 64, Launch(256, 0), 32),  # registers
        ("86", 33, Launch(256, 0), 48),
        ("80", 128, LAUNCH, 16),
        ("86", 128, LAUNCH, 12),  # shared memory: three blocks of 31 KiB and more
        ("120", 128, LAUNCH, 12),
        ("80", 128, Launch(256, 163 << 10), 0),
    ],
)
def test_predicted_occupancy(arch: str, registers: int, launch: Launch, warps: int) -> None:
    assert USED._replace(registers=registers).warps(arch, *launch) == warps


def test_occupancy_is_predicted_as_nvidia_does(tmp_path: Path) -> None:
    cuda_emulated.require_compiler()
    source, program = Path(__file__).with_name("nvidia_occupancy.cpp"), tmp_path / "nvidia_occupancy"
    subprocess.run(["g++", "-std=c++17", f"-I{build.toolkit_include()}", source, "-o", program], check=True)
    cases = [
        (arch, registers, static, threads, dynamic)
        for arch in ARCHITECTURES
        for registers in (16, 32, 40, 64, 65, 96, 128, 168, 255)
        for static in (0, 16, 2048, 4112)
        for threads in (32, 64, 128, 256)
        for dynamic in (0, 1000, 30720, 44544, 67584, 87552, 99 << 10, 160 << 10)
    ]
    lines = "".join(" ".join(map(str, (arch, *ARCHITECTURES[arch], *case))) + "\n" for arch, *case in cases)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    ours = [
        USED._replace(registers=registers, static_shared_bytes=static).warps(arch, threads, dynamic)
        for arch, registers, static, threads, dynamic in cases
    ]
    theirs = list(map(int, done.stdout.split()))
    assert [case for case, a, b in zip(cases, ours, theirs, strict=True) if a != b] == []
