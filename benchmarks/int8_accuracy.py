"""Ways to quantise a trained run, compared on val and cal: the accuracy that each exit loses relative to float32.

    python benchmarks/int8_accuracy.py RUN [--data-dir DIR] [--variants NAMES] [--json]

Ranges come from 256 images of cal, as in `offramp export --int8`; accuracy is measured on val and on the other images
of cal, never on test. `rms` is the root mean square of the difference of an exit's logits from float32, in units of
those of float32: it has less noise than the accuracy. `openvino` runs the files of `export` in OpenVINO; `nncf` is
OpenVINO's own post-training quantisation, in OpenVINO too (needs nncf). About a minute on one core with
EfficientNet-Lite0 at 96 pixels and 5,000 images.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offramp.bundle import quantise
from offramp.bundle.onnx import export_segments
from offramp.bundle.quantise import BATCH, quantised
from offramp.bundle.sessions import LOGITS, ArraySegment, open_segment
from offramp.bundle.write import preprocessing_of
from offramp.measure.provenance import provenance
from offramp.net import segments

RANGES = 256
Segments = list[ArraySegment]


class Task(NamedTuple):
    """Segments in float32 with their entries of the manifest, images for the ranges, images and labels to test on."""

    models: list[bytes]
    parts: list[Any]
    ranges: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    normalise: Callable[[Any], Any]


def task_of(run: Path, data_dir: Path | None) -> Task:
    """The task of a run."""
    from offramp.runs import load_run
    from offramp.runs.reporting import SILENT
    from offramp.runs.run_data import load_data

    loaded = load_run(run, with_policy=False, device="cpu")
    data = load_data(loaded, data_dir, SILENT)
    exported = list(export_segments(segments(loaded.inference_net.float()), range(loaded.net.exits), data.shape))
    cal, val, normalise = data.splits["cal"], data.splits["val"], preprocessing_of(data).normalise
    taken = np.arange(min(RANGES, len(cal) // 2)) * 2
    others = np.concatenate([val.indices, np.delete(cal.indices, taken)])
    source = cal.source
    return Task(
        [model for model, _ in exported],
        [spec for _, spec in exported],
        normalise(source.batch(cal.indices[taken])),
        source.batch(others),
        source.labels[others],
        normalise,
    )


def logits_of(task: Task, parts: Sequence[ArraySegment]) -> np.ndarray:
    """Logits (E, N, C) of every exit."""
    batches = []
    for start in range(0, len(task.pixels), 64):
        state: Any = task.normalise(task.pixels[start : start + 64])
        carry: Any = ()
        exits = []
        for part in parts:
            state, carry, logits = part(state, carry)
            exits.append(logits)
        batches.append(np.stack(exits))
    return np.concatenate(batches, axis=1)


def shipped(task: Task, runtime: str = "onnx") -> Segments:
    """As `offramp export --int8` quantises."""
    models = quantised(task.models, task.parts, task.ranges)
    return [open_segment(model, spec, runtime, threads=1) for model, spec in zip(models, task.parts, strict=True)]


def onnx_runtime(task: Task, first: bool = False, **options: Any) -> Segments:
    """ONNX Runtime's own quantisation with these options; `first`: the first convolution stays in float32."""
    import onnxruntime.quantization as library

    values = {"activation_type": "QUInt8", "weight_type": "QInt8", "calibrate_method": "MinMax", "per_channel": True}
    values |= options
    kinds = {"activation_type": library.QuantType, "weight_type": library.QuantType}
    kinds |= {"calibrate_method": library.CalibrationMethod}
    options = {name: getattr(kinds[name], value) if name in kinds else value for name, value in values.items()}

    def convert(place: int, model: bytes, batches: list[dict[str, Any]]) -> ArraySegment:
        prepared = quantise.prepared_model(model)
        left = [node.name for node in prepared.graph.node if LOGITS in node.output]
        if first and not place:
            left.append(next(node.name for node in prepared.graph.node if node.op_type == "Conv"))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "int8.onnx"
            reader = quantise.BatchReader(batches)
            library.quantize_static(prepared, str(out), reader, nodes_to_exclude=left, **options)
            return open_segment(out.read_bytes(), task.parts[place], threads=1)

    return _in_order(task, convert)


