"""Fit the policy by which samples exit early, on the split that is held out for nothing else."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError, with_parameters
from offramp.measure.units import at_least, percent
from offramp.progress import Progress
from offramp.runs import never_slower
from offramp.runs.baseline import Baseline, BaselineLike, describe, open_baseline, traces_of
from offramp.runs.calibration import Calibration, cost_text
from offramp.runs.goal import AnswerRule, Goal, Score
from offramp.runs.learned import learned_rule
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import Device, LoadedRun, RunLike, Weights, folder_of, load_run

if TYPE_CHECKING:
    from numpy import ndarray

    from offramp.early_exit.calibrate import Outcome, TooCheap
    from offramp.early_exit.exit_scores import Rule
    from offramp.early_exit.policy import ExitPolicy
    from offramp.outputs import Trace

Costs = dict[tuple[bool, ...], list[Any]]
"""The cost of every segment as run, for each choice of enabled exits."""


@check_arguments
def calibrate(
    run: RunLike,
    goal: Goal,
    *,
    score: Score = "confidence",
    answer: AnswerRule = "exit",
    baseline: BaselineLike | None = None,
    weights: Weights = "last",
    data_dir: Path | str | None = None,
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> Calibration:
    """Fit thresholds for a goal, and choose which exits to enable; if none of them saves anything, only the final exit.

    Writes `policy.json` into the run (atomically; the old one is kept as policy.json.old).

    Args:
        run: folder of a trained run, or an object that has one.
        goal: what the policy is to achieve.
        score: measure of an exit's certainty, see `offramp.ExitPolicy`; `learned` fits a predictor per exit on val.
        answer: output for a sample: the logits of its exit, or those of an ensemble of the enabled exits up to it, see
            `offramp.ExitPolicy`.
        baseline: the plain network that `max_drop` and shares in `macs` refer to: folder of a run without early exits
            that was trained on the same images, or file of weights of this network; by default this network's own
            final exit.
        weights: those of the last epoch, or of the best one on val.
        data_dir: data directory, if it has moved since training.
        device: what to compute on; `auto` is a GPU if there is one.
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ValueError: if no policy reaches the goal, the run has no split `cal`, or the baseline has early exits,
            other classes or other images.
    """
    from offramp.early_exit.exit_scores import Rule
    from offramp.runs.backends import require
    from offramp.train.run_dir import writing_into

    reporter = reporter or SILENT
    if baseline is not None and goal.risk is not None:
        message = "risk bounds the loss against this network's own final exit: omit baseline, or set max_drop instead"
        raise ParameterError(message, "risk", "baseline", "max_drop")
    loaded = load_run(folder_of(run), weights, with_policy=False, device=device)
    require(goal.runtime, loaded.config.device)
    other = None if baseline is None else open_baseline(baseline, loaded, weights)
    with writing_into(loaded.folder):
        return _fit(loaded, other, goal, Rule(score, answer), weights, data_dir, reporter)


def _fit(
    loaded: LoadedRun,
    other: LoadedRun | None,
    goal: Goal,
    rule: "Rule",
    weights: str,
    data_dir: Path | str | None,
    reporter: Reporter,
) -> Calibration:
    from offramp.early_exit import temperature
    from offramp.runs.made_from import made_from
    from offramp.runs.split import caution
    from offramp.runs.traces import arrays_of, calibration_trace
    from offramp.train.run_dir import POLICY

    rule = rule._replace(temperatures=goal.temperature_list(loaded.net.exits))
    if goal.risk is not None and (text := caution(loaded.folder)):
        reporter.warn(text)
    traced = calibration_trace(loaded, weights, data_dir, reporter)
    logits, labels = arrays_of(traced)
    if rule.score == "learned":
        rule = learned_rule(loaded, rule, weights, data_dir, reporter)
    costs, measured = _costs(loaded, goal, rule, reporter.working)
    if goal.risk is None and not rule.temperatures:
        rule = rule._replace(temperatures=temperature.fit(logits, labels))
    baseline = None if other is None else _baseline(other, loaded, goal, traced, weights, data_dir, reporter)
    prices = _prices(loaded, goal, rule, reporter.working)
    (outcome, numbers, certificate), slower = never_slower.reach(
        lambda left: _reach(goal, logits, labels, left, rule, baseline), costs, prices
    )
    about = {
        "goal": numbers,
        "rule": "certified path" if certificate else "search",
        "split": "cal",
        "samples": len(labels),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        "weights_digest": loaded.about["digest"],
        "made_from": made_from(loaded, cal=traced),
        "segment_costs": list(costs[outcome.policy.enabled]),
        **_achieved(goal.unit, outcome, certificate, logits, labels, costs),
        **measured,
        **({"of_plain_ms": {str(size): ratio for size, ratio in slower.items()}} if prices else {}),
    }
    return _save(loaded, loaded.folder / POLICY, outcome.policy, goal.unit, about, baseline)


def _baseline(
    other: LoadedRun,
    loaded: LoadedRun,
    goal: Goal,
    traced: "Trace",
    weights: str,
    data_dir: Path | str | None,
    reporter: Reporter,
) -> Baseline:
    """What the baseline does on cal, and what it costs in the unit of the goal."""
    from offramp.early_exit.exit_scores import Rule
    from offramp.runs.latency import timed

    traces = traces_of(other, loaded, {"cal": traced}, weights, data_dir, reporter)
    if goal.unit == "macs":
        return describe(other, loaded, traces)
    priced, _ = timed(other, goal.batch_size, Rule(), goal.runtime, reporter.working)
    return describe(other, loaded, traces, float(priced([True])[0]))


def _achieved(
    unit: str,
    outcome: "Outcome",
    certificate: dict[str, Any] | None,
    logits: "ndarray",
    labels: "ndarray",
    costs: Costs,
) -> dict[str, Any]:
    """What the policy does on the calibration split, beside the plain network."""
    from offramp.early_exit.calibrate import choices

    exits = [float((exit.argmax(1) == labels).mean()) for exit in logits]
    plain = certificate["plain"] if certificate else exits[-1]
    return {
        "exit_accuracy": exits,
        "expected": {"accuracy": outcome.accuracy, unit: outcome.cost, "shares": outcome.shares},
        "plain": {"accuracy": plain, unit: costs[choices(len(logits))[-1]][0]},
        "bound": outcome.bound,
        "certificate": certificate,
    }


def _save(
    loaded: LoadedRun,
    path: Path,
    fitted: "ExitPolicy",
    unit: str,
    about: dict[str, Any],
    baseline: Baseline | None,
) -> Calibration:
    from offramp.early_exit.policy import FIELDS
    from offramp.early_exit.policy_file import save
    from offramp.measure.provenance import provenance

    about |= {"computed_on": loaded.config.device, **provenance()}
    save(fitted, path, {**about, "baseline": baseline and dataclasses.asdict(baseline)})
    fields = {key: getattr(fitted, key) for key in FIELDS}
    return Calibration(run=str(loaded.folder), policy=str(path), unit=unit, **fields, **about, baseline=baseline)


def _reach(
    goal: Goal, logits: "ndarray", labels: "ndarray", costs: Costs, rule: "Rule", baseline: Baseline | None
) -> tuple["Outcome", dict[str, Any], dict[str, Any] | None]:
    """The policy that reaches the goal, the goal in plain numbers, and the certificate if there is one."""
    from offramp.early_exit.calibrate import TooCheap, choices
    from offramp.early_exit.calibrate import calibrate as search

    if goal.risk is not None:
        return _certify(goal, logits, labels, costs, rule)
    if goal.macs is not None or goal.ms is not None:
        plain_cost = float(costs[choices(len(logits))[-1]][0])
        if baseline is not None:
            plain_cost = float(baseline.macs if baseline.ms is None else baseline.ms)
        budget = goal.budget(plain_cost)
        try:
            return search(logits, labels, segment_costs=costs, budget=budget, rule=rule), {goal.unit: budget}, None
        except TooCheap as error:
            raise _too_cheap(goal, error, plain_cost, baseline, exits=len(logits)) from None
    accuracy, numbers = _accuracy(goal, logits, labels, baseline)
    try:
        return search(logits, labels, segment_costs=costs, accuracy=accuracy, rule=rule), numbers, None
    except ValueError as error:
        if baseline is None:
            raise
        share = percent(baseline.accuracy["cal"])
        raise ValueError(f"{error}; the baseline {baseline.source} reaches {share} %") from None


def _accuracy(
    goal: Goal, logits: "ndarray", labels: "ndarray", baseline: Baseline | None
) -> tuple[float, dict[str, Any]]:
    """The accuracy to reach, and the goal in plain numbers."""
    if goal.max_drop is None:
        assert goal.target_accuracy is not None
        return goal.target_accuracy, {"accuracy": goal.target_accuracy}
    right = int((logits[-1].argmax(1) == labels).sum())
    plain = right / len(labels) if baseline is None else baseline.accuracy["cal"]
    accuracy = max(0.0, plain - goal.max_drop)
    return accuracy, {"max_drop": goal.max_drop, "accuracy": accuracy}


def _certify(
    goal: Goal, logits: "ndarray", labels: "ndarray", costs: Costs, rule: "Rule"
) -> tuple["Outcome", dict[str, Any], dict[str, Any]]:
    from offramp.early_exit.certify import certify

    assert goal.risk is not None
    certificate = certify(
        logits,
        labels,
        segment_costs=costs,
        risk=goal.risk,
        delta=goal.delta,
        rule=rule,
        fit_temperatures=not rule.temperatures,
    )
    values = {key: value for key, value in dataclasses.asdict(certificate).items() if key != "outcome"}
    return certificate.outcome, {"risk": goal.risk, "delta": goal.delta}, values


def _too_cheap(goal: Goal, error: "TooCheap", plain: float, baseline: Baseline | None, exits: int) -> ValueError:
    """The budget as it was given, and what the cheapest policy costs, rounded up so that it can be typed."""
    name = "the plain network" if baseline is None else "the baseline"
    cheapest = f"{at_least(error.cheapest / plain):.3g} of {name} ({cost_text(at_least(error.cheapest), goal.unit)})"
    if exits == 1:
        cheapest += ", since it has no early exits"
    if goal.macs is None:
        message = f"no policy is that fast: ms={goal.ms:g} is asked for, the cheapest takes {cheapest}"
        return with_parameters(ValueError(message), "ms")
    hint = f", since only values up to 1 are shares of {name}" if 1 < goal.macs <= 1000 else ""
    counted = cost_text(error.budget, "macs") + hint
    message = f"no policy is that cheap: macs={goal.macs:.12g} is {counted}; the cheapest costs {cheapest}"
    return with_parameters(ValueError(message), "macs")


def _prices(
    loaded: LoadedRun, goal: Goal, rule: "Rule", progress: Progress
) -> dict[int, Callable[[Sequence[bool]], list[float]]]:
    """Milliseconds of the segments of any choice of exits, at each batch size at which nothing may be slower."""
    from offramp.runs.latency import timed

    return {size: timed(loaded, size, rule, goal.runtime, progress)[0] for size in goal.never_slower_at}


def _costs(loaded: LoadedRun, goal: Goal, rule: "Rule", progress: Progress) -> tuple[Costs, dict[str, Any]]:
    """What every segment costs for every choice of exits, counted or measured; and where it was measured."""
    from offramp.early_exit.calibrate import choices
    from offramp.measure.cost import as_run
    from offramp.runs.latency import timed

    if goal.unit == "ms":
        priced, about = timed(loaded, goal.batch_size, rule, goal.runtime, progress)
    else:
        priced, about = partial(as_run, loaded.pieces), {}
    return {enabled: priced(enabled) for enabled in choices(loaded.net.exits)}, about
