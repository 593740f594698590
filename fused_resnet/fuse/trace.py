"""The forward of a module as a graph, by torch.fx, and what the graph relies on.

A trace sees calls of layers and functions; branches that Python has taken are no part of it. So whatever a branch may
have looked at is found in the code of the forward, and in that of the methods and functions it calls: attributes of the
module, which a plan then compares at each call, and what could not be compared, which is an objection.
"""

from __future__ import annotations

import copy
import dis
import enum
import inspect
import operator
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from ..nn.plan import Path, Reads, simple
from ..nn.recognise import is_list

__all__ = ["IN_PLACE", "Trace", "TraceError", "traces"]

# Questions to PyTorch whose answers a trace would freeze.
_STATE_OF_TORCH = {"is_grad_enabled", "is_autocast_enabled", "is_inference_mode_enabled", "get_default_dtype"}
_ENTERING = ("BEFORE_WITH", "LOAD_SPECIAL")  # what ``with`` becomes, the latter from Python 3.14 on
_READING = ("LOAD_ATTR", "LOAD_METHOD")
_KNOWN_PACKAGES = ("torch", "math", "itertools", "functools", "builtins", "typing", "numpy")
# ``x += y`` and its like, by the method's name.
IN_PLACE = {
    f"__{name}__": getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
}
ABSENT = object()
GIVEN = object()  # stands for an argument that a call gives
MAX_OPTIONAL = 2  # arguments with a default of None; each doubles the number of traces

Arguments = dict[str, Any]  # of a forward, in order


class TraceError(Exception):
    """Why a forward cannot be traced, or why its trace would not prove enough."""


class Trace(NamedTuple):
    """A graph, which arguments it is for, and what it has read."""

    graph: fx.Graph
    given: tuple[bool, ...]
    reads: tuple[Reads, ...]
    constants: tuple[tuple[str, str, Any], ...]  # module, name and value of the globals read
    inlined: tuple[Path, ...]  # modules whose forward is part of the graph


class Code(NamedTuple):
    """What functions read: names of attributes, global constants by the module they stand in, and objections."""

    attributes: frozenset[str]
    constants: frozenset[tuple[str, str]]
    objections: tuple[str, ...]


def traces(root: nn.Module, inlines: Callable[[nn.Module], bool]) -> list[Trace]:
    """A trace of the forward of ``root`` for each way to call it. Raises TraceError.

    ``inlines`` says which of the modules below it are traced too; the others are layers.
    """
    inlined = _inlined(root, inlines)
    code = _join(_code_of(_stock_class(module)) for _, module in inlined)
    if code.objections:
        raise TraceError(code.objections[0])
    found = []
    constants = tuple((*place, attrgetter(place[1])(sys.modules[place[0]])) for place in sorted(code.constants))
    modes = (False, True) if "training" in code.attributes else (root.training,)
    for mode in modes:
        with _training(root, inlined, mode):
            reads = tuple(_reads(path, module, code.attributes) for path, module in inlined)
            reads += tuple(_reads_of_layers(root, {path for path, _ in inlined}, code.attributes))
            for arguments in _calls(root):
                with _unchanged(reads, [module for _, module in inlined]):
                    graph = _graph(root, inlines, arguments)
                given = tuple(value is GIVEN for value in arguments.values())
                found.append(Trace(graph, given, reads, constants, tuple(path for path, _ in inlined)))
    return found


class _Proxy(fx.Proxy):
    """A proxy that records ``x += y`` as it stands; torch.fx's own takes it for ``x = x + y``."""


