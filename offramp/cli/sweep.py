"""offramp sweep: train with many values of options through Ray Tune, and choose the best ones on val."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from offramp.cli import show
from offramp.cli._options import ConfigFile, ConfigOptions, Dotted, Json, RecipeName, config_of
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
    jobs: int | Literal["auto"] = "auto",
    address: str | None = None,
    fetch: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
    recipe: RecipeName = None,
) -> None:
    """Train with many values of options, and choose the best ones on val (Ray Tune).

    Takes the options of `offramp train` for all trainings. The same command continues a stopped sweep.

    Args:
        out: Folder of the sweep; each training is a run in it, with a line in results.jsonl if it was not stopped.
        grid: Values of an option, as in `lr=0.05,0.1` or `method.alpha=0.1,0.5`; repeat it for further options.
        metric: What is maximised on val: `accuracy` (mean over the exits), `final` (the final exit) or `frontier` (area
            under the accuracy of the exits over their multiply-adds).
        samples: Number of combinations to draw; default: all are trained.
        search: `all` combinations, `random` draws, or `optuna`, which learns from earlier trainings.
        scheduler: `asha` stops trainings that are behind others after as many epochs; `none` trains all to the end.
        jobs: Number of trainings at a time (on a cluster: on each node), as in `offramp compare`.
        address: HOST:PORT of a Ray cluster's head; default: $RAY_ADDRESS, a cluster of this machine, or a new one.
        fetch: The nodes of the cluster do not see --out: each run is trained in a temporary folder of its node and
            fetched.
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
