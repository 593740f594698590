"""What a step moves, multiplies and keeps, counted once, part by part.

Bytes: each operator's tensors, read or written once. FLOP: those of stock PyTorch's convolutions and matrix products,
two for a multiply-add; a fused model computes the same. Kept: what autograd saves for backward, of the first forward
where gradients are accumulated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Counter"]

# Views and questions move nothing.
_FREE = (
    "view",
    "expand",
    "detach",
    "alias",
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "as_strided",
    "select",
)


class Counter(TorchDispatchMode):
    """Within its ``with`` block, counts for the part that :attr:`part` names at the time."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        self.bytes: dict[str, int] = defaultdict(int)
        self.flop: dict[str, int] = defaultdict(int)
        self.kept: dict[str, int] = defaultdict(int)
        self._seen: set[int] = set()  # storages by address: what is excluded, and what is counted already
        self._keeping = True
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def exclude(self, values: Iterable[Any]) -> None:
        """The tensors among ``values`` are not kept for backward: they are there anyway."""
        self._seen |= {value.untyped_storage().data_ptr() for value in values if isinstance(value, Tensor)}

    def begin(self, phase: str) -> None:
        """``phase`` begins: what is kept is settled at the first backward."""
        self._keeping = self._keeping and phase == "forward"

    def enter(self, part: str) -> None:
        """``part`` runs from now on."""
        self.part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in _FREE:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes[self.part] += sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
        if func.overloadpacket in flop_registry:
            self.flop[self.part] += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    def __enter__(self) -> Counter:
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.__exit__(*exception)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if self._keeping and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.kept[self.part] += storage.nbytes()
        return tensor
