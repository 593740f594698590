"""What a step computes: the user's own forward, or the model's output of a batch of images, and a loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

__all__ = ["Forward", "Loss", "forward_of", "losses", "noted_call"]

Forward = Callable[[nn.Module], "Tensor | Iterator[Tensor]"]
Loss = Callable[[Any, Any], Tensor]


def forward_of(inputs: Tensor, targets: Any, loss: Loss | None) -> Forward:
    """The forward that computes ``loss`` of the model's output for ``inputs``, and of ``targets``.

    Where ``targets`` is None, it is a class at random for each image, or for each pixel where the model segments.
    """
    loss = loss or _cross_entropy
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)

    def forward(model: nn.Module) -> Tensor:
        nonlocal targets
        output = model(inputs)
        if targets is None:
            logits = _logits(output)
            targets = torch.randint(logits.shape[1], (logits.shape[0], *logits.shape[2:]), device=logits.device)
        return loss(output, targets)

    return forward


def losses(forward: Forward, model: nn.Module, begin: Callable[[], object]) -> Iterator[Tensor]:
    """The losses of one step, each to be propagated backward before the next; ``begin`` is told when one's turn comes.

    Raises TypeError for what is neither a tensor nor an iterator, ValueError for a loss that is no scalar, or that
    nothing can be propagated from.
    """
    begin()
    found = forward(model)
    if not isinstance(found, Iterator):
        yield _checked(found)
        return
    for loss in found:
        yield _checked(loss)
        begin()


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"profile: expected a loss, a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"profile: expected a loss, a scalar tensor, got one of shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("profile: expected a loss that requires grad, got one that depends on no parameter")
    return loss


@contextmanager
def noted_call(model: nn.Module, names: Sequence[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """Notes what ``model`` is called with in the meantime, for the report.

    ``input``: the shape of its one tensor, or the text of several shapes; ``dtype`` of the first of floating point;
    ``autocast``: the type under which the blocks of ``names`` run, absent without.
    """
    notes: dict[str, Any] = {}

    def note_call(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        counts = Counter(str(list(tensor.shape)) for tensor in tensors)
        several = ", ".join(shape if count == 1 else f"{count} x {shape}" for shape, count in counts.items())
        notes["input"] = list(tensors[0].shape) if len(tensors) == 1 else several
        notes["dtype"] = next((_name(tensor.dtype) for tensor in tensors if tensor.is_floating_point()), "")

    def note_autocast(*_: object) -> None:
        if torch.is_autocast_enabled(device.type):
            notes["autocast"] = _name(torch.get_autocast_dtype(device.type))

    handles = [
        model.register_forward_pre_hook(note_call, with_kwargs=True),
        *(model.get_submodule(name).register_forward_pre_hook(note_autocast) for name in names),
    ]
    try:
        yield notes
    finally:
        for handle in handles:
            handle.remove()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cross_entropy(output: Any, targets: Any) -> Tensor:
    return cross_entropy(_logits(output), targets)


def _logits(output: Any) -> Tensor:
    found: Any = output["out"] if isinstance(output, dict) and "out" in output else output
    if not isinstance(found, Tensor) or found.dim() < 2:
        raise TypeError(
            "profile: expected a model that returns logits [N, classes, ...], or targets and a loss, or a forward, "
            f"got {type(output).__name__}"
        )
    return found
