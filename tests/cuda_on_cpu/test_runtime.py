"""The CPU runtime itself: it computes what CUDA computes, and refuses what CUDA leaves undefined.

Beside it the offsets of a walk over images that are too large to fill.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_on_cpu import build, cuda_emulated

PROBES = [Path(__file__).with_name("probes.cu")]

REFUSED = {
    "one_syncthreads_in_each_branch": r"divergent __syncthreads\(\): thread \d+ waits at .*probes.cu:\d+",
    "return_before_syncthreads": r"__syncthreads\(\) reached by 16 of 32 threads, the others have ended",
    "syncthreads_against_shuffle": r"wait for each other for ever; thread 0 waits at __syncthreads",
    "shuffle_by_half_a_warp": r"__shfl_down_sync: mask ffffffff names lane \d+, which has ended",
    "shuffle_from_outside_the_mask": r"lane 0 reads lane 20, which mask 0000ffff leaves out",
    "mask_without_its_own_lane": r"__ballot_sync: mask 0000ffff leaves out its own lane",
    "misaligned_load": r"misaligned vector load of 16 bytes \(block 0, 0, 0, thread",
    "static_shared_over_the_limit": r"more than 48 KiB of static shared memory",
    "dynamic_shared_over_the_limit": r"at most 101376 bytes of shared memory, got 101377",
    "copy_that_nobody_waits_for": r"cp.async copies that nothing waited for",
    "copy_from_a_misaligned_address": r"misaligned cp.async from global memory of 16 bytes",
}


def probes(mode: str = "plain", *defines: str) -> Path:
    cuda_emulated.require_compiler()
    return build.build(mode, cuda_emulated.FOLDER / "-".join(("probes", mode, *defines)), defines, PROBES)


@pytest.mark.parametrize(("gate", "outcome"), [("required", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_a_compiler_tests_are_skipped_but_fail_in_ci(
    monkeypatch: pytest.MonkeyPatch, gate: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("FUSED_RESNET_COMPILE_GATE", gate)
    monkeypatch.setattr(build, "missing", lambda: "no g++")
    with pytest.raises(outcome, match="no g\\+\\+"):
        cuda_emulated.ensure()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load(probes())


@pytest.mark.parametrize("probe", REFUSED)
def test_refuses_and_says_why(module: ModuleType, probe: str) -> None:
    with pytest.raises(RuntimeError, match=REFUSED[probe]):
        module.run(probe)
    assert all(module.run("shuffles_and_votes")[:32])  # and goes on as if nothing had been


@pytest.mark.parametrize("probe", ["shuffles_and_votes", "read_before_and_after_the_wait"])
@pytest.mark.parametrize("seed", range(3))
def test_computes_what_cuda_does(module: ModuleType, monkeypatch: pytest.MonkeyPatch, probe: str, seed: int) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_SEED", str(seed))
    assert module.run(probe)[:32] == [1] * 32


def test_unwritten_shared_memory_differs_by_seed(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, or a huge number: a kernel whose result depends on it has another result with another seed."""
    seen = set()
    for seed in ("0", "1"):
        monkeypatch.setenv("CUDA_ON_CPU_SEED", seed)
        seen |= set(module.run("unwritten_shared")[:32])
    assert seen == {-1, 0x7F7F7F7F}


@pytest.mark.parametrize("probe", ["unwritten_shared", "unwritten_shared_compared", "read_before_and_after_the_wait"])
def test_the_shadow_knows_what_nobody_wrote(probe: str) -> None:
    """Whatever a kernel makes of it, and of a copy's target until the copy is waited for."""
    module = build.load(probes("shadow"))
    with pytest.raises(RuntimeError, match=r"a load of 4 bytes of shared memory, of which nobody wrote byte 0"):
        module.run(probe)
    assert all(module.run("shuffles_and_votes")[:32])


def test_poison_does_not_see_what_a_comparison_hides(module: ModuleType) -> None:
    assert all(module.run("unwritten_shared_compared")[:32])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32"])
def test_tensor_core_product(module: ModuleType, name: str) -> None:
    depth, tolerance = (8, 1e-3) if name == "tf32" else (16, 1e-6)
    dtype = getattr(torch, name, torch.float32)
    a, b, c = torch.randn(16, depth).to(dtype), torch.randn(8, depth).to(dtype), torch.empty(16, 8)
    module.multiply(name, a.data_ptr(), b.data_ptr(), c.data_ptr())
    want = a.double() @ b.double().T
    assert (c.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("row", [2**27 - 1, 2**31 - 1, 2**31 + 3, 2**33 + 5])
@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_offsets_beyond_2_to_the_31(module: ModuleType, layout: str, lanes: int, row: int) -> None:
    """By Python's integers, which do not overflow: elements, and rows by themselves."""
    channels, pixels = 64, 56 * 56
    if layout == "channels_last":
        view = (row + 1, channels, 1)
        want = [row * channels + column * lanes for column in range(8)]
    else:
        image, pack = divmod(row, pixels // lanes)
        view = (image + 1, channels, pixels)
        want = [(image * channels + column) * pixels + pack * lanes for column in range(8)]
    assert want[0] > 2**31
    assert module.offsets(layout == "channels_last", lanes, view, row) == want


def run_under_thread_sanitizer(path: Path, probe: str, races: bool) -> list[int]:
    """The first four results of a probe on this module, in a process that must report a race, or none."""
    code = f"""from pathlib import Path; from cuda_on_cpu import build
print(*build.load(Path({str(path)!r})).run({probe!r})[:4])"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=build.environment("tsan"),
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("data race" in done.stderr) == races, done.stderr[-2000:]
    assert done.returncode == (build.SANITIZER_EXIT_CODE if races else 0)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("fence", [True, False], ids=["fence", "without-fence"])
def test_thread_sanitizer_knows_what_a_fence_orders(fence: bool) -> None:
    path = probes("tsan", *(() if fence else ("WITHOUT_FENCE",)))
    assert run_under_thread_sanitizer(path, "handover", races=not fence) == [2, 3, 1, 2]


@pytest.mark.parametrize("renew", [True, False])
def test_blocks_that_have_the_same_threads_race_if_these_are_renewed(
    renew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1024 of a block, more than half of all: the second of two blocks has threads of the first."""
    monkeypatch.delenv("CUDA_ON_CPU_RENEW", raising=False)
    if renew:
        monkeypatch.setenv("CUDA_ON_CPU_RENEW", "1")
    assert run_under_thread_sanitizer(probes("tsan"), "every_block_writes", races=renew) == [1] * 4
