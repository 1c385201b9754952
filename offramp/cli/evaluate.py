"""offramp evaluate: accuracy and cost of every exit on test, and of early exit compared with the plain network."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import show
from offramp.cli._options import BaselinePath, DataDir, Device, Dotted, Json, Weights, by_kind
from offramp.lookup import ParameterError


def evaluate(
    run: Path,
    *,
    data: str | None = None,
    weights: Weights = "last",
    data_dir: DataDir = None,
    device: Device = "auto",
    runtime: Literal["onnx", "onnx-cuda", "onnx-tensorrt", "openvino"] | None = None,
    batch_size: int = 64,
    baseline: BaselinePath = None,
    frontier: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    option: Dotted = None,
) -> None:
    """Measure accuracy and cost of every exit on test; with a policy, early exit compared with the plain network.

    Args:
        run: Folder of a trained run, of a comparison (all its finished runs), or of a bundle.
        data: For a bundle: labelled images, such as folder:PATH (`offramp data`); `--data.KEY` sets the parameters of
            the source. Default: the test split of the data set of its run.
        runtime: For a bundle, the runtime; default: onnx.
        batch_size: Batch size at which times are measured.
        frontier: Also fit policies on cal for ten budgets, which give the cost of early exit at any accuracy; `offramp
            compare` needs them. With --baseline they are always fitted.
    """
    from offramp.bundle.manifest import MANIFEST
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.comparison_folder import COMPARISON
    from offramp.runs.evaluate import evaluate as evaluate_run
    from offramp.runs.evaluate import evaluate_comparison
    from offramp.runs.evaluate_bundle import evaluate_bundle

    reporter = ConsoleReporter(not json)
    options = _data_options(option or [])
    if (run / MANIFEST).is_file():
        chosen = {"weights": weights != "last", "device": device != "auto", "baseline": baseline, "frontier": frontier}
        _refuse(chosen, f"is for a run, and {run} is a bundle")
        shipped = evaluate_bundle(
            run,
            data,
            data_options=options,
            data_dir=data_dir,
            runtime=runtime or "onnx",
            batch_size=batch_size,
            reporter=reporter,
        )
        show(shipped, json)
        return
    _refuse({"data": data or options, "runtime": runtime}, f"is for a bundle, and {run} is not one")
    task = evaluate_comparison if (run / COMPARISON).is_file() else evaluate_run
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


def _data_options(words: list[str]) -> dict[str, Any]:
    """The parameters of the data source, the only ones that are taken here."""
    for kind in by_kind(words):
        if kind != "data_options":
            raise ParameterError(f"--{kind.partition('_')[0]}.KEY is for train: evaluate takes --data.KEY alone")
    return dict(by_kind(words).get("data_options", {}))


def _refuse(options: dict[str, Any], why: str) -> None:
    """Refuse options that were given.

    Raises:
        ParameterError: naming the first of them.
    """
    for name, value in options.items():
        if value:
            raise ParameterError(f"{name} {why}: leave it out", name)
