"""What `bench` measures: the runtimes that are installed, each with the parts of one network."""

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.bundle.gpu_sessions import PROVIDERS
from offramp.bundle.gpu_sessions import absent as absent_on_gpu
from offramp.lookup import ParameterError, unknown, with_parameters
from offramp.progress import Progress, no_progress
from offramp.runs import bench_images
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import LoadedRun

if TYPE_CHECKING:
    import torch
    from numpy import ndarray

    from offramp.bundle.manifest import SegmentSpec
    from offramp.data.splits import DataSet
    from offramp.early_exit.policy import ExitPolicy
    from offramp.measure.runner import Runner
    from offramp.net import FusedSegment, MultiExitNet

FOREIGN = ("onnx", "openvino", *PROVIDERS)
GRAPHS = ("torch-graph", "torch-bf16-graph")
"""PyTorch on a GPU, each segment one CUDA graph."""
ON_GPUS = (*GRAPHS, *PROVIDERS)
RUNTIMES = ("torch", "torch-bf16", *GRAPHS, *FOREIGN)
NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    **dict.fromkeys(PROVIDERS, ("onnx", "onnxscript")),
}
"""Packages of each runtime; those of `PROVIDERS` also need ONNX Runtime with GPU support."""
EXPORTS = "onnxscript"
"""The package that only exporting needs."""


@dataclass(frozen=True)
class Sides:
    """What is measured: runners by the runtimes there are, the policy, the images; and which runtimes are left out.

    `baseline` is `source` and `macs` of the plain network that is measured as well, None without one.
    """

    kind: str
    runners: tuple["Runner", ...]
    policy: "ExitPolicy"
    pixels: "ndarray"
    images: str
    threads: int
    left_out: dict[str, str]
    baseline: dict[str, Any] | None = None


