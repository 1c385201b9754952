"""offramp evaluate: accuracy and cost of every exit on test, and of early exit compared with the plain network."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from offramp.cli import show
from offramp.cli._options import BaselinePath, DataDir, Device, Json, Weights


def evaluate(
    run: Path,
    *,
    weights: Weights = "last",
    data_dir: DataDir = None,
    device: Device = "auto",
    batch_size: int = 64,
    baseline: BaselinePath = None,
    frontier: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Measure accuracy and cost of every exit on test; with a policy, early exit compared with the plain network.

    Args:
        run: Folder of a trained run, or of a comparison (all its finished runs).
        batch_size: Batch size at which times are measured.
        frontier: Also fit policies on cal for ten budgets: the cost of early exit at any accuracy, which `offramp
            compare` needs. With --baseline they are always fitted.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.comparison_folder import COMPARISON
    from offramp.runs.evaluate import evaluate as evaluate_run
    from offramp.runs.evaluate import evaluate_comparison

    task = evaluate_comparison if (run / COMPARISON).is_file() else evaluate_run
    reporter = ConsoleReporter(not json)
    result = task(
        run,
        weights=weights,
        data_dir=data_dir,
        device=device,
        batch_size=batch_size,
        baseline=baseline,
        frontier=frontier,
        reporter=reporter,
    )
    show(result, json)
