"""The score `learned` of a run: predictors that are fitted on val, where no threshold is."""

from pathlib import Path
from typing import TYPE_CHECKING

from offramp.lookup import with_parameters
from offramp.runs.reporting import Reporter
from offramp.runs.run import LoadedRun

if TYPE_CHECKING:
    from offramp.early_exit.exit_scores import Rule


def learned_rule(
    loaded: LoadedRun, rule: "Rule", weights: str, data_dir: Path | str | None, reporter: Reporter
) -> "Rule":
    """The rule with a predictor for every early exit, and with temperatures if they are to be fitted: all on val.

    Raises:
        ValueError: if images of val are in cal too, or there is no val.
    """
    import numpy as np

    from offramp.early_exit import fit_learned, temperature
    from offramp.runs import split
    from offramp.runs.traces import arrays_of, split_traces

    record = split.read(loaded.folder)
    if record is not None and np.isin(record.splits.get("cal", ()), record.splits.get("val", ())).any():
        raise with_parameters(
            ValueError(
                f"{loaded.folder} has the same images in val and cal: score=learned fits its predictors on val, and "
                "thresholds must be fitted on others; take another score"
            ),
            "score",
        )
    trace = split_traces(loaded, ("val",), weights, data_dir, reporter)["val"]
    logits, labels = arrays_of(trace)
    if not rule.temperatures:
        rule = rule._replace(temperatures=temperature.fit(logits, labels))
    return rule._replace(predictors=fit_learned.fit(logits, labels, rule))
