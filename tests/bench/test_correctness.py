"""The comparison that refuses a wrong variant."""

from math import inf, isnan, nan

import pytest
import torch

from fused_resnet.bench.child import BenchError
from fused_resnet.bench.correctness import errors, limits, refuse_wrong
from fused_resnet.bench.settings import DTYPES


def answer(logits=1.0, gradients=(3.0, 4.0)):
    return {
        "logits": torch.full((2, 3), logits),
        "loss": torch.tensor(2.0),
        "gradients": [torch.full((1,), value) for value in gradients],
    }


def test_errors_are_relative_l2_norms_and_gradients_one_vector():
    assert errors(answer(), answer()) == {"logits": 0.0, "loss": 0.0, "gradients": 0.0}
    found = errors(answer(1.5, (3.0, 4.5)), answer())
    assert found == pytest.approx({"logits": 0.5, "loss": 0.0, "gradients": 0.1})


def test_what_is_not_comparable_is_infinitely_wrong():
    assert errors(answer(gradients=(3.0,)), answer())["gradients"] == inf
    assert isnan(errors(answer(logits=nan), answer())["logits"])


def test_the_limit_is_the_floor_of_the_type_or_follows_stock():
    small = {"channels_last": {"logits": 1e-6, "gradients": 1e-3}, "fused": {"logits": 9.0, "gradients": 9.0}}
    assert limits(small, DTYPES["fp32"]) == {"logits": 1e-3, "gradients": 1e-1}
    noisy = small | {"channels_last": {"logits": 0.1, "gradients": 0.2}, "compile": {"logits": nan, "gradients": 1.0}}
    assert limits(noisy, DTYPES["fp32"]) == pytest.approx({"logits": 0.4, "gradients": 0.8})


@pytest.mark.parametrize("error", [0.2, inf, nan])
def test_refused_above_the_limit(error):
    refuse_wrong("resnet18", {"fused": {"logits": 0.1}}, {"logits": 0.1})
    with pytest.raises(
        BenchError, match=r"resnet18, variant fused .* logits .*, expected at most 1.00e-01; nothing was"
    ):
        refuse_wrong("resnet18", {"fused": {"logits": error}}, {"logits": 0.1})
