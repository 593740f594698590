"""From the graph of a forward to the plan of a fused one.

What fuses is proved on the graph. A value is handed on raw only where one call alone reads it, so that nobody can see
that it was never computed::

    conv -> norm [-> act] [-> max pool]        one step; raw where another convolution or an add reads it
    conv -> norm, + anything [-> act]          one step, the shortcut's norm within it if that comes raw too
    norm [-> act] -> conv                      the norm runs while the convolution loads

Everything else is called as it is, in the order of the graph.
"""

from __future__ import annotations

import operator
import pickle
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_aggregate

from ..backends.arguments import Activation
from ..nn.plan import ROLES, AddStep, CallStep, ConvStep, NormStep, Path, Plan, Ref, Step, at
from ..nn.recognise import conv_norm_reason, is_norm, norm_activation
from .mutation import may_change
from .trace import Trace, TraceError

__all__ = ["plan_of"]

ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
FUNCTIONS = {  # functional activations, where they are called with a tensor and maybe ``inplace``
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.silu: "silu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
}


@dataclass
class Match:
    """Nodes that become one step: it runs at ``place`` and gives the value of ``end``."""

    kind: str  # "conv", "norm" or "add"
    place: fx.Node
    end: fx.Node
    x: fx.Node
    conv: fx.Node | None = None
    bn: fx.Node | None = None
    act: fx.Node | None = None
    pool: fx.Node | None = None
    residual: fx.Node | None = None
    in_place: bool = False  # the add

    @property
    def nodes(self) -> list[fx.Node]:
        nodes = (self.conv, self.bn, self.act, self.pool, self.place)
        return [node for node in nodes if node is not None]


def plan_of(root: nn.Module, trace: Trace, drops_in_training: bool) -> Plan | None:
    """The plan for a trace; None where it has nothing to fuse. Raises TraceError.

    With ``drops_in_training`` a drop path and its like are layers, else they are taken to pass their input on, which
    the plan then checks at each call.
    """
    return _Planner(root, trace, drops_in_training).plan()


