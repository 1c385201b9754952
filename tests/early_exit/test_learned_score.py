"""The score `learned`: the same in numpy and torch, one sample at a time and in batches, and better where it can be."""

from dataclasses import replace

import array_api_compat
import numpy as np
import pytest
import torch

from offramp.early_exit.calibrate import calibrate, choices
from offramp.early_exit.exit_scores import Rule, policy_of, score_samples
from offramp.early_exit.failure_prediction import auroc
from offramp.early_exit.fit_learned import fit
from offramp.early_exit.learned_score import FEATURES
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import parse

WEIGHTS = (0.3, 0.2, -0.1, -0.5, 0.6, 0.7, 0.1)
POLICY = ExitPolicy(thresholds=(0.6, 0.5, 0.0), enabled=(True,) * 3, score="learned", predictors=(WEIGHTS, WEIGHTS))


def random_logits(n: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Three exits whose errors are mostly at different samples, so that agreement says more than confidence."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    logits = 0.5 * generator.normal(size=(3, n, classes)).astype(np.float32)
    for exit in range(3):
        wrong = generator.random(n) < 0.35 - 0.1 * exit
        target = np.where(wrong, generator.integers(0, classes, n), labels)
        logits[exit, np.arange(n), target] += generator.uniform(2, 5, n).astype(np.float32)
    return logits, labels


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 1000])
def test_numpy_and_torch_agree_in_batches_and_one_by_one(classes: int) -> None:
    logits = (5 * np.random.default_rng(classes).normal(size=(3, 50, classes))).astype(np.float32)
    arrays: list[list[np.ndarray]] = []
    for kind in (lambda part: part, torch.from_numpy, lambda part: torch.from_numpy(part).requires_grad_()):
        carry: dict[str, object] = {}
        scores = []
        for exit in range(3):
            carry, _, score, _ = POLICY.step(carry, kind(logits[exit]), exit)
            scores.append(np.asarray(score.detach() if isinstance(score, torch.Tensor) else score))
        arrays.append(scores)
    for kind in (lambda part: part, torch.from_numpy):
        one_by_one = np.empty((3, 50), np.float32)
        for row in range(50):
            carry = {}
            for exit in range(3):
                carry, _, score, _ = POLICY.step(carry, kind(logits[exit, row : row + 1]), exit)
                one_by_one[exit, row] = float(score[0])
        arrays.append(list(one_by_one))
    for other in arrays[1:]:
        for exit in range(3):
            assert other[exit].dtype == np.float32 and np.abs(other[exit] - arrays[0][exit]).max() < 1e-5


def test_the_carry_has_the_batch_first_so_that_samples_can_leave() -> None:
    logits, _ = random_logits(8, 0)
    carry, *_ = POLICY.step({}, logits[0], 0)
    kept = {name: value[[1, 5]] for name, value in carry.items()}
    whole, few = POLICY.step(carry, logits[1], 1)[2], POLICY.step(kept, logits[1][[1, 5]], 1)[2]
    assert whole[[1, 5]] == pytest.approx(few)
    other = array_api_compat.array_namespace(torch.zeros(1))
    assert other.asarray(few).shape == (2,)


def test_it_ranks_better_where_agreement_tells_more_than_confidence() -> None:
    rule = Rule("learned", predictors=fit(*random_logits(3000, 0), Rule("learned")))
    logits, labels = random_logits(3000, 1)
    areas = {}
    for name, each in (("learned", rule), ("confidence", Rule())):
        scored = score_samples(logits, labels, (True,) * 3, each)
        areas[name] = auroc(scored.score[1], scored.right[1])
    assert areas["learned"] > areas["confidence"] + 0.05


def test_thresholds_are_fitted_on_it_and_the_policy_is_plain_json() -> None:
    rule = Rule("learned", predictors=fit(*random_logits(2000, 0), Rule("learned")))
    costs = {enabled: [10.0] * sum(enabled) for enabled in choices(3)}
    policy = calibrate(*random_logits(600, 1), segment_costs=costs, budget=18, rule=rule).policy
    assert parse(policy.to_json()) == policy and len(policy.predictors) == 2
    assert all(len(weights) == len(FEATURES) + 1 for weights in policy.predictors)
    assert '"predictors"' not in replace(policy, score="confidence", predictors=()).to_json()


def test_without_errors_to_learn_from_it_is_the_order_of_the_confidence() -> None:
    logits, labels = random_logits(200, 3)
    logits[:, np.arange(200), labels] += 20
    rule = Rule("learned", predictors=fit(logits, labels, Rule("learned")))
    logits, labels = random_logits(200, 4)
    learned = score_samples(logits, labels, (True,) * 3, rule).score[0]
    confidence = score_samples(logits, labels, (True,) * 3, Rule()).score[0]
    assert (np.argsort(learned) == np.argsort(confidence)).mean() > 0.99


def test_wrong_predictors_are_refused() -> None:
    for predictors, says in (
        ((), "needs predictors of 2 exits, with 7 finite numbers each"),
        ((WEIGHTS, WEIGHTS[:-1]), "needs predictors of 2 exits"),
        ((WEIGHTS, (*WEIGHTS[:-1], float("nan"))), "finite"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(POLICY, predictors=predictors)
    with pytest.raises(ValueError, match="predictors with the score learned only, not with confidence"):
        replace(POLICY, score="confidence")
    text = POLICY.to_json().replace("[0.3,", '["x",').replace("\n      0.3,", '\n      "x",')
    with pytest.raises(ValueError, match="must be a list of numbers"):
        parse(text)
    assert policy_of(Rule(), (True,)).predictors == ()
