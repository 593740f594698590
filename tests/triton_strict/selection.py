"""Which tests of the shared suites run on the interpreted Triton targets: what reaches its kernels, once.

float64 is the reference's (``unsupported``), and so is gradcheck; block and model tests, and opcheck of bn_act_conv,
take half a minute and more interpreted, and have a shorter twin in tests/backends.
"""

from __future__ import annotations

import pytest

__all__ = ["TILES", "is_worth_interpreting"]

# Interpreted, a tile costs the same at any size: few and large ones. Shipped tiles are tested in tests/backends.
TILES = {2: ((256, 128, 64, 4, 1),), 4: ((256, 128, 64, 4, 1),)}


def is_worth_interpreting(item: pytest.Item) -> bool:
    """False for a Triton test that the rules above leave out, true for everything else."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return True
    target = str(item.callspec.params.get("target", ""))
    if not target.startswith("triton"):
        return True
    left_out = ("float64", "gradcheck", "double_backward")
    # Convolutions of the library: its own, with pointwise kernels around them.
    convolutions = item.path.name in ("test_bn_act_conv.py", "test_conv_bn_add_act.py")
    library = convolutions and any(word in item.name for word in ("matches_stock", "without", "opcheck"))
    has_twin = item.path.name == "test_bn_act_conv.py" and "opcheck" in item.name
    return (
        item.path.parent.name == "ops"
        and not has_twin
        and not any(word in item.name for word in left_out)
        and (library or target == "triton-implicit_product")
    )
