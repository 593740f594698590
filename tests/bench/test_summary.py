"""Rows from planted step times."""

from itertools import pairwise

import pytest

from fused_resnet.bench.settings import Settings
from fused_resnet.bench.summary import quantiles, row, speedup_vs_best_stock, turn_order

FIELDS = [
    "model",
    "mode",
    "batch",
    "image_size",
    "dtype",
    "device",
    "threads",
    "allocator",
    "variant",
    "img_per_s",
    "step_ms",
    "saved_activation_bytes",
    "peak_rss_bytes",
    "rounds",
    "speedup_vs_best_stock",
]
ROUNDS = [  # the machine is four times slower in the second round
    {"fused": 10.0, "eager": 30.0, "compile": 20.0},
    {"fused": 40.0, "eager": 60.0, "compile": 90.0},
    {"fused": 10.0, "eager": 11.0, "compile": 12.0},
]


def test_the_speedup_is_taken_within_a_round():
    assert speedup_vs_best_stock(ROUNDS, "fused", ["eager", "compile"]) == pytest.approx(1.5)  # of 2.0, 1.5, 1.1
    assert speedup_vs_best_stock(ROUNDS, "fused", ["eager"]) == pytest.approx(1.5)  # of 3.0, 1.5, 1.1
    assert speedup_vs_best_stock(ROUNDS, "fused", []) is None


def test_quantiles_interpolate():
    assert quantiles([0.0, 10.0, 20.0, 30.0, 40.0, 50.0]) == pytest.approx({"median": 25.0, "p20": 10.0, "p80": 40.0})
    assert quantiles([7.0]) == {"median": 7.0, "p20": 7.0, "p80": 7.0}


def test_a_row_has_the_fields_of_the_contract():
    job = Settings(models=["resnet18"], batch=4, threads=2).job("resnet18", "fused")
    made = row(job, "tuned", ROUNDS, ["eager", "compile"], saved_activation_bytes=12, peak_bytes=34)
    assert list(made) == FIELDS
    assert made["step_ms"]["median"] == 10.0 and made["rounds"] == 3
    assert made["img_per_s"] == pytest.approx({"median": 400.0, "p20": 220.0, "p80": 400.0})
    assert (made["saved_activation_bytes"], made["peak_rss_bytes"]) == (12, 34)
    assert (made["batch"], made["allocator"], made["variant"]) == (4, "tuned", "fused")

    stock = row(job._replace(variant="eager", device="cuda"), "tuned", ROUNDS, ["eager", "compile"], None, 5)
    assert stock["speedup_vs_best_stock"] is None
    assert stock["peak_device_bytes"] == 5 and "peak_rss_bytes" not in stock


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_turns_are_balanced(count):
    rounds = [turn_order(count, index) for index in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    for variant in range(count):
        places = [order.index(variant) for order in rounds]
        assert all(places.count(place) == 2 for place in range(count))
    follows = [pair for order in rounds for pair in pairwise(order)]
    assert all(follows.count((a, b)) == 2 for a in range(count) for b in range(count) if a != b)
