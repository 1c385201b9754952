"""Fit the policy by which samples exit early, on the split that is held out for nothing else."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offramp.lookup import with_parameters
from offramp.measure.text_table import text_table
from offramp.measure.units import count, percent
from offramp.progress import Progress
from offramp.runs.goal import Goal
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import LoadedRun, RunLike, Weights, folder_of, load_run

if TYPE_CHECKING:
    from numpy import ndarray

    from offramp.early_exit.calibrate import Outcome, TooCheap
    from offramp.early_exit.exit_scores import Rule
    from offramp.early_exit.policy import ExitPolicy

Costs = dict[tuple[bool, ...], list[Any]]
"""The cost of every segment as run, for each choice of enabled exits."""


@dataclass(frozen=True)
class Calibration:
    """A policy that was fitted, and what it does on the calibration split; `print` shows it as a table.

    Attributes:
        run: folder of the run.
        policy: file that the policy was written to; `exit_policy` is the policy itself.
        unit: of costs: `macs` (multiply-adds per image) or `ms` (milliseconds per image).
        thresholds, enabled, score, temperatures, answer, patience: as in `offramp.ExitPolicy`.
        goal: what was asked for, in plain numbers.
        rule: `search`, or `certified path` for a goal of risk.
        split: always `cal`.
        samples: how many.
        weights: `last` or `best`.
        epoch: that the weights are of, counted from 1.
        weights_digest: of the weights, to which the policy belongs.
        segment_costs: of each segment between enabled exits, in `unit`.
        expected: accuracy, cost, and shares of the samples leaving at each exit.
        plain: accuracy and cost of the plain network.
        bound: what no thresholds on these exits can exceed on these samples; None if nothing was searched.
        certificate: what is promised and on what grounds, for a goal of risk; else None.
        command, date, commit, versions, hardware: provenance.
        batch_size, runtime, device, threads: how milliseconds were measured; None if operations were counted.
    """

    run: str
    policy: str
    unit: str
    thresholds: tuple[float, ...]
    enabled: tuple[bool, ...]
    score: str
    temperatures: tuple[float, ...]
    answer: str
    patience: int
    goal: dict[str, Any]
    rule: str
    split: str
    samples: int
    weights: str
    epoch: int
    weights_digest: str
    segment_costs: list[int | float]
    expected: dict[str, Any]
    plain: dict[str, Any]
    bound: float | None
    certificate: dict[str, Any] | None
    command: str
    date: str
    commit: str | None
    versions: dict[str, Any]
    hardware: dict[str, Any]
    batch_size: int | None = None
    runtime: str | None = None
    device: str | None = None
    threads: int | None = None

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.run)

    @property
    def exit_policy(self) -> "ExitPolicy":
        """The policy that was fitted."""
        from offramp.early_exit.policy import FIELDS, ExitPolicy

        return ExitPolicy(**{name: getattr(self, name) for name in FIELDS})

    def __str__(self) -> str:
        lines = (_table(self), _goal(self), _expectation(self), _measured(self), _gap(self), _promise(self))
        return "\n".join(line for line in lines if line)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def calibrate(
    run: RunLike,
    goal: Goal,
    *,
    score: Literal["confidence", "margin", "entropy", "patience"] = "confidence",
    answer: Literal["exit", "arithmetic", "geometric", "sum"] = "exit",
    weights: Weights = "last",
    data_dir: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Calibration:
    """Fit thresholds for a goal, and choose which exits to evaluate at all, down to the plain network.

    Writes `policy.json` into the run (atomically; the old one is kept as policy.json.old).

    Args:
        run: folder of a trained run, or an object that has one.
        goal: what the policy is to achieve.
        score: how certain an exit is.
        answer: what a sample takes along: the exit's own logits, or those of an ensemble of the enabled exits passed.
        weights: those of the last epoch, or of the best one on val.
        data_dir: data directory, if it has moved since training.
        reporter: called as the work goes on; by default nothing is shown.
    Raises:
        ValueError: if no policy reaches the goal, or the run has no calibration split.
    """
    from offramp.early_exit.exit_scores import Rule
    from offramp.train.run_dir import writing_into

    reporter = reporter or SILENT
    loaded = load_run(folder_of(run), weights, with_policy=False)
    with writing_into(loaded.folder):
        return _fit(loaded, goal, Rule(score, answer), weights, data_dir, reporter)


def _fit(
    loaded: LoadedRun, goal: Goal, rule: "Rule", weights: str, data_dir: Path | str | None, reporter: Reporter
) -> Calibration:
    from offramp.early_exit import temperature
    from offramp.runs.split import caution
    from offramp.runs.traces import calibration_trace
    from offramp.train.run_dir import POLICY

    rule = rule._replace(temperatures=goal.temperature_list(loaded.net.exits))
    if goal.risk is not None and (text := caution(loaded.folder)):
        reporter.warn(text)
    traced = calibration_trace(loaded, weights, data_dir, reporter)
    assert traced.labels is not None
    logits, labels = traced.logits.numpy(), traced.labels.numpy()
    costs, measured = _costs(loaded, goal, rule, reporter.working)
    if goal.risk is None and not rule.temperatures:
        rule = rule._replace(temperatures=temperature.fit(logits, labels))
    outcome, numbers, certificate = _reach(goal, logits, labels, costs, rule)
    about = {
        "goal": numbers,
        "rule": "certified path" if certificate else "search",
        "split": "cal",
        "samples": len(labels),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        "weights_digest": loaded.about["digest"],
        "segment_costs": list(costs[outcome.policy.enabled]),
        **_achieved(goal.unit, outcome, certificate, logits, labels, costs),
        **measured,
    }
    return _save(loaded, loaded.folder / POLICY, outcome.policy, goal.unit, about)


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

    plain = certificate["plain"] if certificate else float((logits[-1].argmax(1) == labels).mean())
    return {
        "expected": {"accuracy": outcome.accuracy, unit: outcome.cost, "shares": outcome.shares},
        "plain": {"accuracy": plain, unit: costs[choices(len(logits))[-1]][0]},
        "bound": outcome.bound,
        "certificate": certificate,
    }


def _save(loaded: LoadedRun, path: Path, fitted: "ExitPolicy", unit: str, about: dict[str, Any]) -> Calibration:
    from offramp.early_exit import policy
    from offramp.measure.provenance import provenance

    about |= provenance()
    policy.save(fitted, path, about)
    fields = {key: getattr(fitted, key) for key in policy.FIELDS}
    return Calibration(run=str(loaded.folder), policy=str(path), unit=unit, **fields, **about)


def _reach(
    goal: Goal, logits: "ndarray", labels: "ndarray", costs: Costs, rule: "Rule"
) -> tuple["Outcome", dict[str, Any], dict[str, Any] | None]:
    """The policy that reaches the goal, the goal in plain numbers, and the certificate if there is one."""
    from offramp.early_exit.calibrate import TooCheap, choices
    from offramp.early_exit.calibrate import calibrate as search

    if goal.risk is not None:
        return _certify(goal, logits, labels, costs, rule)
    if goal.macs is not None or goal.ms is not None:
        plain_cost = float(costs[choices(len(logits))[-1]][0])
        budget = goal.budget(plain_cost)
        try:
            return search(logits, labels, segment_costs=costs, budget=budget, rule=rule), {goal.unit: budget}, None
        except TooCheap as error:
            raise _too_cheap(goal, error, plain_cost) from None
    if goal.max_drop is not None:
        right = int((logits[-1].argmax(1) == labels).sum())
        accuracy = max(0.0, right / len(labels) - goal.max_drop)
        numbers = {"max_drop": goal.max_drop, "accuracy": accuracy}
    else:
        assert goal.target_accuracy is not None
        accuracy = goal.target_accuracy
        numbers = {"accuracy": accuracy}
    return search(logits, labels, segment_costs=costs, accuracy=accuracy, rule=rule), numbers, None


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


def _too_cheap(goal: Goal, error: "TooCheap", plain: float) -> ValueError:
    """The budget as it was given, and what the cheapest policy costs."""
    cheapest = f"{error.cheapest / plain:.2f} of plain ({_cost(error.cheapest, goal.unit)})"
    if goal.macs is None:
        message = f"no policy is that fast: ms={goal.ms:g} is asked for, the cheapest takes {cheapest}"
        return with_parameters(ValueError(message), "ms")
    hint = ", since only values up to 1 are fractions of plain" if 1 < goal.macs <= 1000 else ""
    counted = _cost(error.budget, "macs") + hint
    message = f"no policy is that cheap: macs={goal.macs:.12g} is {counted}; the cheapest costs {cheapest}"
    return with_parameters(ValueError(message), "macs")


def _costs(loaded: LoadedRun, goal: Goal, rule: "Rule", progress: Progress) -> tuple[Costs, dict[str, Any]]:
    """What every segment costs for every choice of exits, counted or measured; and where it was measured."""
    from offramp.early_exit.calibrate import choices
    from offramp.measure.cost import as_run, measure
    from offramp.runs.latency import timed

    if goal.unit == "ms":
        priced, about = timed(loaded, goal.batch_size, rule, goal.runtime, progress)
    else:
        priced, about = partial(as_run, measure(loaded.net, tuple(loaded.about["shape"]))), {}
    return {enabled: priced(enabled) for enabled in choices(loaded.net.exits)}, about


def _table(result: Calibration) -> str:
    last = len(result.enabled) - 1
    levels = [result.patience] * last if result.score == "patience" else result.thresholds
    rows = []
    for exit, on in enumerate(result.enabled):
        level = "off" if not on else "all" if exit == last else _level(levels[exit], result.score)
        name = "final" if exit == last else f"exit {exit + 1}"
        rows.append([name, level, percent(result.expected["shares"][exit])])
    title = f"{result.policy}: fitted on {result.samples:,} samples of cal"
    return text_table(title, ["exit", f"exit if {result.score}", "exits here %"], rows)


def _level(threshold: int | float, score: str) -> str:
    from offramp.early_exit.policy import NEVER

    if threshold >= NEVER:
        return "never"
    return f">= {threshold}" if score == "patience" else f">= {threshold:.4f}"


def _cost(value: int | float, unit: str) -> str:
    return f"{count(value)} MACs" if unit == "macs" else f"{value:.4g} ms"


def _goal(result: Calibration) -> str:
    """What was asked for, with its unit."""
    goal = result.goal
    if "max_drop" in goal or "risk" in goal:
        points = 100 * (goal["max_drop"] if "max_drop" in goal else goal["risk"])
        return f"goal: at most {points:g} percentage point{'' if points == 1 else 's'} of accuracy below plain"
    if "accuracy" in goal:
        return f"goal: accuracy of at least {percent(goal['accuracy'])} %"
    return f"goal: at most {_cost(goal[result.unit], result.unit)} per image"


def _expectation(result: Calibration) -> str:
    expected, plain, unit, certificate = result.expected, result.plain, result.unit, result.certificate
    where = "" if certificate is None else f" on the {certificate['samples']:,} samples that certify"
    return (
        f"expected{where}: accuracy {percent(expected['accuracy'])} % at {_cost(expected[unit], unit)}; "
        f"plain: {percent(plain['accuracy'])} % at {_cost(plain[unit], unit)}"
    )


def _measured(result: Calibration) -> str:
    """Where milliseconds come from."""
    if result.unit != "ms":
        return ""
    threads = f"{result.threads} thread{'' if result.threads == 1 else 's'} of the CPU"
    where = "the GPU" if result.device == "cuda" else threads
    return f"measured in {result.runtime} at batch {result.batch_size} on {where}"


def _gap(result: Calibration) -> str:
    """How much better any thresholds on the same exits could be on these samples."""
    if result.bound is None:
        return ""
    if result.unit in result.goal:
        return f"no thresholds on these exits exceed {percent(result.bound)} % within it (Lagrangian bound)"
    return f"no thresholds on these exits cost less than {_cost(result.bound, result.unit)} (Lagrangian bound)"


def _promise(result: Calibration) -> str:
    """What is certified, or what it would take."""
    certificate = result.certificate
    if certificate is None:
        return ""
    risk = f"{100 * certificate['risk']:g} point{'' if certificate['risk'] == 0.01 else 's'}"
    delta = certificate["delta"]
    how = "in expectation" if delta is None else f"with probability {1 - delta:g}"
    basis = f"{certificate['samples']:,} samples that chose nothing else"
    if certificate["certified"]:
        if any(result.enabled[:-1]):
            return f"certified {how}: at most {risk} of accuracy lost against the plain network ({basis})"
        return f"the plain network is kept: what can be certified at {risk} ({how}) saves nothing ({basis})"
    needed = certificate["needed"]
    more = (
        f"about {needed:,} calibration samples would do, there are {result.samples:,}"
        if needed
        else "no number of samples would do, because even the safest policy loses more than that"
    )
    return f"the plain network is kept: a loss of at most {risk} {how} cannot be certified; {more}"
