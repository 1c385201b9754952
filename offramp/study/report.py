"""One HTML file that shows what trained runs do: accuracy against cost, who leaves where, the images, the training.

It needs neither a network nor a script to be read: pictures are SVG and PNG within the file.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import accumulate
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.measure.accuracy import Bins, reliability
from offramp.measure.chart import STYLE
from offramp.measure.cost import as_run
from offramp.measure.plain_network import plain_note
from offramp.measure.units import count, decimal, percent
from offramp.study import analyses, figures
from offramp.study.curve_tables import cell
from offramp.study.exit_decisions import ExitDecisions, by_class, extremes, single_exit
from offramp.study.report_groups import groups_of
from offramp.study.run_report import RunReport
from offramp.study.thumbnails import SIDE, thumbnail
from offramp.text import printable

CLASSES = 5
"""How many classes are shown of those that leave earliest, and of those that leave latest."""


def page(runs: Sequence[RunReport], provenance: Mapping[str, Any]) -> str:
    """The report as HTML.

    Args:
        runs: their names all different.
        provenance: of the report itself; but for its date the same runs give the same page.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"percent": percent, "count": count, "share": three_digits, "over_seeds": over_seeds}
    folder = files("offramp.study")
    style = STYLE + folder.joinpath("report.css").read_text(encoding="utf-8")
    template = environment.from_string(folder.joinpath("report.html").read_text(encoding="utf-8"))
    groups = groups_of(runs)
    html = template.render(
        runs=[_view(run) for run in runs],
        against=figures.against_cost({one.curves.name: {**vars(one.curves), "policy": one.policy} for one in groups}),
        groups=[one for one in groups if len(one.curves.runs) > 1],
        sources=_sources(runs),
        style=Markup(style),
        provenance=provenance,
    )
    return f"{html.strip()}\n"


def _shown(value: Any) -> Any:
    """A value as the page shows it: names have no control characters; pictures and style are our own."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _sources(runs: Sequence[RunReport]) -> list[str]:
    """The data that the runs are of, each once: runs of the same images with other classes do not compare either."""
    sources = dict.fromkeys((str(run.config["data"]), tuple(run.classes)) for run in runs)
    names = [name for name, _ in sources]
    return [f"{name} in {len(classes)} classes" if names.count(name) > 1 else name for name, classes in sources]


def over_seeds(point: Mapping[str, Any]) -> str:
    """Accuracy of a point in percent, with its deviation."""
    return cell(point, "accuracy")


def three_digits(value: float) -> str:
    """A probability or score to three digits; one that only rounds to 0 or 1 says so."""
    if 0 < value < 0.0005:
        return "< 0.001"
    return "> 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def _view(run: RunReport) -> dict[str, Any]:
    """What the template needs of one run."""
    assert run.trace.labels is not None
    bins = reliability(run.trace.logits, run.trace.labels)
    names = [figures.exit_name(exit, run.exits) for exit in range(run.exits)]
    budgeted = run.curves["budgeted"]
    return {
        "run": run,
        "baseline": run.curves.get("baseline"),
        "note": plain_note([point["accuracy"] for point in run.curves["anytime"]]),
        "title": "{method} on {net} with {branch} exits, {data}".format_map(run.config),
        "exits": _exits(run, names, bins),
        "costs": _costs(run, names),
        "budgets": figures.over_budgets(budgeted) if budgeted else None,
        "shades": [figures.shade(exit, run.exits) for exit in range(run.exits)],
        "classes": _classes(run),
        "diagrams": [figures.diagram(calibration, name) for calibration, name in zip(bins, names, strict=True)],
        "bins": bins,
        "images": _images(run, names) if run.pictures and run.images else [],
        "deeper": _deeper(run, names),
        "training": figures.training(run.history),
        "learned": figures.learned(run.history, run.exits),
    }


def _deeper(run: RunReport, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per exit: later errors, agreement with the final exit, softmax statistics, images only it gets right."""
    logits, ids = run.trace.logits.numpy(), run.trace.ids.numpy()
    right = analyses.correct(logits, run.labels)
    wrong, agreement = [*analyses.go_wrong(right), None], [*analyses.agreement(right), None]
    rows = []
    for exit, places in enumerate(analyses.only_correct(right)):
        selected = places[: run.images] if run.pictures else places[:0]
        pixels = run.pictures(ids[selected]) if run.pictures and len(selected) else []
        single = single_exit(logits[exit], run.labels, exit)
        rows.append(
            {
                "name": names[exit],
                "wrong": wrong[exit],
                "agreement": agreement[exit],
                "softmax": analyses.softmax_statistics(logits[exit]),
                "alone": len(places),
                "cards": [
                    _card(run, single, place, image) for place, image in zip(selected.tolist(), pixels, strict=True)
                ],
            }
        )
    return rows