def choose(
    runtimes: Sequence[str] | None, offered: Sequence[str], device: str = "auto", exported: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The runtimes to measure, and those that are not installed, with the command that installs them.

    Args:
        device: what was asked to be computed on; with `cpu` there are none of GPUs.
        exported: the models are there already, as in a bundle.
    Raises:
        ValueError: if one is unknown or not offered, or none is left.
    """
    usual = [name for name in offered if name not in ON_GPUS or not absent(name, device, exported)]
    requested = usual if runtimes is None else list(runtimes)
    for name in requested:
        if name not in RUNTIMES:
            raise unknown("runtime", name, RUNTIMES, listing="offramp bench --help")
        if name not in offered:
            raise ValueError(f"a bundle has {', '.join(offered)}, not {name}: name the run for that")
    left_out = {}
    for name in requested:
        if reason := absent(name, device, exported):
            left_out[name] = reason
    usable = [name for name in dict.fromkeys(requested) if name not in left_out]
    if not usable:
        raise ValueError(f"no runtime is left: {'; '.join(f'{name} is {reason}' for name, reason in left_out.items())}")
    return usable, left_out


def absent(runtime: str, device: str = "auto", exported: bool = False) -> str:
    """Why a runtime cannot be measured here, with the command that installs it; nothing if it can.

    Args:
        device: what was asked to be computed on.
        exported: as in `choose`.
    """
    needs = [package for package in NEEDS.get(runtime, ()) if not (exported and package == EXPORTS)]
    missing = [package for package in needs if importlib.util.find_spec(package) is None]
    if runtime in ON_GPUS:
        import torch

        if device == "cpu" and torch.cuda.is_available():
            return "for GPUs, not for device=cpu"
        if missing:  # the extra `export` would bring ONNX Runtime without GPU support
            return f"not installed: pip install {' '.join(missing)} onnxruntime-gpu"
        return absent_on_gpu(runtime) or ("" if torch.cuda.is_available() else "for GPUs, and PyTorch sees none here")
    extra = "export" if runtime == "onnx" else "export,openvino"
    return f"not installed: pip install 'offramp[{extra}]'" if missing else ""


def require(runtime: str | None, device: str) -> None:
    """Refuse a runtime that cannot be measured here, before anything is computed.

    Args:
        runtime: None for the run's own.
        device: that of the run here.
    Raises:
        ValueError: if a runtime of GPUs is to run on the CPU.
        ImportError: if it is not installed, with the command that installs it.
    """
    if runtime and (reason := absent(runtime, device)):
        kind = ImportError if runtime in FOREIGN else ParameterError
        raise with_parameters(kind(f"runtime={runtime} is {reason}"), "runtime", "device")


def of_run(
    loaded: LoadedRun,
    runtimes: Sequence[str] | None,
    threads: int,
    data: "Callable[[], DataSet]",
    largest: int,
    progress: Progress = no_progress,
    rivals: Mapping[str, LoadedRun] | None = None,
) -> Sides:
    """The network of a calibrated run, in torch and exported on the spot, and images of its test split.

    Args:
        data: reads the run's data set; called if there is a runtime to measure.
        rivals: runs on the same data, whose plain networks are measured as well.
    """
    chosen, left_out = choose(runtimes, RUNTIMES, loaded.config.device)
    data_set = data()
    assert loaded.policy is not None
    others = {name: run.inference_net for name, run in (rivals or {}).items()}
    runners = [_in_torch(loaded, data_set, name, others) for name in chosen if name.startswith("torch")]
    foreign = [name for name in chosen if not name.startswith("torch")]
    if foreign:
        from offramp.bundle.merge_onnx import fuse
        from offramp.bundle.write import preprocessing_of
        from offramp.net import segments

        models, parts = _exported(segments(loaded.inference_net), data_set.shape, progress)
        plain = {name: fuse(*_exported([_plain(net)], data_set.shape, progress)) for name, net in others.items()}
        normalise = preprocessing_of(data_set).normalise
        runners += [_foreign(models, parts, loaded.policy, normalise, name, threads, plain) for name in foreign]
    images = bench_images.of_test(data_set, largest)
    return Sides("run", tuple(runners), loaded.policy, images, "test", threads, left_out)


def of_bundle(
    folder: Path,
    runtimes: Sequence[str] | None,
    threads: int,
    images: Path | None,
    data_dir: Path | None,
    largest: int,
    reporter: Reporter = SILENT,
) -> Sides:
    """The segments of a bundle, and images of a folder or of the data set that it was made of.

    Raises:
        ValueError: if the bundle is damaged, or there are no images.
    """
    from offramp.bundle.read import content, read_manifest, read_policy

    chosen, left_out = choose(runtimes, FOREIGN, exported=True)
    manifest = read_manifest(folder)
    policy = read_policy(folder, manifest)
    models = [content(folder, manifest, part.file) for part in manifest.parts]
    pixels, source = bench_images.of_bundle(folder, manifest, images, data_dir, largest, reporter)
    normalise = manifest.preprocessing.normalise
    runners = [_foreign(models, manifest.parts, policy, normalise, name, threads) for name in chosen]
    return Sides("bundle", tuple(runners), policy, pixels, source, threads, left_out)


def _in_torch(loaded: LoadedRun, data: "DataSet", name: str, rivals: Mapping[str, "MultiExitNet"]) -> "Runner":
    """Eager PyTorch on the run's device, in float32 or as bf16 autocast computes."""
    import torch

    from offramp.data.augment import normalise
    from offramp.early_exit.graphed_policy import GraphedExits
    from offramp.early_exit.graphed_segment import GraphedSegment
    from offramp.measure.runner import Runner
    from offramp.measure.timing import finish
    from offramp.net import segments
    from offramp.train.device import device_of

    device, half = torch.device(device_of(loaded.config.device)), "bf16" in name

    def to_inputs(pixels: "ndarray") -> Any:
        inputs = normalise(torch.from_numpy(pixels).to(device), data.mean, data.std)
        return inputs.contiguous(memory_format=torch.channels_last)

    assert loaded.policy is not None
    net = in_precision(loaded.inference_net, device, half)
    others = {key: _plain(in_precision(rival, device, half)) for key, rival in rivals.items()}
    parts: list[list[Any]] = [[_plain(net)], list(segments(net)), list(segments(net, loaded.policy.enabled))]
    graphed = None
    if name in GRAPHS:
        graphed = GraphedExits(parts[-1], loaded.policy, device)
        parts = [[GraphedSegment(segment, device) for segment in each] for each in parts]
    (plain,), everything, enabled = parts
    scope = partial(inference, device, half)
    return Runner(
        name, to_inputs, plain, everything, enabled, scope, partial(finish, device), others, device.type, graphed
    )


def in_precision(net: "MultiExitNet", device: "torch.device", half: bool) -> "MultiExitNet":
    """A copy of the network for inference, in float32 or with what autocast computes in bf16 held in bf16.

    Those are the numbers of autocast, which would convert the weights again in every call.
    """
    import torch

    from offramp.train.depthwise import keeps_float32

    copy_of_net = copy.deepcopy(net).eval().float()
    if half:
        for part in copy_of_net.modules():
            if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)) and not keeps_float32(part):
                part.bfloat16()
    copy_of_net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copy_of_net