def _recorded(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", function, (proxy, other), {})


for _name, _function in IN_PLACE.items():
    setattr(_Proxy, _name, _recorded(_function))


class _Tracer(fx.Tracer):
    """Traces a call that leaves the arguments in ``defaults`` out; the others become proxies."""

    def __init__(self, inlines: Callable[[nn.Module], bool], defaults: Arguments) -> None:
        super().__init__()
        self.inlines = inlines
        self.defaults = defaults
        self.modes = _modes()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise TraceError("its forward changes how PyTorch takes gradients or casts")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.inlines(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in self.defaults}
        return root_fn, [self.root, *(proxies[n] if v is GIVEN else v for n, v in self.defaults.items())]


def _graph(root: nn.Module, inlines: Callable[[nn.Module], bool], defaults: Arguments) -> fx.Graph:
    before = _random_states()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # puts back what a forward that is cut short has set
            graph = _Tracer(inlines, defaults).trace(root)
    except TraceError:
        raise
    except Exception as error:  # whatever a forward does to a proxy that it takes for a tensor
        text = str(error).partition("\n")[0] or type(error).__name__
        raise TraceError(f"its forward cannot be traced: {text}") from error
    finally:
        for name in [name for name in vars(root) if name.startswith("_tensor_constant")]:
            delattr(root, name)
    if _random_states() != before:
        raise TraceError("its forward draws random numbers itself")
    if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        raise TraceError("its forward makes tensors itself")
    return graph


def _calls(root: nn.Module) -> Iterator[Arguments]:
    """For each way to call the forward, its arguments: GIVEN, or the default of one that is not."""
    parameters = list(inspect.signature(type(root).forward).parameters.values())[1:]
    if any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters):
        raise TraceError("its forward takes a variable number of arguments, or some by name alone")
    optional = [p.name for p in parameters if p.default is None]
    if not parameters or len(optional) > MAX_OPTIONAL:
        raise TraceError(f"its forward takes {len(parameters)} arguments, {len(optional)} of them optional")
    for chosen in range(2 ** len(optional)):
        given = {name for i, name in enumerate(optional) if chosen >> i & 1}
        given |= {p.name for p in parameters if p.default is p.empty}
        yield {p.name: GIVEN if p.name in given else p.default for p in parameters}


def _inlined(root: nn.Module, inlines: Callable[[nn.Module], bool]) -> list[tuple[Path, nn.Module]]:
    """``root`` and the modules below it that ``inlines`` chooses, lists of modules among them."""
    found: list[tuple[Path, nn.Module]] = [((), root)]
    for path, module in found:
        for name, child in module._modules.items():
            if child is not None and (inlines(child) or is_list(child)):
                found.append(((*path, name), child))
    return found


def _reads(path: Path, module: nn.Module, names: Iterable[str]) -> Reads:
    values = vars(module)
    attributes = []
    for name in sorted(names):
        if name not in values:
            shared = inspect.getattr_static(type(module), name, ABSENT)  # of the class
            if simple(shared):
                attributes.append((name, copy.deepcopy(shared)))
            continue
        if isinstance(values[name], torch.Tensor) or not (simple(values[name]) or callable(values[name])):
            raise TraceError(f"its forward reads {name}, a {type(values[name]).__name__}")
        attributes.append((name, copy.deepcopy(values[name]) if simple(values[name]) else values[name]))
    children = tuple((name, child is not None) for name, child in module._modules.items())
    return Reads(path, children, tuple(attributes))


def _reads_of_layers(root: nn.Module, inlined: set[Path], names: Iterable[str]) -> Iterator[Reads]:
    """What the code may have read of layers: their plain data by these names, but for the flag ``training``."""
    for name, module in root.named_modules():
        path = tuple(name.split(".")) if name else ()
        values = {n: v for n, v in vars(module).items() if n in names and n != "training" and simple(v)}
        if path not in inlined and values:
            children = tuple((n, child is not None) for n, child in module._modules.items())
            yield Reads(path, children, tuple((n, copy.deepcopy(v)) for n, v in sorted(values.items())))


def _join(codes: Iterable[Code]) -> Code:
    codes = list(codes)
    attributes = frozenset().union(*(code.attributes for code in codes))
    constants = frozenset().union(*(code.constants for code in codes))
    return Code(attributes, constants, tuple(text for code in codes for text in code.objections))


