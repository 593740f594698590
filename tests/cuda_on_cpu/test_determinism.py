"""The same bits whatever the order in which threads and blocks run, and whatever shared memory held before."""

from __future__ import annotations

import pytest
from cuda_on_cpu import cuda_emulated, exercises


@pytest.mark.parametrize("family", exercises.EXERCISES | exercises.TYPED_EXERCISES)
def test_same_bits_in_ten_orders(family: str) -> None:
    cuda_emulated.ensure()
    exercises.same_bits(family)


@pytest.mark.parametrize("family", exercises.TYPED_EXERCISES)
def test_other_types_match_the_reference(family: str) -> None:
    cuda_emulated.ensure()
    exercises.verify(family)
