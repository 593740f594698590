"""Settings of a training run, and its learning rate."""

import math

import pytest

from fused_resnet.train import TrainSettings
from fused_resnet.train.settings import learning_rate_factor


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch": -2}, "batch: expected at least 1, got -2"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"lr": math.nan}, "lr: expected a positive number, got nan"),
        ({"momentum": 1.0}, "momentum: expected a number from 0 to below 1, got 1.0"),
        ({"momentum": 0.0}, "nesterov: expected a positive momentum, got 0.0"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number of at least 0, got -0.0001"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; known: cosine, step"),
        ({"data": "cifar"}, "unknown data 'cifar'; known: digits"),
        ({"model": "resnet21"}, "unknown model 'resnet21'; nearest: resnet"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**wrong)


def test_the_learning_rate_warms_up_and_follows_its_schedule():
    def factors(schedule):
        return [learning_rate_factor(schedule, step, steps=100, warm_up_steps=20) for step in (0, 10, 20, 50, 75, 99)]

    assert factors("step") == pytest.approx([1e-3, 1e-3**0.5, 1.0, 0.1, 0.01, 0.01])
    cosine = [0.5 + 0.5 * math.cos(math.pi * progress) for progress in (0.2, 0.5, 0.75, 0.99)]
    assert factors("cosine") == pytest.approx([1e-3, 1e-3**0.5, *cosine])
