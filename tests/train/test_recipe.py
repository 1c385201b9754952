"""Recipes: the papers' values by default, and one sentence for each invalid value."""

import math
from typing import Any

import pytest

from offramp.train.recipe import Recipe


def test_the_defaults_are_those_of_the_papers_on_cifar() -> None:
    built = Recipe()
    assert (built.epochs, built.batch_size, built.optimizer, built.lr, built.momentum) == (200, 128, "sgd", 0.1, 0.9)
    assert (built.weight_decay, built.schedule, built.gamma, built.nesterov) == (5e-4, "step", 0.1, False)
    assert built.milestones == (0.375, 0.65, 0.9)
    off = (built.label_smoothing, built.mixup, built.ema, built.clip, built.warmup, built.compile, built.tensorboard)
    assert not any(off)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"log_accuracy": ("tset",)}, "log_accuracy must name train, val or test, got ('tset',)"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 1, got -1"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"lr": math.inf}, "lr must be positive and finite, got inf"),
        ({"gamma": -0.1}, "gamma must be positive and finite, got -0.1"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"warmup": -0.1}, "warmup must be in [0, 1), got -0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in [0, 1), got 1.0"),
        ({"ema": 1.5}, "ema must be in [0, 1), got 1.5"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, and finite, got -1.0"),
        ({"mixup": math.inf}, "mixup must not be negative, and finite, got inf"),
        ({"clip": math.nan}, "clip must not be negative, and finite, got nan"),
        ({"seed": -1}, "seed must not be negative, and finite, got -1"),
        ({"seed": 2**63}, "seed must be below 2^63, got 9223372036854775808"),
        ({"milestones": (0.5, 0.4)}, "milestones must be rising fractions of the run between 0 and 1, got (0.5, 0.4)"),
        ({"milestones": (75.0, 130.0)}, "milestones must be rising fractions of the run"),
        ({"milestones": (math.nan,)}, "milestones must be rising fractions of the run"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs momentum above 0"),
        ({"batch_size": 129, "devices": 2}, "batch_size=129 does not divide evenly over devices=2"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        Recipe(**values)
    assert str(caught.value).startswith(says)


def test_values_at_the_edge_are_fine() -> None:
    assert Recipe(epochs=1, batch_size=2, devices=2, momentum=0.0, warmup=0.0, milestones=(), mixup=0.0, seed=0)
