"""How an op of this package becomes a torch op: schema, implementation, fake, autograd and autocast in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["once_differentiable", "register", "without_autograd"]

_library = torch.library.Library("fused_resnet", "DEF")


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    function: type[torch.autograd.Function] | None = None,
    autocast: Sequence[int] = (),
) -> Callable[..., Any]:
    """Defines ``torch.ops.fused_resnet.<name>`` and returns it.

    ``function`` is the autograd Function that serves inputs which require gradients; it calls the op again through
    :func:`without_autograd`. An op without one raises where a gradient would be needed. ``autocast`` lists the
    positions of the arguments that autocast brings to its type: those a convolution multiplies.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.fused_resnet, name).default
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fused_resnet::{name}", fake, lib=_library)

    def autograd(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            if function is None:
                raise RuntimeError(f"{name} has no gradient; call it under torch.no_grad()")
            return function.apply(*args)
        return without_autograd(op, *args)

    _library.impl(name, autograd, "Autograd")

    for device in ("CPU", "CUDA"):

        def autocast_kernel(*args: Any, device: str = device) -> Any:
            dtype = torch.get_autocast_dtype(device.lower())
            cast = [_to(a, dtype) if i in autocast else a for i, a in enumerate(args)]
            key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
            with torch._C._ExcludeDispatchKeyGuard(key):
                return op(*cast)

        if autocast:
            _library.impl(name, autocast_kernel, f"Autocast{device}")
    return op


def without_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """Calls ``op`` below autograd, as the forward of its own autograd Function must."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Makes a second derivative raise.

    PyTorch's decorator of this name looks at the incoming gradients alone, and lets the terms that run through saved
    tensors vanish. Here every gradient taken with ``create_graph=True`` raises when it is itself differentiated.
    """

    @wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            outputs = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return outputs
        raise_later: Callable[..., tuple[Any, ...]] = torch._C._functions.DelayedError(
            "fused_resnet ops are differentiable once: their double backward is not supported", len(outputs)
        )
        return raise_later(*(o if o is None else o.detach().requires_grad_() for o in outputs))

    return wrapper


def _to(a: Any, dtype: torch.dtype) -> Any:
    return a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() and a.dtype != torch.float64 else a
