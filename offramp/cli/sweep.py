"""offramp sweep: train with many values of options through Ray Tune, and choose the best ones on val."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from offramp.cli import show
from offramp.cli._options import Address, ConfigFile, ConfigOptions, Dotted, Fetch, Jobs, Json, RecipeName, config_of
from offramp.cli._parse import parse_grid


def sweep(
    config: ConfigOptions = ConfigOptions(),  # noqa: B008
    *,
    out: Path,
    grid: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    metric: str = "accuracy",
    samples: int | None = None,
    search: str = "all",
    scheduler: str = "none",
    jobs: Jobs = "auto",
    address: Address = None,
    fetch: Fetch = False,
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
    recipe: RecipeName = None,
) -> None:
    """Search over values of options with Ray Tune, and select the best run on val.

    Takes the options of `offramp train`, for all runs. The same command continues a stopped sweep.

    Args:
        out: Folder of the sweep and its runs; every run that was trained to the end adds a line to results.jsonl.
        grid: Values of an option, as in `lr=0.05,0.1` or `method.alpha=0.1,0.5`; repeat it for further options.
        metric: What is maximised on val: `accuracy` (mean accuracy of the exits), `final` (accuracy of the final exit)
            or `frontier` (area under the curve of accuracy against multiply-adds).
        samples: Number of combinations to draw; default: all.
        search: How combinations are chosen: `all`, `random`, or `optuna`, which uses the results of earlier runs.
        scheduler: `asha`: stop runs early that are worse than others after the same number of epochs (asynchronous
            successive halving); `none`: train all to the end.
    """
    from offramp.cli._compare_progress import CompareProgress
    from offramp.runs.sweep import sweep as run_sweep

    result = run_sweep(
        config_of(config, option),
        parse_grid(grid or []),
        out,
        metric=metric,
        samples=samples,
        search=search,
        scheduler=scheduler,
        jobs=jobs,
        address=address,
        fetch=fetch,
        reporter=CompareProgress(not json),
    )
    show(result, json)
    if any(trial.failure for trial in result.trials):
        raise SystemExit(1)
