"""What calibrating a run results in, as numbers and as text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.measure.plain_network import plain_note
from offramp.measure.text_table import prose, text_table
from offramp.measure.units import count, percent
from offramp.runs.baseline import Baseline

if TYPE_CHECKING:
    from offramp.early_exit.policy import ExitPolicy


@dataclass(frozen=True)
class Calibration:
    """A policy that was fitted, and what it does on the calibration split; `print` shows it as a table.

    Attributes:
        run: folder of the run.
        policy: file that the policy was written to; `exit_policy` is the policy itself.
        unit: unit of costs: `macs` (multiply-adds per image) or `ms` (milliseconds per image).
        thresholds, enabled, score, temperatures, answer, patience: as in `offramp.ExitPolicy`.
        goal: the values of the `offramp.Goal`.
        rule: how the thresholds were fitted: `search`, or `certified path` for the goal `risk`.
        split: always `cal`.
        samples: number of samples in it.
        weights: `last` or `best`.
        epoch: epoch of the weights, counted from 1.
        weights_digest: digest of the weights that the policy was fitted for.
        made_from: digests of configuration, weights and the trace of cal.
        segment_costs: cost of each segment between enabled exits, in `unit`.
        expected: accuracy, cost, and share of the samples that exit at each exit, on cal.
        plain: accuracy and cost of the plain network, on cal.
        bound: bound for all thresholds on these exits and samples: the highest accuracy (in [0, 1]) for a cost goal,
            else the lowest mean cost; None if nothing was searched.
        certificate: what is guaranteed for the goal `risk`, and the counts that it follows from; else None.
        command, date, commit, versions, hardware: provenance.
        batch_size, runtime, device, threads: how milliseconds were measured; None if operations were counted.
        computed_on: device that the logits were computed on.
        of_plain_ms: milliseconds divided by those of the plain network, by batch size of `Goal.never_slower_at`; None
            without it.
        exit_accuracy: accuracy of every exit on cal, in [0, 1].
        baseline: the plain network that was given as baseline, on cal.
        predictors: as in `offramp.ExitPolicy`.
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
    made_from: dict[str, Any]
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
    of_plain_ms: dict[str, float] | None = None
    exit_accuracy: list[float] | None = None
    baseline: Baseline | None = None
    predictors: tuple[tuple[float, ...], ...] = ()
    computed_on: str | None = None

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
        sentences = (prose(part(self)) for part in (_measured, _slower, _gap, _promise))
        lines = [_table(self), _goal(self), prose(_expectation(self)), _plain(self), *sentences]
        return "\n".join(line for line in lines if line)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def _table(result: Calibration) -> str:
    last = len(result.enabled) - 1
    levels = [result.patience] * last if result.score == "patience" else result.thresholds
    rows = []
    for exit, on in enumerate(result.enabled):
        level = "off" if not on else "all" if exit == last else _level(levels[exit], result.score)
        name = "final" if exit == last else f"exit {exit + 1}"
        rows.append([name, level, percent(result.expected["shares"][exit])])
    device = f", computed on {result.computed_on}" if result.computed_on else ""
    title = f"{result.policy}: fitted on {result.samples:,} samples of cal{device}"
    return text_table(title, ["exit", f"exit if {result.score}", "exits here %"], rows)


def _level(threshold: int | float, score: str) -> str:
    from offramp.early_exit.policy import NEVER

    if threshold >= NEVER:
        return "never"
    return f">= {threshold}" if score == "patience" else f">= {threshold:.4f}"


def cost_text(value: int | float, unit: str) -> str:
    """Operations or milliseconds, with the unit."""
    return f"{count(value)} MACs" if unit == "macs" else f"{value:.4g} ms"


def _goal(result: Calibration) -> str:
    """What was asked for, with its unit."""
    goal = result.goal
    if "max_drop" in goal or "risk" in goal:
        points = 100 * (goal["max_drop"] if "max_drop" in goal else goal["risk"])
        name = "the plain network" if result.baseline is None else "the baseline"
        return f"goal: at most {points:g} percentage point{'' if points == 1 else 's'} of accuracy below {name}"
    if "accuracy" in goal:
        return f"goal: accuracy of at least {percent(goal['accuracy'])} %"
    return f"goal: at most {cost_text(goal[result.unit], result.unit)} per image"


def _expectation(result: Calibration) -> str:
    expected, plain, unit, certificate = result.expected, result.plain, result.unit, result.certificate
    where = "" if certificate is None else f" on the {certificate['samples']:,} certifying samples"
    return (
        f"expected{where}: accuracy {percent(expected['accuracy'])} % at {cost_text(expected[unit], unit)}; "
        f"plain: {percent(plain['accuracy'])} % at {cost_text(plain[unit], unit)}"
    )


def _plain(result: Calibration) -> str:
    """The baseline, or what `plain` is without one."""
    baseline = result.baseline
    if baseline is None:
        return plain_note(result.exit_accuracy, "cal") if result.exit_accuracy else ""
    cost = baseline.macs if baseline.ms is None else baseline.ms
    share = percent(baseline.accuracy["cal"])
    return f"baseline {baseline.source}: accuracy {share} % at {cost_text(cost, result.unit)}"


def _measured(result: Calibration) -> str:
    """Where milliseconds come from."""
    if result.unit != "ms":
        return ""
    threads = f"{result.threads} thread{'' if result.threads == 1 else 's'} of the CPU"
    where = "the GPU" if result.device == "cuda" else threads
    return f"measured in {result.runtime} at batch {result.batch_size} on {where}"


def _slower(result: Calibration) -> str:
    """Time beside the plain network where the policy may not be slower."""
    if not result.of_plain_ms:
        return ""
    sizes = ", ".join(f"{ratio:.2f} at batch {size}" for size, ratio in result.of_plain_ms.items())
    return f"milliseconds / those of the plain network: {sizes}"


def _gap(result: Calibration) -> str:
    """How much better any thresholds on the same exits could be on these samples."""
    if result.bound is None:
        return ""
    if result.unit in result.goal:
        return f"no thresholds on these exits exceed {percent(result.bound)} % within this goal (Lagrangian bound)"
    return f"no thresholds on these exits cost less than {cost_text(result.bound, result.unit)} (Lagrangian bound)"


def _promise(result: Calibration) -> str:
    """What is certified, or what it would take."""
    certificate = result.certificate
    if certificate is None:
        return ""
    risk = f"{100 * certificate['risk']:g} point{'' if certificate['risk'] == 0.01 else 's'}"
    delta = certificate["delta"]
    how = "in expectation" if delta is None else f"with probability {1 - delta:g}"
    basis = f"{certificate['samples']:,} samples that were used for nothing else"
    if certificate["certified"]:
        if any(result.enabled[:-1]):
            return f"certified {how}: at most {risk} of accuracy lost against the plain network ({basis})"
        return f"the plain network is kept: no policy that can be certified at {risk} ({how}) saves anything ({basis})"
    needed = certificate["needed"]
    more = (
        f"about {needed:,} calibration samples would be enough, there are {result.samples:,}"
        if needed
        else "no number of samples would be enough, because even the safest policy loses more than that"
    )
    return f"the plain network is kept: a loss of at most {risk} {how} cannot be certified; {more}"
