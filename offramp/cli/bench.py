"""offramp bench: latency and throughput of early exit, all exits and the plain network in every runtime."""

from pathlib import Path

from offramp.cli import show
from offramp.cli._options import BaselinePath, DataDir, Device, Json, Weights
from offramp.lookup import ParameterError


def bench(
    target: Path,
    *,
    batch: str = "1,8,64,256",
    runtimes: str | None = None,
    seconds: float = 10.0,
    threads: int | None = None,
    images: Path | None = None,
    weights: Weights = "last",
    data_dir: DataDir = None,
    device: Device = "auto",
    baseline: BaselinePath = None,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Time early exit, all exits and the plain network in turn, on real images.

    Args:
        target: Folder of a calibrated run, or of a bundle.
        batch: Batch sizes, comma-separated.
        runtimes: Some of torch, torch-bf16, onnx and openvino, comma-separated; on GPUs also torch-graph,
            torch-bf16-graph, onnx-cuda and onnx-tensorrt. Default: all that are installed. For a
            bundle, only those of ONNX Runtime and OpenVINO.
        seconds: Duration of the measurement of each batch size, in seconds.
        threads: CPU threads of each runtime; default: all cores.
        images: Folder of images for a bundle whose data set is not on this machine.
        seed: Seed of the random order of the images.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.bench import bench as run_bench

    result = run_bench(
        target,
        batch=_sizes(batch),
        runtimes=None if runtimes is None else runtimes.split(","),
        seconds=seconds,
        threads=threads,
        images=images,
        weights=weights,
        data_dir=data_dir,
        device=device,
        baseline=baseline,
        seed=seed,
        reporter=ConsoleReporter(not json),
    )
    show(result, json)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ParameterError(f"--batch takes comma-separated whole numbers from 1, such as 1,64, got {text!r}")
    return sizes
