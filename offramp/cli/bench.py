"""offramp bench: latency and throughput of early exit, all exits and the plain network in every runtime."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli import emit
from offramp.cli._options import DataDir, Json, Weights
from offramp.lookup import ParameterError
from offramp.measure.units import percent

if TYPE_CHECKING:
    from offramp.runs.bench import Benchmark


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
    seed: int = 0,
    json: Json = False,
) -> None:
    """Time early exit, all exits and the plain network in turn, on real images.

    Args:
        target: Folder of a calibrated run, or of a bundle.
        batch: Batch sizes, comma-separated.
        runtimes: Some of torch, torch-bf16, onnx and openvino, comma-separated; default: those installed. Bundles run
            in onnx and openvino.
        seconds: Measuring time per batch size.
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
        seed=seed,
        reporter=ConsoleReporter(not json),
    )
    if json:
        emit(dataclasses.asdict(result))
    else:
        _show(result)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ParameterError(f"--batch takes comma-separated whole numbers from 1, such as 1,64, got {text!r}")
    return sizes


NAMES = {"plain": "plain", "all": "all exits", "adaptive": "adaptive", "off": "exits off"}


def _show(result: "Benchmark") -> None:
    """One table per batch size, then what early exit saves."""
    from offramp.cli._console import stdout, table
    from offramp.runs.bench import MS, OFF, RATIO

    def say(text: str) -> None:
        stdout.print(text, highlight=False, markup=False, soft_wrap=True)

    images = result.images
    say(f"{result.target}: {images['count']:,} images of {images['from']}, in random order")
    for name, reason in result.left_out.items():
        say(f"left out: {name} ({reason})")
    head = ["", "p50 ms", "p95 ms", "p99 ms", "images/s", "of plain"]
    for each in result.batches:
        rows = []
        for runtime, report in each["runtimes"].items():
            for way, name in NAMES.items():
                times = report[way]
                relative = times["images_per_second"] / report["plain"]["images_per_second"]
                numbers = [_ms(times[key]) for key in ("p50", "p95", "p99")]
                first = runtime if way == "plain" else ""
                rows.append([f"{first:12}{name}", *numbers, f"{times['images_per_second']:,.1f}", f"{relative:.2f}x"])
        stdout.print()
        stdout.print(table(f"batch {each['batch']}, {each['rounds']} rounds", head, rows), soft_wrap=True)
    rows = []
    for each in result.batches:
        for runtime, report in each["runtimes"].items():
            numbers = [f"{report[key]:.2f}" for key in ("speedup", "predicted", "of_predicted", "off_of_plain")]
            shares = " ".join(percent(share)[:-3] for share in report["shares"])
            rows.append([f"{each['batch']:<7}{runtime}", *numbers, shares])
    stdout.print()
    head = ["batch  runtime", "speed-up", "predicted", "of predicted", "off of plain", "exit %"]
    stdout.print(table("early exit compared with the plain network", head, rows), soft_wrap=True)
    say(f"targets: measured at least {RATIO:g} of predicted;")
    say(f"with all exits off at most {OFF:g} of plain's time (networks of {MS:g} ms and more)")


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
