"""State between segments that stays in ONNX Runtime's memory, compared with arrays that are passed from call to call.

    python benchmarks/onnx_binding.py [--threads 1] [--rounds 200] [--json]

Measured are networks with random weights at 96 pixels with `byot` exits; one batch of 1 or 64 passes all segments:

- `arrays`: each segment takes and returns numpy arrays; bundles run batches of several images in this way.
- `bundle` (batch 1): the way in which bundles run a single image (`offramp.bundle.single_image`): `bound`, with the
  checks of a bundle.
- `values`: states stay OrtValues; only logits become arrays.
- `arrays bound`: in every call, the memory of numpy arrays is bound as inputs and outputs.
- `bound`: inputs and outputs are bound once to memory of this batch size; each segment writes where the next one reads.
- `bound, fixed`: the same with the batch size fixed in the session, so that memory is planned when the session opens.

The last two suit batches that keep their size, such as batches of one: a batch that becomes smaller needs memory of its
new size. In every round, the ways are measured in random order; a ratio is the median over rounds of the time of
`arrays` divided by that of the other way in the same round. The script takes one to two minutes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from int8 import random_net, through

from offramp.bundle.onnx import export_segments
from offramp.bundle.sessions import LOGITS, open_segment
from offramp.bundle.single_image import SingleImage
from offramp.measure.provenance import provenance
from offramp.net import segments

NETWORKS = ("resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100")
BATCHES = (1, 64)
Side = Callable[[], object]


def session_of(model: bytes, threads: int, batch: int | None = None) -> Any:
    """A session as bundles open it; `batch`: the only batch size that it accepts."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if batch is not None:
        free = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        options.add_free_dimension_override_by_name(free.get_inputs()[0].shape[0], batch)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def as_values(models: Sequence[bytes], parts: Sequence[Any], inputs: np.ndarray, threads: int) -> Side:
    """States as OrtValues."""
    sessions = [session_of(model, threads) for model in models]
    names = [[port.name for port in spec.takes_state + spec.takes_carry] for spec in parts]
    gives = [[LOGITS, *(port.name for port in spec.gives_state + spec.gives_carry)] for spec in parts]

    def run() -> object:
        values, logits = [onnxruntime.OrtValue.ortvalue_from_numpy(inputs)], []
        for session, takes, outputs in zip(sessions, names, gives, strict=True):
            first, *values = session.run_with_ort_values(outputs, dict(zip(takes, values, strict=True)))
            logits.append(first.numpy())
        return logits

    return run


def as_arrays_bound(models: Sequence[bytes], parts: Sequence[Any], inputs: np.ndarray, threads: int) -> Side:
    """Arrays as inputs and outputs, whose memory the session uses directly, without copies."""
    sessions = [session_of(model, threads) for model in models]
    widths = [next(port.shape[1] for port in each.get_outputs() if port.name == LOGITS) for each in sessions]

    def run() -> object:
        values, logits = [inputs], []
        for session, spec, width in zip(sessions, parts, widths, strict=True):
            binding, batch = session.io_binding(), len(values[0])
            read = values  # until the session has run
            for port, value in zip(spec.takes_state + spec.takes_carry, values, strict=True):
                binding.bind_input(port.name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            logits.append(np.empty((batch, width), np.float32))
            binding.bind_output(LOGITS, "cpu", 0, np.float32, logits[-1].shape, logits[-1].ctypes.data)
            values = []
            for port in spec.gives_state + spec.gives_carry:
                values.append(np.empty((batch, *port.shape), port.dtype))
                binding.bind_output(port.name, "cpu", 0, values[-1].dtype, values[-1].shape, values[-1].ctypes.data)
            session.run_with_iobinding(binding)
            del read
        return logits

    return run


def as_bound(models: Sequence[bytes], parts: Sequence[Any], inputs: np.ndarray, threads: int, fixed: bool) -> Side:
    """Inputs and outputs bound to memory that is allocated once."""
    batch = len(inputs)
    sessions = [session_of(model, threads, batch if fixed else None) for model in models]
    first = onnxruntime.OrtValue.ortvalue_from_numpy(inputs)
    bindings, logits, values = [], [], [first]
    for session, spec in zip(sessions, parts, strict=True):
        binding = session.io_binding()
        for port, value in zip(spec.takes_state + spec.takes_carry, values, strict=True):
            binding.bind_ortvalue_input(port.name, value)
        width = next(port.shape[1] for port in session.get_outputs() if port.name == LOGITS)
        answers = onnxruntime.OrtValue.ortvalue_from_shape_and_type((batch, width), np.float32)
        binding.bind_ortvalue_output(LOGITS, answers)
        values = []
        for port in spec.gives_state + spec.gives_carry:
            values.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type((batch, *port.shape), np.dtype(port.dtype)))
            binding.bind_ortvalue_output(port.name, values[-1])
        bindings.append(binding)
        logits.append(answers)

    def run() -> object:
        first.update_inplace(inputs)
        for session, binding in zip(sessions, bindings, strict=True):
            session.run_with_iobinding(binding)
        return [each.numpy() for each in logits]

    return run


