"""Do the variants compute the same? Each one's answer against that of eager stock PyTorch, before anything is timed.

The limit is the working type's own (:class:`.settings.DType`), or ``STOCK_FACTOR`` times the error of the best other
stock variant where that is larger: a deep network with random weights amplifies rounding. It tells a wrong variant from
a right one, no more; how exact the ops are is the tests' matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from .child import BenchError
from .settings import DType
from .variants import VARIANTS

if TYPE_CHECKING:
    from torch import Tensor

    from .trial import Answer

__all__ = ["STOCK_FACTOR", "errors", "limits", "refuse_wrong", "relative_error"]

STOCK_FACTOR = 4.0

Errors = dict[str, float]  # relative L2 error of "logits", "loss" and "gradients"


def errors(answer: Answer, reference: Answer) -> Errors:
    """Relative L2 errors of an answer, the gradients as one vector; NaN or infinity where it is not finite."""
    found: Mapping[str, Any] = answer
    expected: Mapping[str, Any] = reference
    return {kind: relative_error(_parts(found[kind]), _parts(expected[kind])) for kind in expected}


def limits(by_variant: Mapping[str, Errors], dtype: DType) -> Errors:
    """The largest error allowed of each kind, from those of all variants."""
    stock = [found for variant, found in by_variant.items() if VARIANTS[variant].is_stock]

    def limit(kind: str) -> float:
        best_of_stock = min((found[kind] for found in stock if isfinite(found[kind])), default=0.0)
        return max(dtype.gradients if kind == "gradients" else dtype.outputs, STOCK_FACTOR * best_of_stock)

    return {kind: limit(kind) for found in by_variant.values() for kind in found}


def refuse_wrong(model: str, by_variant: Mapping[str, Errors], allowed: Errors) -> None:
    """Raises BenchError for the first variant whose errors are not within ``allowed``."""
    for variant, found in by_variant.items():
        for kind, error in found.items():
            if not error <= allowed[kind]:  # NaN too
                raise BenchError(
                    f"{model}, variant {variant} computes something else than stock PyTorch: "
                    f"relative error of {kind} {error:.2e}, expected at most {allowed[kind]:.2e}; nothing was timed"
                )


def _parts(value: Tensor | list[Tensor]) -> Sequence[Tensor]:
    return value if isinstance(value, list) else [value]


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """L2 norm of the difference ÷ that of ``expected``, all tensors as one vector; infinity for other shapes."""
    if [part.shape for part in found] != [part.shape for part in expected]:
        return float("inf")
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(b.double().square().sum()) for b in expected)
    return (difference / size) ** 0.5 if size else difference**0.5
