"""Microseconds of the host for a call of each op, up to the launches, which are left out: no GPU is needed.

``PYTHONPATH=tests python benchmarks/launch_overhead.py cuda|triton|triton_launcher [SECONDS]``, on CPU tensors with
channels_last. For cuda every launch ends in the stream capture of tests/cuda_on_cpu: Python, pybind11 and the choice of
the kernel count, the driver does not. For triton it ends where Triton would be called, and our Python counts; for
triton_launcher kernels are compiled for sm_90, and Triton's launcher counts too, up to its call of the driver. "op" is
the call as a model makes it, through torch.library with all checks; "backend" the part below that.
"""

from __future__ import annotations

import os
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__" and "triton_launcher" not in sys.argv:
    import triton_strict  # noqa: F401 (before anything imports triton)

import torch
from torch import Tensor

from fused_resnet import ops, use_backend
from fused_resnet.backends import Backend, register
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool

__all__ = ["main"]

RELU, POOL, CONV = Activation("relu"), MaxPool((3, 3), (2, 2), (1, 1)), Conv((1, 1), (0, 0), (1, 1), 1)


@contextmanager
def _cuda() -> Iterator[str]:
    from cuda_on_cpu import cuda_emulated
    from cuda_on_cpu.streams import Runtime

    cuda_emulated.ensure()
    with Runtime.of_kernels().launching_into_nothing():
        yield cuda_emulated.NAME


@contextmanager
def _triton() -> Iterator[str]:
    from fused_resnet.backends.triton import launch

    with mock.patch.object(launch, "run", lambda *args, **constants: None):
        yield "triton"


@contextmanager
def _triton_launcher() -> Iterator[str]:
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver
    from triton_gate.driver import use_target

    use_target("sm_90")
    driver.active.launcher_cls = nvidia.CudaLauncher
    driver.active.allocate_default_profile_scratch = lambda *_: None
    driver.active.utils = SimpleNamespace(
        launch=lambda *_: None,
        load_binary=lambda *_: (None, 0, 0, 0, 1024),  # module, function, registers, spills, threads
        get_device_properties=lambda _: {"max_shared_mem": 227 * 1024},
        build_signature_metadata=tuple,
    )
    nvidia.PyKernelArg = SimpleNamespace  # of the C module that cannot be loaded without a driver; made once a kernel
    register(Backend("triton_launcher", "triton", ("cpu",), None))
    yield "triton_launcher"


BACKENDS = {"cuda": _cuda, "triton": _triton, "triton_launcher": _triton_launcher}


def _calls(name: str) -> dict[str, tuple[Callable[[], object], Callable[[], object] | None]]:
    """By op: a call of the backend's function, and of the whole op where it has one."""
    from importlib import import_module

    backend = import_module(f"fused_resnet.backends.{name.partition('_')[0]}")
    x, residual, g = (_image(2, 64, 4, 4) for _ in range(3))
    weight = _image(64, 64, 1, 1)
    bn = BatchNorm(*(torch.rand(64) for _ in range(4)), 1e-5)
    mean = torch.rand(64)
    pooled = _image(2, 64, 2, 2)
    indices = torch.empty_like(pooled, dtype=torch.uint8)
    public = ops.BatchNorm(*bn)
    return {
        "bn_add_act": (
            lambda: backend.bn_add_act(x, bn, residual, None, RELU),
            lambda: ops.bn_add_act(x, public, residual),
        ),
        "bn_add_act_backward": (lambda: backend.bn_add_act_backward(g, x, bn, residual, None, RELU), None),
        "bn_act_max_pool": (
            lambda: backend.bn_act_max_pool(x, bn, RELU, POOL),
            lambda: ops.bn_act_max_pool(x, public, "relu", 3, 2, 1),
        ),
        "bn_act_max_pool_backward": (
            lambda: backend.bn_act_max_pool_backward(pooled, indices, x, bn, RELU, POOL),
            None,
        ),
        "bn_act_conv": (
            lambda: backend.bn_act_conv(x, bn, RELU, weight, None, CONV, True),
            lambda: ops.bn_act_conv(x, public, "relu", weight),
        ),
        "bn_act_conv_backward": (
            lambda: backend.bn_act_conv_backward(
                g, mean, mean, x, bn, RELU, weight, residual, mean, CONV, (True, True, False)
            ),
            None,
        ),
        "conv_bn_add_act": (
            lambda: backend.conv_bn_add_act(x, weight, None, bn, residual, RELU, CONV),
            lambda: ops.conv_bn_add_act(x, weight, public, residual, "relu"),
        ),
    }


def _image(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def _microseconds(call: Callable[[], object], seconds: float) -> float:
    """The least of five repeats: what the machine does beside it only adds."""
    timer = timeit.Timer(call)
    once = min(timer.repeat(3, 20)) / 20
    number = max(1, int(seconds / 5 / once))
    return min(timer.repeat(5, number)) / number * 1e6


def main(name: str, seconds: float = 0.5) -> dict[str, dict[str, float]]:
    """Prints a row for each op and returns its microseconds; ``seconds`` are spent on each."""
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    print("| op | backend, us | op, us |\n|---|---|---|")
    with BACKENDS[name]() as backend, use_backend(backend), torch.no_grad():
        for op, (inner, outer) in _calls(name).items():
            rows[op] = {"backend": _microseconds(inner, seconds)}
            if outer is not None:
                rows[op]["op"] = _microseconds(outer, seconds)
            print(f"| `{op}` | {rows[op]['backend']:.0f} | {rows[op].get('op', 0.0):.0f} |".replace(" 0 |", " |"))
    return rows


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in BACKENDS:
        sys.exit(f"usage: {os.path.basename(sys.argv[0])} {'|'.join(BACKENDS)} [SECONDS]")
    main(sys.argv[1], *map(float, sys.argv[2:]))
