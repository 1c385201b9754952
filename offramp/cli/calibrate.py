"""offramp calibrate: fit the policy by which samples leave, on the split held out for nothing else."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from offramp.cli import emit
from offramp.measure.units import count, percent
from offramp.runs import LoadedRun, load_run
from offramp.runs.goal import Wish, parse_macs

if TYPE_CHECKING:
    from numpy import ndarray

    from offramp.early_exit.calibrate import Outcome, TooCheap
    from offramp.early_exit.certify import Certificate
    from offramp.early_exit.exit_scores import Rule

GOAL = Group("Goal (exactly one)")


def calibrate(
    run: Path,
    *,
    macs: Annotated[str | None, Parameter(group=GOAL)] = None,
    ms: Annotated[float | None, Parameter(group=GOAL)] = None,
    max_drop: Annotated[float | None, Parameter(group=GOAL)] = None,
    target_accuracy: Annotated[float | None, Parameter(group=GOAL)] = None,
    risk: Annotated[float | None, Parameter(group=GOAL)] = None,
    delta: float | None = None,
    save: Literal["macs", "ms"] | None = None,
    batch_size: int = 64,
    runtime: Literal["torch", "torch-bf16", "onnx", "openvino"] | None = None,
    score: Literal["confidence", "margin", "entropy", "patience"] = "confidence",
    answer: Literal["exit", "arithmetic", "geometric", "sum"] = "exit",
    temperatures: str = "1",
    weights: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fit thresholds for a goal, and choose which exits to evaluate at all, down to the plain network.

    Writes `policy.json` into the run (atomically; the old one is kept as policy.json.old).

    Args:
        run: Folder of a trained run.
        macs: Mean operations per image: a fraction of the plain network (up to 1), or a count such as 250M.
        ms: Mean milliseconds per image at --batch-size, measured here and now.
        max_drop: Points of accuracy that may be lost against the plain network, at the least cost.
        target_accuracy: Accuracy in percent to reach at the least cost.
        risk: Bound on the expected accuracy lost against the plain network, such as 0.01.
        delta: With --risk: the bound holds with probability 1 - delta over the calibration images.
        save: What to save where the goal is no cost: macs (the default) or ms.
        batch_size: Batch size at which milliseconds are measured.
        runtime: What milliseconds are measured in: where the network is to answer. torch in the run's own precision
            by default.
        score: How certain an exit is.
        answer: What a sample takes along: the exit's own answer, or an ensemble's of the enabled exits passed.
        temperatures: `fit` by the likelihood of cal, a number, or one per exit with commas between.
        weights: Those of the last epoch, or of the best one on val.
        data_dir: Where the data are, if not where they were.
        json: Print one JSON object.
    """
    from offramp.early_exit.exit_scores import Rule

    wish = Wish(macs, ms, max_drop, target_accuracy, risk, delta, save, batch_size, runtime, temperatures)
    result = fit(run, wish, Rule(score, answer), weights, data_dir, show=not json)
    if json:
        emit(result)
    else:
        _show(result)