class _Planner:
    def __init__(self, root: nn.Module, trace: Trace, drops_in_training: bool) -> None:
        self.root, self.trace = root, trace
        self.nodes = list(trace.graph.nodes)
        self.paths = {n: tuple(str(n.target).split(".")) for n in self.nodes if n.op in ("call_module", "get_attr")}
        self.calls = Counter(self.paths[n] for n in self.nodes if n.op == "call_module")
        self.aliases: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            if node.op == "call_module" and self._passes_on(node, drops_in_training):
                self.aliases[node] = self.origin(_nodes(node.args)[0])
        self.readers: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.nodes}  # one entry a use
        for node in self.nodes:
            if node not in self.aliases:
                for argument in _nodes((node.args, node.kwargs)):
                    self.readers[self.origin(argument)].append(node)
        self.matches: dict[fx.Node, Match] = {}  # by end

    def plan(self) -> Plan | None:
        for node in self.nodes:
            if self.plays("conv", node):
                self._match_conv(node)
        for node in self.nodes:
            if self.plays("norm", node) and not self._is_matched(node):
                self._match_norm(node)
        for node in self.nodes:
            if self._is_add(node):
                self._match_add(node)
        self._drop_lone_convs()
        if not any(m.bn is not None for m in self.matches.values()):
            return None
        return self._assemble()

    def origin(self, node: fx.Node) -> fx.Node:
        return self.aliases.get(node, node)

    def module(self, node: fx.Node) -> nn.Module:
        module: nn.Module = at(self.root, self.paths[node])
        return module

    def plays(self, role: str, node: fx.Node | None) -> bool:
        """Whether ``node`` calls a module that can play ``role``, on one tensor."""
        if node is None or node.op != "call_module" or node in self.aliases:
            return False
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            return False
        if "norm" in role and self.calls[self.paths[node]] > 1:
            return False  # its running statistics would move in another order
        return ROLES[role](self.module(node)) is None

    def only_reader(self, node: fx.Node) -> fx.Node | None:
        readers = self.readers[node]
        return readers[0] if len(readers) == 1 and readers[0].op != "output" else None

    def _passes_on(self, node: fx.Node, drops_in_training: bool) -> bool:
        module = self.module(node)
        if len(node.args) != 1 or node.kwargs or isinstance(module, nn.Sequential):
            return False
        flag, module.training = module.training, drops_in_training
        try:
            return ROLES["nothing"](module) is None
        finally:
            module.training = flag

    def _is_act(self, node: fx.Node | None) -> bool:
        if node is None or node.op == "call_module":
            return self.plays("act", node)
        inplace = {**node.kwargs, **({"inplace": node.args[1]} if len(node.args) == 2 else {})}
        return node.target in FUNCTIONS and set(inplace) <= {"inplace"} and len(node.args) <= 2

    def _is_add(self, node: fx.Node) -> bool:
        if node.op not in ("call_function", "call_method") or node.target not in ADDS or node.kwargs:
            return False
        return len(node.args) == 2 and len(set(_nodes(node.args))) == 2

    def _is_matched(self, node: fx.Node) -> bool:
        return any(node in match.nodes for match in self.matches.values())

    def _input(self, node: fx.Node) -> fx.Node:
        return self.origin(_nodes(node.args)[0])

    def _act_after(self, node: fx.Node) -> fx.Node | None:
        reader = self.only_reader(node)
        return reader if self._is_act(reader) else None

    def _match_conv(self, node: fx.Node) -> None:
        match = Match("conv", node, node, self._input(node), conv=node)
        reader = self.only_reader(node)
        if self.plays("norm", reader):
            match.bn = match.end = reader  # type: ignore[assignment]
            if self.plays("norm, act", reader) and (act := self._act_after(match.end)) is not None:
                match.act = match.end = act
            if self.plays("pool", reader := self.only_reader(match.end)):
                match.pool = match.end = reader  # type: ignore[assignment]
        self.matches[match.end] = match

    def _match_norm(self, node: fx.Node) -> None:
        match = Match("norm", node, node, self._input(node), bn=node)
        if self.plays("norm, act", node) and (act := self._act_after(node)) is not None:
            match.act = match.end = act
        reader = self.only_reader(match.end)
        # The convolution will read what the norm was to read, and must not find it changed.
        if reader is not None and self.plays("conv", reader) and not self._mutates_between(node, reader):
            self.matches[match.end] = match

    def _match_add(self, node: fx.Node) -> None:
        """An add of which one addend at least comes raw; the first addend of an in-place one, as the other is kept."""
        first, second = (self.origin(a) for a in _nodes(node.args))
        addends = [(first, second), (second, first)]
        if in_place := node.target in (operator.iadd, "add_"):
            addends.pop()
        for end, residual in addends:
            match = self.matches.get(end)
            if match is None or match.bn is None or not self._is_raw(match) or len(self.readers[end]) != 1:
                continue
            act = self._act_after(node)
            parts: Any = {"place": node, "end": act or node, "act": act, "residual": residual, "in_place": in_place}
            if self._mutates_between(match.place, node):  # the convolution, run here, would read its input too late
                add = Match("add", x=end, **parts)
            else:
                add = replace(match, **parts)
                del self.matches[end]
            self.matches[add.end] = add
            return

    def _is_raw(self, match: Match) -> bool:
        """Whether a match ends with a batch norm, whose value an add can compute."""
        if match.kind != "conv" or match.act is not None or match.pool is not None or match.residual is not None:
            return False
        return match.bn is not None and norm_activation(self.module(match.bn)) is None

    def _mutates_between(self, start: fx.Node, end: fx.Node) -> bool:
        """Whether a call in between may change the tensor that ``start`` reads."""
        read = self._input(start)
        between = self.nodes[self.nodes.index(start) + 1 : self.nodes.index(end)]
        others = [node for node in between if not self._is_matched(node) and node not in self.aliases]
        return any(may_change(node, read, self.module, self.origin) for node in others)

    def _drop_lone_convs(self) -> None:
        """A convolution without a norm is worth a step only where its input comes raw."""
        for end, match in list(self.matches.items()):
            if match.conv is not None and match.bn is None and not self._takes_raw(match.x):
                del self.matches[end]

    def _takes_raw(self, node: fx.Node) -> bool:
        """Whether the value of ``node`` is handed on raw: a step gives it, and one step alone reads it."""
        match, reader = self.matches.get(node), self.only_reader(node)
        if match is None or match.bn is None or match.residual is not None or match.pool is not None or reader is None:
            return False
        for other in self.matches.values():
            if reader in other.nodes:
                return other.x is node if other.conv is reader else node in (other.x, other.residual)
        return False

    def _assemble(self) -> Plan:
        index = {node: i for i, node in enumerate(self.nodes)}
        by_place = {match.place: match for match in self.matches.values()}
        inner = {node for match in self.matches.values() for node in match.nodes}
        steps: list[Step] = []
        for node in self.nodes:
            if node in by_place:
                steps.append(self._fused_step(by_place[node], index))
            elif node.op not in ("placeholder", "output") and node not in inner and node not in self.aliases:
                steps.append(self._call_step(node, index))
        output = self._argument(self.nodes[-1].args[0], index)
        plan = Plan(
            given=self.trace.given,
            channels_last=self._shared_inputs(index),
            size=len(self.nodes),
            steps=_freeing(steps, output),
            output=output,
            layers=self._layers(),
            reads=self.trace.reads,
            constants=self.trace.constants,
            fused=", ".join(self._text(match) for match in by_place.values()),
            left="; ".join(self._left()),
        )
        try:
            pickle.dumps(plan)
        except Exception as error:  # pickle raises what the object's own code raises
            raise TraceError(f"its forward calls what cannot be pickled: {error}") from error
        return plan

    def _fused_step(self, match: Match, index: dict[fx.Node, int]) -> Step:
        out, x = index[match.end], index[match.x]
        act = self._activation(match.act)
        residual = None if match.residual is None else index[match.residual]
        if match.kind == "add":
            assert residual is not None
            return AddStep(out, (), x, residual, act, match.in_place)
        bn = None if match.bn is None else self.paths[match.bn]
        if match.conv is None:
            assert bn is not None
            return NormStep(out, (), x, bn, act)
        pool = None if match.pool is None else self.paths[match.pool]
        raw = self._takes_raw(match.end)
        path = self.paths[match.conv]
        return ConvStep(out, (), x, path, bn, act, residual, match.in_place, pool, keep_deferred=raw)

    def _activation(self, node: fx.Node | None) -> Path | Activation | None:
        if node is None:
            return None
        return self.paths[node] if node.op == "call_module" else Activation(FUNCTIONS[node.target])

    def _call_step(self, node: fx.Node, index: dict[fx.Node, int]) -> CallStep:
        kwargs = tuple((name, self._argument(a, index)) for name, a in node.kwargs.items())
        args = tuple(self._argument(a, index) for a in node.args)
        target = self.paths.get(node, node.target)
        if target == "view" and self._is_only_viewed(self._input(node)):
            target = "reshape"  # which a value that has come to channels_last may need
        return CallStep(index[node], (), node.op, target, args, kwargs)

    def _is_only_viewed(self, node: fx.Node) -> bool:
        """Whether nothing but one view reads ``node``, and its shape: nobody sees whether the view is a copy."""
        readers = [r for r in self.readers[node] if r.target not in ("size", "dim", getattr)]
        return len(readers) == 1 and not any(isinstance(argument, torch.dtype) for argument in readers[0].args)

    def _argument(self, argument: Any, index: dict[fx.Node, int]) -> Any:
        def ref(node: fx.Node) -> Any:
            return Ref(index[self.origin(node)])

        return fx.map_arg(argument, ref)

    def _shared_inputs(self, index: dict[fx.Node, int]) -> tuple[int, ...]:
        """Arguments that several steps read, all of them fused: to bring them to channels_last once saves the rest."""
        fused = {node for match in self.matches.values() for node in match.nodes}
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        shared = [n for n in inputs if len(self.readers[n]) > 1 and fused.issuperset(self.readers[n])]
        return tuple(index[node] for node in shared)

    def _layers(self) -> tuple[tuple[Path, str], ...]:
        layers = {}
        for match in self.matches.values():
            norm = "norm" if match.act is None and match.residual is None else "norm, act"
            for node, role in ((match.conv, "conv"), (match.bn, norm), (match.act, "act"), (match.pool, "pool")):
                if node is not None and node.op == "call_module":
                    layers[self.paths[node]] = role
        layers |= {self.paths[node]: "nothing" for node in self.aliases}
        layers |= dict.fromkeys(self.trace.inlined, "inlined")
        return tuple(layers.items())

    def _text(self, match: Match) -> str:
        names = [".".join(self.paths[n]) for n in (match.conv, match.bn) if n is not None]
        names += ["add"] if match.residual is not None else []
        for node in (match.act, match.pool):
            if node is not None:
                names.append(".".join(self.paths[node]) if node in self.paths else FUNCTIONS[node.target])
        return " ".join(names)

    def _left(self) -> list[str]:
        """Why convolutions with a norm behind them, and adds, are not fused."""
        reasons = []
        for node in self.nodes:
            if self._is_add(node) and not self._is_matched(node):
                reasons.append(f"add after {' and '.join(self._name(a) for a in node.args)}")
            if node.op != "call_module" or not isinstance(self.module(node), nn.Conv2d) or self._is_matched(node):
                continue
            for reader in self.readers[node]:
                if reader.op == "call_module" and is_norm(self.module(reader)):
                    names = (self._name(node), self.module(node), self._name(reader), self.module(reader))
                    reason = conv_norm_reason(*names)
                    reasons.append(reason or f"{names[0]} is read elsewhere too, or {names[2]} called twice")
        return reasons

    def _name(self, node: Any) -> str:
        return ".".join(self.paths[node]) if node in self.paths else str(node.name)


def _nodes(arguments: Any) -> list[fx.Node]:
    """The nodes among arguments, one entry a use."""
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def _freeing(steps: list[Step], output: Any) -> tuple[Step, ...]:
    """The steps, each of which lets go of the values that it reads last."""
    alive = set(_refs(output))
    freed = []
    for step in reversed(steps):
        read = {step.out, *_reads(step)}
        freed.append(replace(step, free=tuple(sorted(read - alive - {step.out}))))
        alive |= read
    return tuple(reversed(freed))


def _reads(step: Step) -> list[int]:
    if isinstance(step, CallStep):
        return _refs([*step.args, *(a for _, a in step.kwargs)])
    return [i for i in (getattr(step, "x", None), getattr(step, "residual", None)) if i is not None]


def _refs(argument: Any) -> list[int]:
    found: list[Ref] = []
    map_aggregate(argument, lambda a: found.append(a) if isinstance(a, Ref) else None)
    return [ref.index for ref in found]
