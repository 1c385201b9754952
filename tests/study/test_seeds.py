"""Curves of several models of a method: at every budget the best one, chosen on held-out data, as a mean over seeds."""

from typing import Any

import pytest

from offramp.config import Config, flat, resolve
from offramp.study.seeds import BUDGETS, best_of_models


def points(held_out: float, test: float, cost: float) -> dict[str, Any]:
    return {
        "budgeted": [
            {
                "q": 1.0,
                "held_out_accuracy": held_out,
                "held_out_cost": cost,
                "accuracy": test,
                "top5": test,
                "cost": cost,
            }
        ]
    }


def test_the_best_model_of_every_budget_is_a_mean_over_seeds() -> None:
    configs = [
        flat(resolve(Config(net=net, method=method, seed=seed)))
        for net, method, seed in [
            ("resnet18", "joint", 0),
            ("resnet34", "joint", 0),
            ("resnet18", "joint", 1),
            ("resnet34", "joint", 1),
            ("resnet18", "muse", 0),
        ]
    ]
    curves = [
        points(0.5, 0.4, 10),
        points(0.6, 0.5, 30),
        points(0.5, 0.42, 10),
        points(0.4, 0.9, 30),
        points(0.9, 0.9, 20),
    ]
    best = best_of_models(configs, ["a", "b", "c", "d", "e"], curves)
    assert list(best) == ["joint"]  # of muse there is one model
    assert len(best["joint"]) == BUDGETS
    first, last = best["joint"][0], best["joint"][-1]
    assert (first["budget"], first["models"]) == (11, ["a", "c"])
    assert first["accuracy"] == pytest.approx(0.41) and first["deviation"] == pytest.approx(0.02 / 2**0.5)
    assert last["models"] == ["b", "c"] and last["accuracy"] == pytest.approx(0.46)
    assert "q" not in first


def test_runs_that_held_nothing_out_have_no_best() -> None:
    config = flat(resolve(Config(method="joint")))
    assert best_of_models([config, config], ["a", "b"], [{"budgeted": []}, {"budgeted": []}]) == {}
