"""offramp bench: latency and throughput of plain, all exits and leaving early, side by side in every runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.lookup import NotUnderstood
from offramp.measure.units import percent
from offramp.runs import load_data, load_run

if TYPE_CHECKING:
    from offramp.runs.backends import Sides

RATIO, OFF, MS = 0.95, 1.02, 5.0
"""Targets: measured speed-up of the predicted one, time with all exits off of plain's, for networks of so many ms."""


def bench(
    target: Path,
    *,
    batch: str = "1,8,64,256",
    runtimes: str | None = None,
    seconds: float = 10.0,
    threads: int | None = None,
    images: Path | None = None,
    weights: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Time the plain network, all exits and leaving early in turn, on real images in random order.

    Args:
        target: Folder of a calibrated run, or of a bundle.
        batch: Images per batch, with commas between.
        runtimes: Some of torch, torch-bf16, onnx and openvino, with commas between; those installed by default.
            A bundle has onnx and openvino.
        seconds: How long each batch size is measured.
        threads: How many threads every runtime uses; all cores by default.
        images: For a bundle: a folder of images, if its data are not here.
        weights: Those of the last epoch, or of the best one on val.
        data_dir: Where the data are, if not where they were.
        seed: Of the order of the images.
        json: Print one JSON object.
    """
    sizes = _sizes(batch)
    if not 0 < seconds < float("inf"):
        raise NotUnderstood(f"--seconds must be a positive number, got {seconds}")
    if seed < 0:
        raise NotUnderstood(f"--seed must be 0 or more, got {seed}")
    if threads is not None and threads < 1:
        raise NotUnderstood(f"--threads must be at least 1, got {threads}")
    sides = _sides(target, runtimes, threads, images, weights, data_dir, max(sizes), show=not json)
    result = measure(target, sides, sizes, seconds, seed, show=not json)
    if json:
        emit(result)
    else:
        show(result)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise NotUnderstood(f"--batch takes whole numbers from 1 on with commas between, such as 1,64, got {text!r}")
    return sizes


def _sides(
    target: Path,
    runtimes: str | None,
    threads: int | None,
    images: Path | None,
    weights: str,
    data_dir: Path | None,
    largest: int,
    show: bool,
) -> "Sides":
    """Everything that is to be measured, of a run or a bundle."""
    from offramp.bundle.manifest import MANIFEST
    from offramp.cli._console import warn_of_stale
    from offramp.runs import backends

    if (target / MANIFEST).is_file():
        return backends.of_bundle(target, runtimes, threads, images, data_dir, largest, show)
    loaded = load_run(target, weights)
    if images is not None:
        raise ValueError("--images is for a bundle; a run is measured on its own test images (--data-dir)")
    if loaded.policy is None:
        raise ValueError(f"{target} has no policy yet: fit one with `offramp calibrate {target} --max-drop 0.5`")
    warn_of_stale(loaded, weights)
    return backends.of_run(loaded, runtimes, threads, load_data(loaded, data_dir, show), largest, show)


def measure(target: Path, sides: "Sides", sizes: list[int], seconds: float, seed: int, show: bool) -> dict[str, Any]:
    """Everything that `bench` prints, as plain values: milliseconds, images per second, ratios."""
    import dataclasses

    from offramp.cli._console import working
    from offramp.measure.interleaved_benchmark import race
    from offramp.measure.provenance import provenance

    batches = []
    with working("measuring", len(sizes), show) as advance:
        for size in sizes:
            batches.append(race(sides.runners, sides.policy, sides.pixels, size, seconds, seed))
            advance(1)
    found = [report for each in batches for report in each["runtimes"].values()]
    slow = [report for report in found if report["plain"]["p50"] >= MS]
    return {
        "target": str(target),
        "kind": sides.kind,
        "images": {"from": sides.images, "count": len(sides.pixels), "seed": seed},
        "seconds": seconds,
        "threads": sides.threads,
        "policy": dataclasses.asdict(sides.policy),
        "left_out": sides.left_out,
        "batches": batches,
        "least_of_predicted": min(report["of_predicted"] for report in found),
        "most_off_of_plain": max((report["off_of_plain"] for report in slow), default=None),
        "provenance": provenance(),
    }


NAMES = {"plain": "plain", "all": "all exits", "adaptive": "adaptive", "off": "exits off"}


def show(result: dict[str, Any]) -> None:
    """One table per batch size, then what leaving early saves."""
    from offramp.cli._console import stdout, table

    def say(text: str) -> None:
        stdout.print(text, highlight=False, markup=False, soft_wrap=True)

    images = result["images"]
    say(f"{result['target']}: {images['count']:,} images of {images['from']}, in random order")
    for name, reason in result["left_out"].items():
        say(f"left out: {name} ({reason})")
    head = ["", "p50 ms", "p95 ms", "p99 ms", "images/s", "of plain"]
    for each in result["batches"]:
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
    for each in result["batches"]:
        for runtime, report in each["runtimes"].items():
            numbers = [f"{report[key]:.2f}" for key in ("speedup", "predicted", "of_predicted", "off_of_plain")]
            shares = " ".join(percent(share)[:-3] for share in report["shares"])
            rows.append([f"{each['batch']:<7}{runtime}", *numbers, shares])
    stdout.print()
    head = ["batch  runtime", "speed-up", "predicted", "of predicted", "off of plain", "leave %"]
    stdout.print(table("leaving early beside the plain network", head, rows), soft_wrap=True)
    say(f"targets: measured at least {RATIO:g} of predicted;")
    say(f"with all exits off at most {OFF:g} of plain's time (networks of {MS:g} ms and more)")


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