def fit(run: Path, wish: Wish, rule: "Rule", weights: str, data_dir: Path | None, show: bool) -> dict[str, Any]:
    """Calibrate and write the policy; answers what it does on the calibration split."""
    from offramp.early_exit import policy, temperature
    from offramp.early_exit.calibrate import choices
    from offramp.measure.provenance import provenance
    from offramp.runs.traces import calibration_trace
    from offramp.train.run_dir import POLICY

    loaded = load_run(run, weights, with_policy=False)
    exits = loaded.net.exits
    rule = rule._replace(temperatures=wish.temperature_list(exits))
    traced = calibration_trace(loaded, weights, data_dir, show)
    assert traced.labels is not None
    logits, labels = traced.logits.numpy(), traced.labels.numpy()
    costs, measured = _costs(loaded, wish, rule, show)
    if wish.risk is None and not rule.temperatures:
        rule = rule._replace(temperatures=temperature.fit(logits, labels))
    outcome, goal, certificate = _reach(wish, logits, labels, costs, rule)
    alone = costs[choices(exits)[-1]][0]
    plain = certificate["plain"] if certificate else float((logits[-1].argmax(1) == labels).mean())
    about: dict[str, Any] = {
        "goal": goal,
        "rule": "certified path" if certificate else "search",
        "split": "cal",
        "samples": len(labels),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        "expected": {"accuracy": outcome.accuracy, wish.unit: outcome.cost, "shares": outcome.shares},
        "plain": {"accuracy": plain, wish.unit: alone},
        "bound": outcome.bound,
        "certificate": certificate,
        **measured,
        **provenance(),
    }
    policy.save(outcome.policy, run / POLICY, about)
    chosen = {key: getattr(outcome.policy, key) for key in policy.FIELDS}
    return {"run": str(run), "policy": str(run / POLICY), "unit": wish.unit, **chosen, **about}


def _reach(
    wish: Wish, logits: "ndarray", labels: "ndarray", costs: dict[tuple[bool, ...], list[Any]], rule: "Rule"
) -> tuple["Outcome", dict[str, Any], dict[str, Any] | None]:
    """The policy that reaches the goal, the goal in plain numbers, and the certificate if there is one."""
    from offramp.early_exit.calibrate import TooCheap, choices
    from offramp.early_exit.calibrate import calibrate as search
    from offramp.early_exit.certify import certify

    plain_cost = float(costs[choices(len(logits))[-1]][0])
    right = int((logits[-1].argmax(1) == labels).sum())
    if wish.risk is not None:
        found = certify(
            logits,
            labels,
            segment_costs=costs,
            risk=wish.risk,
            delta=wish.delta,
            rule=rule,
            fit_temperatures=not rule.temperatures,
        )
        return found.outcome, {"risk": wish.risk, "delta": wish.delta}, _certificate(found)
    if wish.macs is not None or wish.ms is not None:
        budget = wish.ms if wish.macs is None else parse_macs(wish.macs, plain_cost)
        try:
            return search(logits, labels, segment_costs=costs, budget=budget, rule=rule), {wish.unit: budget}, None
        except TooCheap as error:
            raise ValueError(_too_cheap(wish, error, plain_cost)) from None
    if wish.max_drop is not None:
        wanted = max(0.0, right / len(labels) - wish.max_drop / 100)
        goal = {"max_drop": wish.max_drop / 100, "accuracy": wanted}
    else:
        assert wish.target_accuracy is not None
        wanted = wish.target_accuracy / 100
        goal = {"accuracy": wanted}
    return search(logits, labels, segment_costs=costs, accuracy=wanted, rule=rule), goal, None


def _too_cheap(wish: Wish, error: "TooCheap", plain: float) -> str:
    """The budget as it was typed, and what the cheapest policy costs."""
    cheapest = f"{error.cheapest / plain:.2f} of plain ({_cost(error.cheapest, wish.unit)})"
    if wish.macs is None:
        return f"no policy is that fast: --ms {wish.ms:g} is asked for, the cheapest takes {cheapest}"
    hint = "" if wish.macs[-1] in "kMG" or error.budget > 1000 else ", since only values up to 1 are fractions of plain"
    counted = _cost(error.budget, "macs") + (hint if float(wish.macs.rstrip("kMG")) > 1 else "")
    return f"no policy is that cheap: --macs {wish.macs} is {counted}; the cheapest costs {cheapest}"


def _certificate(found: "Certificate") -> dict[str, Any]:
    import dataclasses

    return {key: value for key, value in dataclasses.asdict(found).items() if key != "outcome"}