@cache
def _code_of(stock: Any) -> Code:
    """What the forward of a class reads, with the methods and functions that it calls."""
    attributes: set[str] = set()
    constants: set[tuple[str, str]] = set()
    objections: list[str] = []
    seen: set[types.CodeType] = set()
    waiting: list[Any] = [stock.forward]
    while waiting:
        function = waiting.pop()
        if hasattr(function, "__wrapped__"):
            objections.append(f"{function.__name__} is wrapped by a decorator")
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        place: tuple[str, Any] | None = None  # of a global that is being followed from attribute to attribute
        before: dis.Instruction | None = None
        for instruction in _instructions(function.__code__):
            name, last, before = instruction.argval, before, instruction
            followed, place = place if instruction.opname in _READING else None, None
            if instruction.opname in _ENTERING:
                objections.append("its forward enters a context")
            elif instruction.opname == "LOAD_GLOBAL" and name not in function.__globals__:
                if name in ("getattr", "hasattr"):
                    attributes.update(c for c in function.__code__.co_consts if isinstance(c, str) and c.isidentifier())
            elif instruction.opname == "LOAD_GLOBAL" or followed:
                value = getattr(followed[1], name, ABSENT) if followed else function.__globals__[name]
                dotted = f"{followed[0]}.{name}" if followed else name
                if isinstance(value, types.FunctionType) and not _is_known(value):
                    waiting.append(value)
                elif isinstance(value, bool | int | float | str | None):
                    constants.add((function.__module__, dotted))
                elif isinstance(value, types.ModuleType | type) and not _is_known(value):
                    place = dotted, value
                elif not (callable(value) or isinstance(value, types.ModuleType | enum.Enum)):
                    objections.append(f"its forward reads the global {dotted}")
            elif instruction.opname in _READING:
                if name == "training" and not (last is not None and _loads_self(last)):
                    objections.append("its forward reads whether a layer is in training")
                attributes.add(name)
                member = inspect.getattr_static(stock, name, None)
                member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if name in _STATE_OF_TORCH:
                    objections.append(f"its forward asks PyTorch {name}")
                elif isinstance(member, types.FunctionType) and not _is_known(member):
                    waiting.append(member)
    return Code(frozenset(attributes), frozenset(constants), tuple(objections))


def _stock_class(module: nn.Module) -> Any:
    return getattr(type(module), "stock_class", type(module))


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _loads_self(instruction: dis.Instruction) -> bool:
    names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
    return instruction.opname.startswith("LOAD_FAST") and names[-1] == "self"


def _is_known(value: types.FunctionType | types.ModuleType | type) -> bool:
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return (name or "").partition(".")[0] in _KNOWN_PACKAGES


def _random_states() -> tuple[Any, ...]:
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def _modes() -> tuple[Any, ...]:
    """What a context or a decorator, as that of activation checkpointing, may have set."""
    devices = ("cpu", "cuda")
    casts = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks, *casts


@contextmanager
def _unchanged(reads: tuple[Reads, ...], modules: list[nn.Module]) -> Iterator[None]:
    """Raises TraceError where attributes of the modules are others at its end, after it has put them back."""
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        changed = False
        for module, values, known in zip(modules, before, reads[: len(modules)], strict=True):
            for name, copied in known.attributes:  # what is data may have changed in place
                if name in values and simple(copied) and not (simple(values[name]) and values[name] == copied):
                    values[name] = copied
            now = vars(module)
            if now.keys() != values.keys() or any(now[name] is not value for name, value in values.items()):
                changed = True
                now.clear()
                now.update(values)
    if changed:
        raise TraceError("its forward changes attributes")


@contextmanager
def _training(root: nn.Module, inlined: list[tuple[Path, nn.Module]], mode: bool) -> Iterator[None]:
    """With the flag ``training`` of the inlined modules, theirs alone, at ``mode``."""
    before = [module.training for _, module in inlined]
    try:
        for _, module in inlined:
            module.training = mode
        yield
    finally:
        for (_, module), flag in zip(inlined, before, strict=True):
            module.training = flag
