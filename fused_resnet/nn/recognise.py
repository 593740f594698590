"""Which modules may be replaced by an op: each function says why not, or None where nothing stands against it.

A module is replaced only if calling it would do what its class's forward does and nothing else. So its type must be
exactly the one expected (a subclass, a parametrised or a synchronised one computes something else), and there must be
no hook on it. The same answers decide what ``fuse`` rewrites and, at each forward, whether the fused path runs; the
functions are traceable, so a compiled model guards on them.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _module

from ..backends.arguments import Activation

__all__ = [
    "activation_of",
    "activation_reason",
    "batch_norm_reason",
    "call_reason",
    "conv_bn_reason",
    "conv_norm_reason",
    "conv_reason",
    "drop_probability",
    "global_hook_reason",
    "is_list",
    "is_norm",
    "max_pool_reason",
    "norm_activation",
    "norm_reason",
    "nothing_reason",
    "plain_norm_reason",
]

IDENTITY = Activation("identity")

_ACTIVATIONS = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
}


# Batch norms with an activation of their own, ``act``, behind a ``drop``: name of the class by where it stands.
_NORM_ACTS = {("timm.layers.norm_act", name) for name in ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d")}

# Layers that pass their input on in evaluation, or where the attribute, their probability, is zero.
_DROPS = {
    ("torch.nn.modules.dropout", "Dropout"): "p",
    ("torch.nn.modules.dropout", "Dropout2d"): "p",
    ("timm.layers.drop", "DropPath"): "drop_prob",
    ("timm.layers.drop", "DropBlock2d"): "drop_prob",
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): "p",
}


def call_reason(module: nn.Module) -> str | None:
    """Calling ``module`` must run its class's forward and nothing else."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if "forward" in module.__dict__:
        return "has a forward of its own on the instance"
    return None


def global_hook_reason() -> str | None:
    """There must be no hook that PyTorch runs around every module."""
    return "hooks are registered for all modules" if _module._has_any_global_hook() else None


def conv_reason(conv: nn.Module) -> str | None:
    """``conv`` must be a plain Conv2d padded with zeros."""
    if type(conv) is not nn.Conv2d:
        return f"is {_name(conv)}, not Conv2d"
    if conv.padding_mode != "zeros":
        return f"pads with {conv.padding_mode!r}, not zeros"
    if isinstance(conv.padding, str):
        return f"has padding {conv.padding!r}, not numbers"
    return call_reason(conv)


def batch_norm_reason(bn: nn.Module) -> str | None:
    """``bn`` must be a plain BatchNorm2d, a SyncBatchNorm, or torchvision's FrozenBatchNorm2d."""
    if type(bn) is not nn.BatchNorm2d and type(bn) is not nn.SyncBatchNorm and not _is_frozen_batch_norm(type(bn)):
        return f"is {_name(bn)}, not BatchNorm2d"
    return call_reason(bn)


def norm_reason(norm: nn.Module) -> str | None:
    """``norm`` must be a plain batch norm, or timm's with an activation of its own that ops know."""
    if _place(norm) not in _NORM_ACTS:
        return batch_norm_reason(norm)
    for name, reason in (("drop", nothing_reason), ("act", activation_reason)):
        part = getattr(norm, name, None)  # timm's SyncBatchNormAct may have none
        if part is not None and (text := reason(part)) is not None:
            return f"has {name} that {text}"
    return call_reason(norm)


def plain_norm_reason(norm: nn.Module) -> str | None:
    """As :func:`norm_reason`, and ``norm`` must not have an activation."""
    reason = norm_reason(norm)
    if reason is None and norm_activation(norm) is not None:
        return "has an activation of its own"
    return reason


def norm_activation(norm: nn.Module) -> nn.Module | None:
    """What ``norm``, which must have no :func:`norm_reason`, itself ends with; None where it is the identity."""
    act: nn.Module | None = getattr(norm, "act", None) if _place(norm) in _NORM_ACTS else None
    return None if act is None or type(act) is nn.Identity else act


def nothing_reason(module: nn.Module) -> str | None:
    """``module`` must pass its input on as it is: an identity, or a dropout of any kind that drops nothing now."""
    if type(module) is not nn.Identity:
        probability = drop_probability(module)
        if probability is None:
            return f"is {_name(module)}, not Identity"
        if module.training and probability:
            return f"is {_name(module)}, which drops in training"
    return call_reason(module)


def drop_probability(module: nn.Module) -> float | None:
    """With which ``module``, a dropout of any kind, drops in training; None for any other module."""
    name = _DROPS.get(_place(module))
    probability: float | None = None if name is None else getattr(module, name)
    return probability


def conv_bn_reason(conv_name: str, conv: nn.Module, bn_name: str, bn: nn.Module) -> str | None:
    """``conv`` and the ``bn`` after it must both be plain; the answer names the one that is not."""
    if (reason := conv_reason(conv)) is not None:
        return f"{conv_name} {reason}"
    if (reason := batch_norm_reason(bn)) is not None:
        return f"{bn_name} {reason}"
    return None


def conv_norm_reason(conv_name: str, conv: nn.Module, norm_name: str, norm: nn.Module) -> str | None:
    """As :func:`conv_bn_reason`, where the norm may have an activation of its own: :func:`norm_reason`."""
    if (reason := conv_reason(conv)) is not None:
        return f"{conv_name} {reason}"
    if (reason := norm_reason(norm)) is not None:
        return f"{norm_name} {reason}"
    return None


def is_list(module: nn.Module) -> bool:
    """Whether ``module`` only holds others and is never called."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict) and type(module).forward is nn.Module.forward


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation of any kind, by its class's name; what holds a convolution is more."""
    if "Norm" not in _name(module) or isinstance(module, nn.Sequential):
        return False
    return not any(isinstance(child, nn.Conv2d) for child in module._modules.values())


def activation_reason(module: nn.Module) -> str | None:
    """``module`` must be one of the activations that ops know."""
    if type(module) not in _ACTIVATIONS:
        return f"is {_name(module)}, which is no known activation"
    if type(module) is nn.GELU and module.approximate != "none":
        return f"is GELU with approximate={module.approximate!r}, not 'none'"
    return call_reason(module)


def activation_of(module: nn.Module | Activation | None) -> Activation:
    """The activation that ``module`` computes, which must have no :func:`activation_reason`; identity for None."""
    if module is None:
        return IDENTITY
    if isinstance(module, Activation):
        return module
    if isinstance(module, nn.LeakyReLU):
        return Activation("leaky_relu", module.negative_slope)
    return Activation(_ACTIVATIONS[type(module)])


def max_pool_reason(pool: nn.Module) -> str | None:
    """``pool`` must be a plain MaxPool2d, undilated, whose window has at most 256 positions."""
    if type(pool) is not nn.MaxPool2d:
        return f"is {_name(pool)}, not MaxPool2d"
    if pool.ceil_mode or pool.return_indices or pool.dilation not in (1, (1, 1)):
        return "has ceil_mode, return_indices or a dilation"
    height, width = pool.kernel_size if isinstance(pool.kernel_size, tuple) else (pool.kernel_size, pool.kernel_size)
    if height * width > 256:
        return "has a window of more than 256 positions"
    return call_reason(pool)


def _is_frozen_batch_norm(kind: type) -> bool:
    return kind.__name__ == "FrozenBatchNorm2d" and kind.__module__ == "torchvision.ops.misc"


def _place(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__name__


def _name(module: nn.Module) -> str:
    return type(module).__name__