def _costs(
    loaded: LoadedRun, wish: Wish, rule: "Rule", show: bool
) -> tuple[dict[tuple[bool, ...], list[Any]], dict[str, Any]]:
    """What every segment costs for every choice of exits, counted or measured; and where it was measured."""
    from offramp.early_exit.calibrate import choices
    from offramp.measure.cost import as_run, measure
    from offramp.runs.latency import timed

    if wish.unit == "ms":
        priced, about = timed(loaded, wish.batch_size, rule, wish.runtime, show)
    else:
        priced, about = partial(as_run, measure(loaded.net, tuple(loaded.about["shape"]))), {}
    return {enabled: priced(enabled) for enabled in choices(loaded.net.exits)}, about


def _show(result: dict[str, Any]) -> None:
    from offramp.cli._console import stdout, table

    last = len(result["enabled"]) - 1
    asked = [result["patience"]] * last if result["score"] == "patience" else result["thresholds"]
    rows = []
    for exit, on in enumerate(result["enabled"]):
        level = "off" if not on else "all" if exit == last else _level(asked[exit], result["score"])
        name = "final" if exit == last else f"exit {exit + 1}"
        rows.append([name, level, percent(result["expected"]["shares"][exit])])
    title = f"{result['policy']}: fitted on {result['samples']:,} samples of cal"
    stdout.print(table(title, ["exit", f"leave if {result['score']}", "leave here %"], rows), soft_wrap=True)
    for line in (_expectation(result), _measured(result), _gap(result), _promise(result)):
        if line:
            stdout.print(line, highlight=False)


def _level(asked: float, score: str) -> str:
    from offramp.early_exit.policy import NEVER

    if asked >= NEVER:
        return "nobody"
    return f">= {asked}" if score == "patience" else f">= {asked:.4f}"


def _cost(value: int | float, unit: str) -> str:
    return f"{count(value)} MACs" if unit == "macs" else f"{value:.4g} ms"


def _expectation(result: dict[str, Any]) -> str:
    expected, plain, unit, made = result["expected"], result["plain"], result["unit"], result["certificate"]
    where = "" if made is None else f" on the {made['samples']:,} samples that certify"
    return (
        f"expected{where}: accuracy {percent(expected['accuracy'])} % at {_cost(expected[unit], unit)}; "
        f"plain: {percent(plain['accuracy'])} % at {_cost(plain[unit], unit)}"
    )


def _measured(result: dict[str, Any]) -> str:
    """Where milliseconds come from."""
    if result["unit"] != "ms":
        return ""
    threads = f"{result['threads']} thread{'' if result['threads'] == 1 else 's'} of the CPU"
    where = "the GPU" if result["device"] == "cuda" else threads
    return f"measured in {result['runtime']} at batch {result['batch_size']} on {where}"


def _gap(result: dict[str, Any]) -> str:
    """How much better any thresholds on the same exits could be on these samples."""
    bound, unit = result["bound"], result["unit"]
    if bound is None:
        return ""
    if unit in result["goal"]:
        return f"no thresholds on these exits exceed {percent(bound)} % within it (Lagrangian bound)"
    return f"no thresholds on these exits cost less than {_cost(bound, unit)} (Lagrangian bound)"


def _promise(result: dict[str, Any]) -> str:
    """What is certified, or what it would take."""
    made = result["certificate"]
    if made is None:
        return ""
    risk = f"{100 * made['risk']:g} point{'' if made['risk'] == 0.01 else 's'}"
    how = "in expectation" if made["delta"] is None else f"with probability {1 - made['delta']:g}"
    basis = f"{made['samples']:,} samples that chose nothing else"
    if made["certified"]:
        if any(result["enabled"][:-1]):
            return f"certified {how}: at most {risk} of accuracy lost against the plain network ({basis})"
        return f"the plain network is kept: what can be certified at {risk} ({how}) saves nothing ({basis})"
    needed = made["needed"]
    more = (
        f"about {needed:,} calibration samples would do, there are {result['samples']:,}"
        if needed
        else "no number of samples would do, because even the safest policy loses more than that"
    )
    return f"the plain network is kept: a loss of at most {risk} {how} cannot be certified; {more}"