def nncf(task: Task) -> Segments:
    """NNCF's post-training quantisation for OpenVINO, with its fast bias correction."""
    import nncf as library
    import openvino

    def convert(place: int, model: bytes, batches: list[dict[str, Any]]) -> ArraySegment:
        read = openvino.Core().read_model(model)
        takes = [port.get_any_name() for port in read.inputs]
        samples = [{name: batch[name] for name in takes} for batch in batches]
        classifier = [each for each in read.get_ops() if each.get_type_name() == "MatMul"][-1].get_friendly_name()
        left = library.IgnoredScope(names=[classifier])
        small = library.quantize(read, library.Dataset(samples), subset_size=len(samples), ignored_scope=left)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "int8.xml"
            openvino.save_model(small, out, compress_to_fp16=False)
            return _in_openvino(out, task.parts[place])

    return _in_order(task, convert)


def _in_openvino(path: Path, spec: Any) -> ArraySegment:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", hints)
    takes = [port.get_any_name() for port in compiled.inputs]
    gives = [port.get_any_name() for port in compiled.outputs]

    def segment(state: Any, carry: Any) -> Any:
        named = quantise.named_tensors(spec, state, carry)
        results = compiled({name: named[name] for name in takes})
        values = {name: np.array(results[place]) for place, name in enumerate(gives)}
        states, carries = ([values[port.name] for port in ports] for ports in (spec.gives_state, spec.gives_carry))
        return tuple(states), tuple(carries), values[LOGITS]

    return segment


def _in_order(task: Task, convert: Callable[[int, bytes, list[dict[str, Any]]], ArraySegment]) -> Segments:
    """Converts every segment, with the states that the converted segments before it return."""
    entering: list[Any] = [(task.ranges[start : start + BATCH], ()) for start in range(0, len(task.ranges), BATCH)]
    results: Segments = []
    for place, (model, spec) in enumerate(zip(task.models, task.parts, strict=True)):
        results.append(convert(place, model, [quantise.named_tensors(spec, *each) for each in entering]))
        entering = [results[-1](*each)[:2] for each in entering]
    return results


VARIANTS: dict[str, Callable[[Task], Segments]] = {
    "export": shipped,
    "openvino": lambda task: shipped(task, "openvino"),
    "nncf": nncf,
    "nearest": onnx_runtime,
    "nearest, first convolution in float32": lambda task: onnx_runtime(task, first=True),
    "percentile 99.999": lambda task: onnx_runtime(
        task, calibrate_method="Percentile", extra_options={"CalibPercentile": 99.999}
    ),
    "entropy": lambda task: onnx_runtime(task, calibrate_method="Entropy"),
    "moving average": lambda task: onnx_runtime(task, extra_options={"CalibMovingAverage": True}),
    "S8S8": lambda task: onnx_runtime(task, activation_type="QInt8"),
    "U8U8": lambda task: onnx_runtime(task, weight_type="QUInt8"),
    "symmetric activations": lambda task: onnx_runtime(
        task, activation_type="QInt8", extra_options={"ActivationSymmetric": True}
    ),
    "reduce_range": lambda task: onnx_runtime(task, reduce_range=True),
    "per tensor": lambda task: onnx_runtime(task, per_channel=False),
}


def compared(task: Task, exact: np.ndarray, parts: Segments) -> dict[str, Any]:
    """Points that every exit loses with their standard errors, difference of logits, share of equal predictions."""
    logits = logits_of(task, parts)
    lost = 100 * ((exact.argmax(2) == task.labels).astype(float) - (logits.argmax(2) == task.labels))
    difference = np.square(logits - exact).mean((1, 2)) / np.square(exact).mean((1, 2))
    return {
        "points_lost": lost.mean(1).tolist(),
        "standard_error": (lost.std(1) / np.sqrt(len(task.labels))).tolist(),
        "rms": np.sqrt(difference).tolist(),
        "same_prediction": (logits.argmax(2) == exact.argmax(2)).mean(1).tolist(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the variants of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, separated by semicolons")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    task = task_of(options.run, options.data_dir)
    float32 = [open_segment(model, spec, threads=1) for model, spec in zip(task.models, task.parts, strict=True)]
    exact = logits_of(task, float32)
    accuracy = (exact.argmax(2) == task.labels).mean(1)
    results = {}
    for name in options.variants.split(";"):
        with contextlib.redirect_stdout(sys.stderr):  # the libraries print
            parts = VARIANTS[name](task)
        results[name] = compared(task, exact, parts)
        if not options.json:
            lost, rms = np.round(results[name]["points_lost"], 2), np.round(results[name]["rms"], 3)
            print(f"{name}: points lost {lost}, rms {rms}", flush=True)
    line = {"run": options.run.name, "images": len(task.labels), "accuracy": accuracy.tolist(), "variants": results}
    if options.json:
        print(json.dumps({**line, "provenance": provenance()}))


if __name__ == "__main__":
    main()
