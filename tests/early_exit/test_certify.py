"""Certified policies: the promise holds on a real network's trace, however often samples are drawn from it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray

from offramp.early_exit.calibrate import choices, does
from offramp.early_exit.certify import Certificate, certify, divide
from offramp.early_exit.exit_scores import Rule, score_samples
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.risk import binomial_tail
from offramp.measure.cost import segment_macs
from offramp.net import Branch, Head, MultiExitNet

DRAWS = 100
Trace = tuple[ndarray, ndarray, dict[tuple[bool, ...], list[int]]]


@pytest.fixture(scope="module")
def population() -> Trace:
    """A network trained here on half of the digits; the logits of the other half, their labels, what exits cost."""
    datasets = pytest.importorskip("sklearn.datasets")
    result = datasets.load_digits()
    images = torch.tensor(result.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(result.target)
    torch.manual_seed(0)
    stages = [
        torch.nn.Sequential(torch.nn.Conv2d(enters, leaves, 3, stride=stride, padding=1), torch.nn.ReLU())
        for enters, leaves, stride in ((1, 6, 2), (6, 16, 1), (16, 32, 2))
    ]
    net = MultiExitNet(stages, [Branch(torch.nn.Identity(), Head(width, 10)) for width in (6, 16, 32)])
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    half = len(labels) // 2
    for _ in range(80):
        optimizer.zero_grad()
        loss = sum(torch.nn.functional.cross_entropy(z, labels[:half]) for z in net(images[:half]).logits)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = net.eval()(images[half:]).logits.numpy()
    prices = {enabled: segment_macs(net, (1, 8, 8), enabled) for enabled in choices(3)}
    return logits, labels[half:].numpy(), prices


def lost(policy: ExitPolicy, logits: ndarray, labels: ndarray) -> float:
    """The share of samples that the plain network gets right and the policy wrong, one exit after the other."""
    carry: dict[str, Any] = {}
    here, right = np.ones(len(labels), bool), np.zeros(len(labels), bool)
    for exit in np.flatnonzero(policy.enabled).tolist():
        carry, answer, _, leaves = policy.step(carry, logits[exit], exit)
        right |= here & leaves & (answer.argmax(1) == labels)
        here &= ~leaves
    return float(((logits[-1].argmax(1) == labels) & ~right).mean())


@pytest.mark.parametrize(
    ("risk", "delta", "n"), [(0.03, 0.1, 400), pytest.param(0.02, 0.2, 1000, marks=pytest.mark.full)]
)
def test_the_risk_exceeds_the_bound_no_more_often_than_delta_allows(
    population: Trace, risk: float, delta: float, n: int
) -> None:
    logits, labels, prices = population
    violations = early = 0
    for seed in range(DRAWS):
        rows = np.random.default_rng(seed).integers(0, len(labels), n)
        result = certify(logits[:, rows], labels[rows], segment_costs=prices, risk=risk, delta=delta)
        violations += lost(result.outcome.policy, logits, labels) > risk
        early += any(result.outcome.policy.enabled[:-1])
    # were the chance of a violation above delta, so few (or fewer) would be likely; so many must not be unlikely
    assert 1 - binomial_tail(violations - 1, DRAWS, delta) > 0.001 if violations else True
    assert early > DRAWS / 2, "a bound that keeps the plain network proves nothing"


@pytest.mark.parametrize("risk", [0.03])
def test_the_expected_risk_stays_within_the_bound(population: Trace, risk: float) -> None:
    logits, labels, prices = population
    risks = []
    for seed in range(DRAWS):
        rows = np.random.default_rng(seed).integers(0, len(labels), 300)
        result = certify(logits[:, rows], labels[rows], segment_costs=prices, risk=risk)
        risks.append(lost(result.outcome.policy, logits, labels))
    assert np.mean(risks) <= risk + 3 * np.std(risks) / math.sqrt(DRAWS)
    assert np.mean(risks) > risk / 20


def check(certificate: Certificate, logits: ndarray, labels: ndarray, prices: Any, rule: Rule) -> None:
    policy = certificate.outcome.policy
    _, proof = divide(len(labels))
    ours = rule._replace(temperatures=policy.temperatures, answer=policy.answer, score=policy.score)
    judged = score_samples(logits[:, proof], labels[proof], policy.enabled, ours)
    again = does(policy, judged, np.cumsum(np.array(prices[policy.enabled], float)))
    assert (again.accuracy, again.cost, again.shares) == (
        certificate.outcome.accuracy,
        certificate.outcome.cost,
        certificate.outcome.shares,
    )
    assert certificate.lost / certificate.samples == pytest.approx(lost(policy, logits[:, proof], labels[proof]))
    assert certificate.samples + certificate.tuning == len(labels)


@pytest.mark.parametrize("delta", [None, 0.1])
@pytest.mark.parametrize(
    "rule", [Rule(), Rule("margin", "arithmetic"), Rule("entropy", "sum"), Rule("patience"), Rule("patience", "sum")]
)
def test_what_is_certified_is_what_the_policy_does(population: Trace, rule: Rule, delta: float | None) -> None:
    logits, labels, prices = population
    result = certify(logits, labels, segment_costs=prices, risk=0.05, delta=delta, rule=rule, fit_temperatures=True)
    check(result, logits, labels, prices, rule)
    if result.certified:
        assert result.needed is None
    else:
        assert result.outcome.policy.enabled == (False, False, True) and result.lost == 0
    assert result.certified or rule.score in ("patience", "entropy")  # on three exits patience has two policies to try
    assert result.outcome.cost <= prices[False, False, True][0]


def test_the_samples_that_certify_choose_nothing(population: Trace) -> None:
    logits, labels, prices = population
    tune, proof = divide(len(labels))
    assert sorted([*tune, *proof]) == list(range(len(labels)))
    flipped = labels.copy()
    flipped[proof] = (flipped[proof] + 1) % 10
    first, second = (
        certify(logits, truth, segment_costs=prices, risk=0.05, fit_temperatures=True) for truth in (labels, flipped)
    )
    assert first.path == second.path
    # where the labels of the proof are wrong, the plain network is right on hardly any sample, so nothing is lost
    assert second.certified == second.path
    assert first.outcome.policy.temperatures == second.outcome.policy.temperatures != (1.0, 1.0, 1.0)


def test_too_few_samples_keep_the_plain_network_and_say_how_many_it_takes(population: Trace) -> None:
    logits, labels, prices = population
    result = certify(logits[:, :60], labels[:60], segment_costs=prices, risk=0.01, delta=0.05)
    assert result.outcome.policy.enabled == (False, False, True) and result.certified == result.lost == 0
    assert result.needed == math.ceil(1.5 * math.ceil(math.log(0.05) / math.log(0.99)))
    assert result.outcome.shares == (0.0, 0.0, 1.0)
    in_expectation = certify(logits[:, :60], labels[:60], segment_costs=prices, risk=0.01)
    assert in_expectation.needed == math.ceil(1.5 * 99)


def test_what_saves_nothing_is_not_taken(population: Trace) -> None:
    logits, labels, prices = population
    dear = {enabled: [cost * (10 if len(parts) > 1 else 1) for cost in parts] for enabled, parts in prices.items()}
    result = certify(logits, labels, segment_costs=dear, risk=0.05)
    assert result.certified > 0 and result.outcome.policy.enabled == (False, False, True)
    assert result.outcome.accuracy == (logits[-1].argmax(1) == labels)[divide(len(labels))[1]].mean()


@pytest.mark.parametrize(("risk", "delta"), [(0.0, None), (1.0, None), (0.1, 0.0), (0.1, 1.0), (float("nan"), None)])
def test_probabilities_out_of_range(population: Trace, risk: float, delta: float | None) -> None:
    logits, labels, prices = population
    with pytest.raises(ValueError, match="risk and delta must be between 0 and 1"):
        certify(logits, labels, segment_costs=prices, risk=risk, delta=delta)


def test_two_samples_are_not_enough(population: Trace) -> None:
    logits, labels, prices = population
    with pytest.raises(ValueError, match="needs samples to tune on and others to certify with, got 2 in all"):
        certify(logits[:, :2], labels[:2], segment_costs=prices, risk=0.1)


def test_a_network_of_one_exit_is_certified_as_it_is(population: Trace) -> None:
    logits, labels, _ = population
    result = certify(logits[-1:], labels, segment_costs={(True,): [7]}, risk=0.1, delta=0.1)
    assert result.outcome.policy.enabled == (True,) and result.outcome.cost == 7
