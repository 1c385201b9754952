"""offramp predict: run a bundle on image files; torch is not needed."""

import csv as csv_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit_result
from offramp.cli._options import Json
from offramp.lookup import ParameterError
from offramp.measure.units import percent
from offramp.text import csv_cell, shell_word

if TYPE_CHECKING:
    from offramp.bundle.predict import Prediction
    from offramp.bundle.predict_files import Predictions, PredictionStream


def predict(
    bundle: Path,
    *images: Path,
    runtime: Literal["onnx", "onnx-cuda", "onnx-tensorrt", "openvino"] = "onnx",
    batch_size: int = 1,
    first: int | None = None,
    from_: Annotated[int | None, Parameter(name="--from")] = None,
    state: Path | None = None,
    json: Json = False,
    csv: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Predict images with a bundle: label, probability, exit and time.

    Exits are counted from 1, from shallow to deep, in tables, CSV and JSON. The exit status is 1 if an image could not
    be read.

    Args:
        bundle: Folder that `offramp export` wrote.
        images: Image files, and folders of images.
        runtime: Runtime, in float32: onnx and openvino on the CPU, onnx-cuda and onnx-tensorrt on a GPU.
        batch_size: Images per batch; above 1, the time of an image is its share of the time of the batch.
        first: Run only the first N segments; images that have not exited are written to --state.
        from_: Continue after the first N segments with the images in --state.
        state: File that --first writes and --from reads.
        csv: Print comma-separated values.
    """
    if json and csv:
        raise ParameterError("--json and --csv cannot be combined")
    from offramp.bundle import predict_files

    words: dict[str, Any] = {
        "runtime": runtime,
        "batch_size": batch_size,
        "first": first,
        "from_": from_,
        "state": state,
    }
    if csv:
        stream = predict_files.predict_stream(bundle, images, **words)
        _end(_csv(stream), stream.total)
        return
    result = predict_files.predict(bundle, images, **words, progress=_progress(not json), each=_show_error)
    if json:
        emit_result(result)
    else:
        _table(result, first)
    _end(result.failed, len(result.images))


def _end(failed: int, total: int) -> None:
    """Exit with status 1 if images could not be read."""
    if failed:
        rest = "; the others were predicted" if failed < total else ""
        print(f"offramp: {failed} of {total} could not be read{rest}", file=sys.stderr)
        raise SystemExit(1)


def _progress(show: bool) -> Any:
    """A progress bar if there are many images."""
    from offramp.cli._console import working

    return lambda text, total: working(text, total, show and total > 20)


def _show_error(image: "Prediction") -> None:
    from offramp.cli._console import stderr

    if image.error is not None:
        stderr.print(f"offramp: {image.image}: {image.error}", highlight=False, soft_wrap=True, markup=False)


def _csv(stream: "PredictionStream") -> int:
    """Print the predictions as they come; how many have an error."""
    from offramp.bundle.predict import Prediction

    failed, exits = 0, stream.bundle.manifest.exits
    writer = csv_format.DictWriter(sys.stdout, [*Prediction("").row(exits), "device"], lineterminator="\n")
    writer.writeheader()
    for image in stream.predictions:
        _show_error(image)
        row = {**image.row(exits), "device": stream.device}
        writer.writerow({key: csv_cell(value) for key, value in row.items()})
        failed += image.error is not None
    return failed


def _table(result: "Predictions", first: int | None) -> None:
    from offramp.cli._console import console, stdout, table

    lines = []
    for image in result.images:
        if image.error is None:
            last = image.exit is not None and image.exit + 1 == result.exits
            exit = "continues" if image.exit is None else "final" if last else f"exit {image.exit + 1}"
            ms = "–" if image.ms is None else f"{image.ms:.2f}"
            lines.append([image.image, image.label or "–", percent(image.probability), exit, ms])
    if lines:
        output = table("", ["image", "label", "probability %", "exit", f"ms on {result.device}"], lines)
        output.columns[0].overflow = output.columns[1].overflow = "fold"  # a name that is cut off names nothing
        # What is piped elsewhere is one line per image, however long its path.
        out = stdout if stdout.is_terminal else console(width=10_000)
        out.print(output, soft_wrap=True)
    if result.state is not None:
        rest = f"{shell_word(result.bundle)} --from {first} --state {shell_word(result.state)}"
        text = f"{result.continuing} of {len(lines)} continue with `offramp predict {rest}`"
        stdout.print(text, highlight=False, soft_wrap=True, markup=False)