def in_random_order(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant, by round; the order is random, because earlier work affects the processor's caches."""
    generator, names = np.random.default_rng(0), list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 2):  # two to warm up
        for place in generator.permutation(len(names)):
            began = time.perf_counter()
            sides[names[place]]()
            seconds[names[place]].append(time.perf_counter() - began)
    return {name: values[2:] for name, values in seconds.items()}


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per batch and ratios of every variant, by batch size; their logits agree to 1e-5 of the largest."""
    net, images = random_net(name, 96)
    shape: Any = images.shape[1:]
    exported = list(export_segments(segments(net.eval().float()), range(net.exits), shape))
    models, parts = [model for model, _ in exported], [spec for _, spec in exported]
    arrays = [open_segment(model, spec, threads=threads) for model, spec in exported]
    result: dict[str, Any] = {}
    for size in BATCHES:
        inputs = np.ascontiguousarray(np.resize(images, (size, *shape)))
        sides: dict[str, Side] = {"arrays": partial(through, arrays, inputs)}
        if size == 1:
            # sessions of its own: caches that another side warmed would help it
            separate = [open_segment(model, spec, threads=threads) for model, spec in exported]
            sides["bundle"] = partial(through, SingleImage(separate).segments(), inputs)
        sides["values"] = as_values(models, parts, inputs, threads)
        sides["arrays bound"] = as_arrays_bound(models, parts, inputs, threads)
        sides["bound"] = as_bound(models, parts, inputs, threads, fixed=False)
        sides["bound, fixed"] = as_bound(models, parts, inputs, threads, fixed=True)
        expected: Any = sides["values"]()
        for key in ("arrays bound", "bound", "bound, fixed"):
            outputs: Any = sides[key]()
            assert np.abs(outputs[-1] - expected[-1]).max() <= 1e-5 * np.abs(expected[-1]).max(), key
        times = in_random_order(sides, max(5, rounds // (1 if size == 1 else 20)))
        result[str(size)] = {
            "ms": {key: 1000 * median(values) for key, values in times.items()},
            "times_faster": {
                key: median(mine / other for mine, other in zip(times["arrays"], values, strict=True))
                for key, values in times.items()
            },
        }
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of timm networks, comma-separated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results = {name: measure(name, options.threads, options.rounds) for name in options.networks.split(",")}
    if options.json:
        print(json.dumps({"threads": options.threads, "networks": results, "provenance": provenance()}))
        return
    for name, sizes in results.items():
        for size, measured in sizes.items():
            ratios = ", ".join(f"{key} {ratio:.3f}" for key, ratio in measured["times_faster"].items())
            print(f"{name}, batch {size}: {measured['ms']['arrays']:.3f} ms; times faster: {ratios}")


if __name__ == "__main__":
    main()
