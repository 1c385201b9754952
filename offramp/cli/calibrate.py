"""offramp calibrate: fit the policy by which samples leave, on the split held out for nothing else."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.config import load_run


def calibrate(
    run: Path,
    *,
    macs: str,
    weights: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fit thresholds by the geometric rule of MSDNet, and choose which exits to evaluate at all.

    Writes `policy.json` into the run (atomically; the old one is kept as policy.json.old).

    Args:
        run: Folder of a trained run.
        macs: Mean operations per image: a fraction of the plain network (up to 1), or a count such as 250M.
        weights: Those of the last epoch, or of the best one on val.
        data_dir: Where the data are, if not where they were.
        json: Print one JSON object.
    """
    result = fit(run, macs, weights, data_dir, show=not json)
    if json:
        emit(result)
    else:
        _show(result)


def parse_macs(text: str, plain: float) -> float:
    """`0.5` -> half of plain; `250M` -> 250e6.

    Raises:
        ValueError: if it is neither.
    """
    suffixes = {"k": 1e3, "M": 1e6, "G": 1e9}
    number, factor = (text[:-1], suffixes[text[-1]]) if text[-1:] in suffixes else (text, 1.0)
    try:
        value = float(number) * factor
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(f"--macs takes a fraction of plain such as 0.5, or a count such as 250M, got {text!r}")
    return value * plain if factor == 1.0 and value <= 1 else value


def fit(run: Path, macs: str, weights: str, data_dir: Path | None, show: bool) -> dict[str, Any]:
    """Calibrate and write the policy; answers what it does on the calibration split."""
    from offramp.adapt import policy
    from offramp.adapt.calibrate import calibrate as search
    from offramp.adapt.calibrate import choices
    from offramp.cli.evaluate import load_data, trace_split
    from offramp.measure.cost import segment_macs
    from offramp.measure.provenance import provenance
    from offramp.train.folder import POLICY

    loaded = load_run(run, weights, with_policy=False)
    parse_macs(macs, 1.0)
    data = load_data(loaded, data_dir, show)
    if "cal" not in data.splits:
        raise ValueError(f"{run} was trained on everything (holdout 0): there is no split to calibrate on")
    traced = trace_split(loaded, data, "cal", show)
    assert traced.labels is not None
    costs = {enabled: segment_macs(loaded.net, data.shape, enabled) for enabled in choices(loaded.net.exits)}
    plain = float(costs[choices(loaded.net.exits)[-1]][0])
    budget = parse_macs(macs, plain)
    outcome = search(traced.logits.numpy(), traced.labels.numpy(), segment_costs=costs, budget=budget)
    accuracy = float((traced.logits[-1].argmax(1) == traced.labels).float().mean())
    about: dict[str, Any] = {
        "goal": {"macs": budget},
        "rule": "geometric (MSDNet), best choice of exits",
        "split": "cal",
        "samples": len(traced.labels),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        "expected": {"accuracy": outcome.accuracy, "macs": outcome.cost, "shares": outcome.shares},
        "plain": {"accuracy": accuracy, "macs": plain},
        **provenance(),
    }
    policy.save(outcome.policy, run / POLICY, about)
    return {
        "run": str(run),
        "policy": str(run / POLICY),
        "thresholds": outcome.policy.thresholds,
        "enabled": outcome.policy.enabled,
        **about,
    }


def _show(result: dict[str, Any]) -> None:
    from offramp.adapt.policy import NEVER
    from offramp.cli._show import count, percent, stdout, table

    last = len(result["enabled"]) - 1
    rows = []
    for exit, (on, threshold) in enumerate(zip(result["enabled"], result["thresholds"], strict=True)):
        level = (
            "off" if not on else "all" if exit == last else "nobody" if threshold >= NEVER else f">= {threshold:.4f}"
        )
        rows.append(
            ["final" if exit == last else f"exit {exit + 1}", level, percent(result["expected"]["shares"][exit])]
        )
    title = f"{result['policy']}: fitted on {result['samples']:,} samples of cal"
    stdout.print(table(title, ["exit", "leave if confidence", "leave here %"], rows), soft_wrap=True)
    expected, plain = result["expected"], result["plain"]
    stdout.print(
        f"expected: accuracy {percent(expected['accuracy'])} % at {count(expected['macs'])} MACs; "
        f"plain: {percent(plain['accuracy'])} % at {count(plain['macs'])}",
        highlight=False,
        soft_wrap=True,
    )