def _exits(run: RunReport, names: Sequence[str], bins: Sequence[Bins]) -> list[dict[str, Any]]:
    """A row per exit: how often right, and who leaves there under the policy."""
    rows = []
    for exit, name in enumerate(names):
        row = {
            "name": name,
            "accuracy": run.summary["accuracy"][exit],
            "top5": run.summary["top5"][exit],
            "error": bins[exit].error,
            "auroc": decimal(run.auroc[exit] if run.auroc else None),
            "macs": run.network.exits[exit].macs,
            "of_plain": run.network.exits[exit].share,
        }
        if run.policy and run.leaving and run.decisions is not None:
            part, exits_here = run.leaving["shares"][exit], run.decisions.exit == exit
            right = (run.decisions.answer == run.labels)[exits_here]
            row |= {
                "rule": _rule(run.policy, exit),
                "share": part,
                "bar": figures.bar([part], f"{percent(part)} % exit at {name}"),
                "right": float(right.mean()) if len(right) else None,
                "cost": run.prices[exit] if run.policy.enabled[exit] else None,
            }
        rows.append(row)
    return rows


def _rule(policy: ExitPolicy, exit: int) -> str:
    """The condition of an exit, in words."""
    if not policy.enabled[exit]:
        return "off"
    if exit == policy.exits - 1:
        return "always"
    if policy.score == "patience":
        return f"{policy.patience} equal predictions in a row"
    threshold = policy.thresholds[exit]
    return "never" if threshold >= NEVER else f"{policy.score} ≥ {threshold:.4f}"


def _costs(run: RunReport, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per exit: its stage and branch, and its cost by every convention."""
    enabled = run.policy.enabled if run.policy else (True,) * run.exits
    segments = iter(as_run(run.pieces, enabled))
    timed = accumulate(as_run(run.ms)) if run.ms else iter([None] * run.exits)
    return [
        {
            "name": name,
            "stage": run.pieces.stages[exit],
            "branch": run.pieces.branches[exit],
            "blocks": run.network.stages[exit].blocks,
            "parameters": run.network.exits[exit].branch_parameters,
            "segment": next(segments) if enabled[exit] else None,
            "counted": run.network.exits[exit],
            "stage_ms": run.ms.stages[exit] if run.ms else None,
            "branch_ms": run.ms.branches[exit] if run.ms else None,
            "ms": next(timed),
        }
        for exit, name in enumerate(names)
    ]


def _classes(run: RunReport) -> dict[str, Any] | None:
    """The classes that exit earliest and latest under the policy; all of them if there are few."""
    if run.decisions is None:
        return None
    classes = by_class(run.decisions, run.labels, run.prices)
    few = len(classes) <= 2 * CLASSES
    chosen = classes if few else [*classes[:CLASSES], *classes[-CLASSES:]]
    plain = run.curves["plain"]["cost"]
    rows = [
        {
            "name": run.classes[row.label],
            "samples": row.samples,
            "bar": figures.bar(row.shares, ", ".join(f"{100 * part:.0f} %" for part in row.shares)),
            "early": row.shares[0],
            "final": row.shares[-1],
            "accuracy": row.accuracy,
            "of_plain": row.cost / plain,
        }
        for row in chosen
    ]
    return {"rows": rows, "all": few, "of": len(classes), "gap": None if few else CLASSES}


def _images(run: RunReport, names: Sequence[str]) -> list[dict[str, Any]]:
    """The easiest and the hardest images of every exit."""
    assert run.pictures is not None
    logits, ids = run.trace.logits.numpy(), run.trace.ids.numpy()
    sections = []
    for exit, name in enumerate(names):
        if run.policy and not run.policy.enabled[exit]:
            continue
        decisions = run.decisions if run.decisions is not None else single_exit(logits[exit], run.labels, exit)
        chosen = extremes(decisions, exit, run.images)
        places = np.array([*chosen[0], *chosen[1]], np.int64)
        pixels = run.pictures(ids[places]) if len(places) else []
        cards = [_card(run, decisions, place, image) for place, image in zip(places.tolist(), pixels, strict=True)]
        sections.append({"name": name, "easy": cards[: len(chosen[0])], "hard": cards[len(chosen[0]) :]})
    return sections


def _card(run: RunReport, decisions: ExitDecisions, place: int, image: Any) -> dict[str, Any]:
    """One image with its prediction at its exit."""
    return {
        "src": thumbnail(image),
        "small": max(image.shape[1:]) < SIDE,
        "true": run.classes[run.labels[place]],
        "said": run.classes[decisions.answer[place]],
        "right": bool(decisions.answer[place] == run.labels[place]),
        "probability": float(np.exp(decisions.likelihood[place])),
        "score": float(decisions.score[place]),
        "id": int(run.trace.ids[place]),
    }
