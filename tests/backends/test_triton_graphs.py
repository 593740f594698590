"""What a CUDA graph needs of the Triton ops: launches that no value decides, and no wait of the host for a device.

The launches of an op are kept in place of run, and run later on contents that came after. Nothing but allocations may
come between them. What a driver makes of a capture is not executed here, nor the vendor library between our kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from support.capture import NothingComputes

pytest.importorskip("triton")
from triton_strict import checks
from triton_strict.checks import tensors

from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import BatchNorm
from fused_resnet.backends.triton import launch


@contextmanager
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """Launches within this context are kept in the list, not run."""
    run, graph = launch.run, list[Callable[[], None]]()
    with monkeypatch.context() as patch, NothingComputes():
        patch.setattr(launch, "run", lambda *args, **constants: graph.append(lambda: run(*args, **constants)))
        yield graph


def _is_image(a: object) -> bool:
    return isinstance(a, torch.Tensor) and a.dim() == 4


@pytest.mark.parametrize("name", checks.CASES)
def test_launches_of_a_capture_compute_what_a_call_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")
    op, arguments = checks.CASES[name]
    function, args = checks.function_of(backend, op), list(arguments(torch.bfloat16))
    if name in checks.PRODUCTS:  # a filter that lies otherwise is copied by PyTorch
        args = [a.contiguous(memory_format=torch.channels_last) if _is_image(a) else a for a in args]
    if function is backend.bn_act_conv_backward:
        args[-1] = (True, True, False)  # the bias is summed by PyTorch
    with captured(monkeypatch) as graph:
        results = list(tensors(function(*args)))
    assert graph
    for t in tensors(args):
        t.copy_(torch.randint(9, t.shape) if t.dtype == torch.uint8 else torch.rand(t.shape) + 0.25)
    for run in graph:
        run()
    assert all(torch.equal(a, b) for a, b in zip(results, tensors(function(*args)), strict=True))


def test_what_computes_between_launches_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bn, *rest = checks.CASES["bn_add_act"][1](torch.bfloat16)
    strided = BatchNorm(bn.mean.repeat(2)[::2], *bn[1:])  # to be copied before a kernel may walk it
    with pytest.raises(AssertionError, match="in a capture, got clone"), captured(monkeypatch):
        backend.bn_add_act(x, strided, *rest)
