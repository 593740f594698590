"""Memory of large tensors that stays when they are freed: csrc/cpu/tensor_memory.h."""

from __future__ import annotations

import copy
import io
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fused_resnet
from fused_resnet.backends import cpu
from fused_resnet.backends.cpu import native

MB = 1 << 20


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    fused_resnet.empty_cache()
    yield
    fused_resnet.empty_cache()


def large(megabytes: int) -> torch.Tensor:
    return native.empty((megabytes * MB // 4,), (1,), torch.float32)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_freed_tensor_leaves_its_memory_to_the_next() -> None:
    first = large(64).fill_(1)
    address = first.data_ptr()
    del first
    assert cpu.tensor_memory().kept >= 64 * MB
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    again = large(64).fill_(2)
    assert again.data_ptr() == address
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 10  # of 32 huge pages or 16,384 small ones


def test_what_was_freed_joins_its_neighbours_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)):
        parts = [large(3), large(5), large(7)]
        start = parts[0].data_ptr()
        for index in order:
            parts[index] = torch.empty(0)
        assert large(15).data_ptr() == start


def test_tensors_that_live_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    alive: dict[int, torch.Tensor] = {}
    for number in range(300):
        size = int(torch.randint(1, 9, (), generator=generator))
        alive[number] = large(size).fill_(number)
        if len(alive) > 12:
            oldest_but = int(torch.randint(len(alive), (), generator=generator))
            key = list(alive)[oldest_but]
            assert (alive.pop(key) == key).all()
    assert cpu.tensor_memory().used == sum(t.nbytes for t in alive.values())


def test_the_cache_goes_back_to_the_system() -> None:
    before = resident_bytes()
    kept = large(32).fill_(1)
    large(64).fill_(1)
    assert resident_bytes() - before > 90 * MB
    fused_resnet.empty_cache()
    assert cpu.tensor_memory() == (32 * MB, 0)
    assert resident_bytes() - before < 40 * MB
    assert (kept == 1).all()


def test_threads_may_share_it() -> None:
    wrong = []

    def work(number: int) -> None:
        for step in range(50):
            t = large(1 + step % 3).fill_(number)
            if not (t == number).all():
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cpu.tensor_memory().used == 0


def test_a_child_process_gets_none_of_what_is_kept() -> None:
    kept, _ = large(8).fill_(3), large(64).fill_(1)
    del _
    child = os.fork()
    if child == 0:  # must not return into pytest
        torch.set_num_threads(1)  # a fork takes none of OpenMP's threads along
        works = bool((kept == 3).all()) and bool((large(16).fill_(4) == 4).all())
        os._exit(0 if works else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cpu.tensor_memory() == (8 * MB, 0)
    assert (kept == 3).all()


def test_a_tensor_in_it_is_a_tensor_as_any_other() -> None:
    t = native.empty_image((2, 64, 64, 64), torch.float32).fill_(1)
    assert not t._is_view()
    assert t.is_contiguous(memory_format=torch.channels_last)
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    for copied in (torch.load(file), copy.deepcopy(t), t.clone()):
        assert torch.equal(copied, t)
        assert copied.stride() == t.stride()
    assert torch.equal(t.detach().share_memory_(), torch.ones(t.shape))
    t = native.empty_like(t, torch.bfloat16).requires_grad_()
    t.mul(2).sum().backward()
    assert t.grad is not None
    with torch.inference_mode():
        assert native.empty_image((1, 64, 64, 64), torch.float64).is_inference()


@pytest.mark.parametrize("dtype", [torch.uint8, *native.DTYPES])
def test_every_type_has_its_size(dtype: torch.dtype) -> None:
    t = native.empty_image((1, 1, 1024, 2048), dtype)
    assert (t.dtype, t.shape, t.nbytes) == (dtype, (1, 1, 1024, 2048), 2 * MB * dtype.itemsize)
    assert cpu.tensor_memory().used == t.nbytes


def test_the_profiler_sees_it() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        t = large(16)
        del t
    changes = [event.cpu_memory_usage for event in profiler.events() if event.name == "[memory]"]
    assert 16 * MB in changes
    assert -16 * MB in changes


SHORT_OF_ADDRESSES = """
import resource, torch
from fused_resnet.backends import cpu
from fused_resnet.backends.cpu import native
t = native.empty_image((1, 64, 256, 256), torch.float32).fill_(1)
print(cpu.tensor_memory().used, t.sum().item())
"""


@pytest.mark.parametrize(("limited", "variable"), [(True, "1"), (False, "0")])
def test_without_it_tensors_are_torch_s(limited: bool, variable: str) -> None:
    def limit() -> None:
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))

    environment = os.environ | {"FUSED_RESNET_KEEP_MEMORY": variable}
    answer = subprocess.run(
        [sys.executable, "-c", SHORT_OF_ADDRESSES],
        preexec_fn=limit,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["0", f"{64 * 256 * 256:.1f}"]
