"""What a GPU backend chooses for a call: the tile of a kernel, or whose kernel it is.

A choice has a slot (``bn_act_conv.kernel``), names to choose from and a default; what :func:`tune` measured on the
device for the same type and shape comes before the default. Slots that end in ``.kernel`` choose between ours, named
first, and the vendor library's; the others are of ours alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tune
from .arguments import Conv
from .precision import tf32_is_allowed

__all__ = ["Tuned", "choose", "force", "key", "tuned_choices"]

_KERNEL = ".kernel"


class Question(NamedTuple):
    """A choice that a call made: its key in the tune file and the names there were."""

    key: str
    names: tuple[str, ...]


class Tuned(NamedTuple):
    """What was measured for one choice; a candidate that is left out took infinitely long."""

    slot: str
    key: str
    chosen: str
    ms: dict[str, float]


_forced: ContextVar[Mapping[str, str] | None] = ContextVar("fused_resnet_forced_choices", default=None)
# Slot -> what was asked, while tune looks on.
_asked: ContextVar[dict[str, Question] | None] = ContextVar("fused_resnet_asked_choices", default=None)


def choose(
    backend: str,
    slot: str,
    names: tuple[str, ...],
    default: str,
    x: Tensor,  # [N, C, H, W]
    weight: Tensor | None = None,  # [K, C / groups, R, S], of a convolution
    conv: Conv | None = None,
) -> str:
    """The name forced or tuned for ``slot``, else ``default``; an unknown name in the file counts as none."""
    asked, forced = _asked.get(), _forced.get()
    if asked is None and forced is None and not tune.has_choices():
        return default
    line = key(backend, slot, x, weight, conv)
    if asked is not None:
        asked[slot] = Question(line, names)
    name = (forced or {}).get(slot) or tune.lookup(line)
    return name if name in names else default


def key(backend: str, slot: str, x: Tensor, weight: Tensor | None = None, conv: Conv | None = None) -> str:
    """Under which a choice is kept: device, type, shape and layout, and whether float32 may be multiplied in tf32."""
    shape: tuple[object, ...] = (x.shape,)
    if weight is not None and conv is not None:  # in channels_last, always
        shape += (weight.shape, *conv)
        if x.dtype == torch.float32 and tf32_is_allowed():
            shape += ("tf32",)
    elif not x.is_contiguous(memory_format=torch.channels_last):
        shape += ("contiguous",)
    return tune.key(backend, x.device, slot, x.dtype, *shape)


def tuned_choices(
    call: Callable[[], Any],
    measure: Callable[[Mapping[str, Callable[[], Any]]], Mapping[str, float]],
    known: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Tuned]:
    """Measures every choice that ``call`` makes but those ``known`` by key, which it obeys; stores nothing.

    The tiles of our convolutions come first, then those of the passes around the vendor library's, and last whose
    convolution it is, each at its best. ``measure`` takes candidates by name and gives the milliseconds of each,
    infinity for one that must not be chosen. An op fills tensors of its own, so nothing is changed by being run many
    times. Raises RuntimeError where no candidate is left.
    """
    kernels = {slot: question for slot, question in _questions(call, {}).items() if slot.endswith(_KERNEL)}
    best: dict[str, str] = {}

    def tuned(questions: Mapping[str, Question], forced: Mapping[str, str]) -> Iterator[Tuned]:
        for slot, (key, names) in questions.items():
            if key in known:
                best[slot] = known[key]
                continue
            ms = dict(measure({name: partial(_run, {**forced, **best, slot: name}, call) for name in names}))
            best[slot] = min(names, key=ms.__getitem__)
            if ms[best[slot]] == float("inf"):
                raise RuntimeError(
                    f"{slot}: expected a candidate that runs and computes what PyTorch does, got none: {key}"
                )
            yield Tuned(slot, key, best[slot], ms)

    ours = {slot: question.names[0] for slot, question in kernels.items()}
    library = {slot: question.names[-1] for slot, question in kernels.items()}
    for forced in (ours, library):
        asked = _questions(call, forced)
        yield from tuned({slot: asked[slot] for slot in asked if slot not in kernels and slot not in best}, forced)
    yield from tuned(kernels, ours)


def _questions(call: Callable[[], Any], forced: Mapping[str, str]) -> dict[str, Question]:
    asked: dict[str, Question] = {}
    with _set(_asked, asked), suppress(Exception):  # a candidate that fails has asked first; measure will tell
        _run(forced, call)
    return asked


def _run(forced: Mapping[str, str], call: Callable[[], Any]) -> Any:
    with force(forced):
        return call()


@contextmanager
def force(choices: Mapping[str, str]) -> Iterator[None]:
    """Within this context these names are chosen, by slot, in the calling thread."""
    with _set(_forced, choices):
        yield


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
