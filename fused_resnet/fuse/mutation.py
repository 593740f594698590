"""Whether a call in a traced forward may change a tensor that something else is still to read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .trace import IN_PLACE

__all__ = ["may_change"]

# Their functions and layers say so when they write: by a name that ends in ``_``, ``inplace``, or ``out``.
_SAY_SO = ("torch", "torchvision", "math", "builtins", "operator", "_operator")

Origin = Callable[[fx.Node], fx.Node]  # of a value that a layer passes on


def may_change(node: fx.Node, read: fx.Node, module: Callable[[fx.Node], nn.Module], origin: Origin) -> bool:
    """Whether the call ``node`` may change the value ``read``.

    ``module`` gives the layer that a node calls. A call in place counts whatever it writes to; layers and functions
    that are not PyTorch's count where they are given the value, or what may be a view of the same memory.
    """
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_module":
        called: Any = type(module(node))
        says_so = bool(getattr(module(node), "inplace", False))
    elif node.op == "call_function":
        called = node.target
        is_named_so = getattr(called, "__name__", "").endswith("_") or called in IN_PLACE.values()
        says_so = is_named_so or _asks_in_place(node)
    else:
        return False
    package = (getattr(called, "__module__", None) or "torch").partition(".")[0]  # PyTorch's in C have none
    if says_so or package in _SAY_SO:
        return says_so
    source = _source(read, origin)
    return any(_source(argument, origin) is source for argument in node.all_input_nodes)


def _asks_in_place(node: fx.Node) -> bool:
    if "out" in node.kwargs or node.kwargs.get("inplace"):
        return True
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C
        return False
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place < len(node.args) and bool(node.args[place])


def _source(node: fx.Node, origin: Origin) -> fx.Node:
    """What ``node`` may be a view of: back through functions and methods to what they are called on."""
    node = origin(node)
    while node.op in ("call_function", "call_method") and node.all_input_nodes:
        node = origin(node.all_input_nodes[0])
    return node
