"""The CPU runtime itself: it computes what CUDA computes, and refuses what CUDA leaves undefined.

Beside it the offsets of a walk over images that are too large to fill.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import build, cuda_emulated
from cuda_on_cpu import probes as probes_module
from cuda_on_cpu.probes import Probes

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


def built(mode: str = "plain") -> Path:
    cuda_emulated.require_compiler()
    return build.build_probes(mode, cuda_emulated.FOLDER)


@pytest.mark.parametrize(("gate", "outcome"), [("required", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_a_compiler_tests_are_skipped_but_fail_in_ci(
    monkeypatch: pytest.MonkeyPatch, gate: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("FUSED_RESNET_COMPILE_GATE", gate)
    monkeypatch.setattr(build, "missing", lambda: "no g++")
    with pytest.raises(outcome, match="no g\\+\\+"):
        cuda_emulated.ensure()


@pytest.fixture(scope="module")
def probes() -> Probes:
    return Probes(built())


@pytest.mark.parametrize("probe", REFUSED)
def test_refuses_and_says_why(probes: Probes, probe: str) -> None:
    with pytest.raises(RuntimeError, match=REFUSED[probe]):
        probes.run(probe)
    assert all(probes.run("shuffles_and_votes")[:32])  # and goes on as if nothing had been


@pytest.mark.parametrize("probe", ["shuffles_and_votes", "read_before_and_after_the_wait"])
@pytest.mark.parametrize("seed", range(3))
def test_computes_what_cuda_does(probes: Probes, monkeypatch: pytest.MonkeyPatch, probe: str, seed: int) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_SEED", str(seed))
    assert probes.run(probe)[:32] == [1] * 32


def test_unwritten_shared_memory_differs_by_seed(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, or a huge number: a kernel whose result depends on it has another result with another seed."""
    seen = set()
    for seed in ("0", "1"):
        monkeypatch.setenv("CUDA_ON_CPU_SEED", seed)
        seen |= set(probes.run("unwritten_shared")[:32])
    assert seen == {-1, 0x7F7F7F7F}


@pytest.mark.parametrize("probe", ["unwritten_shared", "unwritten_shared_compared", "read_before_and_after_the_wait"])
def test_the_shadow_knows_what_nobody_wrote(probe: str) -> None:
    """Whatever a kernel makes of it, and of a copy's target until the copy is waited for."""
    probes = Probes(built("shadow"))
    with pytest.raises(RuntimeError, match=r"a load of 4 bytes of shared memory, of which nobody wrote byte 0"):
        probes.run(probe)
    assert all(probes.run("shuffles_and_votes")[:32])


def test_poison_does_not_see_what_a_comparison_hides(probes: Probes) -> None:
    assert all(probes.run("unwritten_shared_compared")[:32])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32"])
def test_tensor_core_product(probes: Probes, name: str) -> None:
    depth, tolerance = (8, 1e-3) if name == "tf32" else (16, 1e-6)
    dtype = getattr(torch, name, torch.float32)
    a, b = torch.randn(16, depth).to(dtype), torch.randn(8, depth).to(dtype)
    want = a.double() @ b.double().T
    assert (probes.multiply(name, a, b).double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("row", [2**27 - 1, 2**31 - 1, 2**31 + 3, 2**33 + 5])
@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_offsets_beyond_2_to_the_31(probes: Probes, layout: str, lanes: int, row: int) -> None:
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
    assert probes.offsets(layout == "channels_last", lanes, view, row) == want


def run_under_thread_sanitizer(probe: str, races: bool) -> list[int]:
    """The first four results of a probe, in a process that must report a race, or none."""
    done = subprocess.run(
        [sys.executable, probes_module.__file__, str(built("tsan")), probe],
        env=build.environment("tsan"),
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("data race" in done.stderr) == races, done.stderr[-2000:]
    assert done.returncode == (build.SANITIZER_EXIT_CODE if races else 0)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize(("probe", "races"), [("handover", False), ("handover_without_fence", True)])
def test_thread_sanitizer_knows_what_a_fence_orders(probe: str, races: bool) -> None:
    assert run_under_thread_sanitizer(probe, races) == [2, 3, 1, 2]


@pytest.mark.parametrize("renew", [True, False])
def test_blocks_that_have_the_same_threads_race_if_these_are_renewed(
    renew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1024 of a block, more than half of all: the second of two blocks has threads of the first."""
    monkeypatch.delenv("CUDA_ON_CPU_RENEW", raising=False)
    if renew:
        monkeypatch.setenv("CUDA_ON_CPU_RENEW", "1")
    assert run_under_thread_sanitizer("every_block_writes", races=renew) == [1] * 4