def inference(device: "torch.device", half: bool) -> ExitStack:
    """Inference mode, float32 without TF32, and autocast to bf16 if wanted.

    Autocast keeps no converted weights: it would free them at its end, and a CUDA graph would go on reading them.
    """
    import torch

    from offramp.train.numerics import computing
    from offramp.train.recipe import Recipe

    stack = ExitStack()
    stack.enter_context(computing(Recipe(precision="32"), device))
    stack.enter_context(torch.inference_mode())
    stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False))
    return stack


def _plain(net: "MultiExitNet") -> "FusedSegment":
    """The whole network with its final exit alone."""
    from offramp.net import segments

    return segments(net, [False] * (net.exits - 1) + [True])[0]


def _exported(
    segments: Sequence["FusedSegment"], shape: tuple[int, int, int], progress: Progress
) -> tuple[list[bytes], list["SegmentSpec"]]:
    """Segments that follow each other, as ONNX in float32."""
    from offramp.bundle.onnx import export_segments

    ready = [copy.deepcopy(segment).eval().float().cpu() for segment in segments]
    models, parts = [], []
    with progress("exporting", len(segments)) as advance:
        for model, spec in export_segments(ready, range(len(ready)), shape):
            models.append(model)
            parts.append(spec)
            advance(1)
    return models, parts


def _foreign(
    models: Sequence[bytes],
    parts: Sequence["SegmentSpec"],
    policy: "ExitPolicy",
    normalise: Callable[["ndarray"], Any],
    name: str,
    threads: int,
    rivals: Mapping[str, tuple[bytes, "SegmentSpec"]] | None = None,
) -> "Runner":
    """A foreign runtime on exported segments: as they are, put together where the policy skips exits, all as one."""
    from offramp.bundle.merge_onnx import fuse
    from offramp.bundle.sessions import open_segment
    from offramp.measure.runner import Runner

    def opened(begin: int, end: int) -> Any:
        model, spec = fuse(models[begin:end], parts[begin:end])
        return open_segment(model, spec, name, threads)

    ends = [place + 1 for place, spec in enumerate(parts) if policy.enabled[spec.exit]]
    everything = [opened(place, place + 1) for place in range(len(parts))]
    enabled = [everything[begin] if end == begin + 1 else opened(begin, end) for begin, end in zip([0, *ends], ends)]
    others = {key: open_segment(*model_and_spec, name, threads) for key, model_and_spec in (rivals or {}).items()}
    device = "cuda" if name in PROVIDERS else "cpu"
    return Runner(name, normalise, opened(0, len(parts)), everything, enabled, rivals=others, device=device)
