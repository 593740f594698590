"""Which tile, and which kernel, a launch uses: what was tuned for its device, type and shape, else the best guess.

:func:`tune` measures the short lists of :mod:`.configs` by running a whole op on each candidate. Ops are functional:
each run fills tensors of its own, so nothing is changed by being run many times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

from .. import tune as tune_file
from ..arguments import Conv
from . import configs

__all__ = ["CONV_KERNELS", "SLOTS", "choose", "pointwise", "product", "tune"]

T = TypeVar("T")

CONV_KERNELS = ("implicit_product", "library")

# Op -> the choices that it makes, those of tiles before those of kernels.
SLOTS = {
    "bn_add_act": ("bn_add_act",),
    "bn_add_act_backward": ("bn_add_act_backward",),
    "bn_act_max_pool": ("bn_act_max_pool",),
    "bn_act_max_pool_backward": ("bn_act_max_pool_backward",),
    "bn_act_conv": ("bn_act_conv", "bn_act_conv.kernel"),
    "bn_act_conv_backward": ("conv_dgrad", "conv_wgrad", "bn_act_conv_backward.kernel"),
    "conv_bn_add_act": ("conv_bn_add_act", "conv_bn_add_act.kernel"),
}

_forced: ContextVar[Mapping[str, str] | None] = ContextVar("fused_resnet_triton_forced", default=None)
# Slot -> key and names of the choices that were made, while tune looks on.
_asked: ContextVar[dict[str, tuple[str, tuple[str, ...]]] | None] = ContextVar(
    "fused_resnet_triton_asked", default=None
)


def choose(slot: str, choices: Mapping[str, T], default: str, x: Tensor, *shape: object) -> T:
    """The choice forced or tuned for ``slot``, else ``default``; an unknown name counts as none."""
    line = tune_file.key("triton", x.device, slot, x.dtype, x.shape, *shape)
    asked = _asked.get()
    if asked is not None:
        asked[slot] = line, tuple(choices)
    name = (_forced.get() or {}).get(slot) or tune_file.lookup(line)
    return choices[default if name is None or name not in choices else name]


def pointwise(op: str, x: Tensor) -> tuple[int, int]:
    """Elements and warps of a pointwise kernel's tile."""
    choices = {"x".join(map(str, c)): c for c in configs.POINTWISE}
    return choose(op, choices, next(iter(choices)), x)


def product(op: str, x: Tensor, weight: Tensor, conv: Conv) -> configs.Config:
    """The tile of a convolution's matrix product."""
    choices = {"x".join(map(str, c.tile.values())): c for c in configs.product_configs(x.element_size())}
    return choose(op, choices, next(iter(choices)), x, weight.shape, *conv)


def tune(op: str, args: tuple[Any, ...], time_ms: Callable[[Callable[[], Any]], float] | None = None) -> dict[str, str]:
    """Measures the choices of ``op``, a function of this backend, for ``args``; keeps and returns the best by key.

    ``time_ms`` measures a call, ``triton.testing.do_bench`` unless told. Raises ValueError for an unknown op.
    """
    from .. import triton as backend

    if op not in SLOTS:
        raise ValueError(f"op: expected one of {', '.join(SLOTS)}, got {op!r}")
    if time_ms is None:
        from triton.testing import do_bench

        time_ms = do_bench
    function, best, found = getattr(backend, op), dict[str, str](), dict[str, str]()

    def run(choices: Mapping[str, str]) -> dict[str, tuple[str, tuple[str, ...]]]:
        forced, asked = _forced.set(choices), _asked.set({})
        try:
            function(*args)
            return _asked.get() or {}
        finally:
            _forced.reset(forced)
            _asked.reset(asked)

    def seconds(choices: Mapping[str, str]) -> float:
        run(choices)  # compiles
        forced = _forced.set(choices)
        try:
            assert time_ms is not None
            return time_ms(lambda: function(*args))
        finally:
            _forced.reset(forced)

    kernel = {slot: CONV_KERNELS[0] for slot in SLOTS[op] if slot.endswith(".kernel")}  # tiles are those of ours
    for slot in SLOTS[op]:
        asked = run({**kernel, **best}).get(slot)
        if asked is None:  # an argument that asks for no such gradient
            continue
        line, names = asked
        best[slot] = found[line] = min(names, key=lambda name: seconds({**kernel, **best, slot: name}))
    tune_file.store(found)
    return found
