"""What PyTorch may do while the launches of an op are captured into a graph, where no stream of a device checks it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NothingComputes"]

# It makes room, or another view of it. Anything else would compute at once, on values that are not there yet, or read
# one back, which makes the host wait.
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty")
_VIEWS = ("as_strided", "detach", "permute", "view", "alias", "slice", "unbind", "select", "_unsafe_view")


class NothingComputes(TorchDispatchMode):
    """Within its ``with`` block PyTorch may allocate and view; ``memory`` keeps what it allocated, as a graph must."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in (*_ALLOCATIONS, *_VIEWS):
            raise AssertionError(f"expected nothing but allocations and launches of ours in a capture, got {name}")
        result = func(*args, **kwargs or {})
        if name in _ALLOCATIONS:
            self.memory.append(result)
        return result
