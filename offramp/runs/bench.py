"""Latency and throughput of the plain network, all exits and early exit, side by side in every runtime."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError, with_parameters
from offramp.runs.baseline import BaselineLike, open_baseline, source_of
from offramp.runs.bench_text import MS, bench_text
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import Device, LoadedRun, RunLike, Weights, folder_of, load_run, warn_if_stale
from offramp.runs.run_data import load_data
from offramp.text import shell_word

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.runs.backends import Sides

BASELINE = "baseline"


@dataclass(frozen=True)
class Benchmark:
    """The result of `bench`; times are in milliseconds per batch.

    Attributes:
        target: the run or bundle.
        kind: `run` or `bundle`.
        images: `from` (`test` or a folder), `count` and the `seed` of their order.
        seconds: duration of the measurement of each batch size, in seconds.
        threads: CPU threads of every runtime.
        policy: the exit policy, as plain values.
        left_out: by name of a runtime that is not installed, the command that installs it.
        batches: one record per batch size, see `offramp.measure.interleaved_benchmark`.
        least_of_predicted: smallest ratio of measured to predicted speed-up.
        most_off_of_plain: largest ratio of the time with all exits disabled to that of the plain network; None if the
            plain network never takes MS milliseconds.
        provenance: command, versions, hardware and commit.
        baseline: `source` and `macs` of the plain network that was given; its times are under `rivals` of a runtime.
    """

    target: str
    kind: str
    images: dict[str, Any]
    seconds: float
    threads: int
    policy: dict[str, Any]
    left_out: dict[str, str]
    batches: list[dict[str, Any]]
    least_of_predicted: float
    most_off_of_plain: float | None
    provenance: dict[str, Any]
    baseline: dict[str, Any] | None = None

    def __str__(self) -> str:
        return bench_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def bench(
    target: RunLike,
    *,
    batch: Sequence[int] = (1, 8, 64, 256),
    runtimes: Sequence[str] | None = None,
    seconds: float = 10.0,
    threads: int | None = None,
    images: Path | None = None,
    weights: Weights = "last",
    data_dir: Path | None = None,
    baseline: BaselineLike | None = None,
    seed: int = 0,
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> Benchmark:
    """Time the plain network, all exits and early exit in turn, on real images in random order.

    Args:
        target: folder of a calibrated run, or of a bundle, or an object that has one.
        batch: batch sizes.
        runtimes: some of `offramp.runs.backends.RUNTIMES` (for a bundle, those without torch); default: all that are
            installed and whose device is available.
        seconds: duration of the measurement of each batch size, in seconds.
        threads: CPU threads of every runtime; default: all cores.
        images: for a bundle, a folder of images, if its data set is not available here.
        weights: `last` or `best` (on val).
        data_dir: data directory, if it has moved since training.
        device: for a run, what to compute on; `auto` is a GPU if there is one.
        baseline: for a run, the plain network to time as well: folder of a run without early exits, or file of weights
            of this network.
        seed: seed of the order of the images.
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ValueError: if an argument is out of range, the run has no policy, or no runtime is installed.
    """
    from offramp.train.numerics import cpu_threads

    target = folder_of(target)
    _check(batch, seconds, threads, seed)
    reporter = reporter or SILENT
    with cpu_threads(threads) as number:
        sides = _sides(target, runtimes, number, images, weights, data_dir, device, baseline, max(batch), reporter)
        return _measure(target, sides, batch, seconds, seed, reporter)


def _check(batch: Sequence[int], seconds: float, threads: int | None, seed: int) -> None:
    if not batch or min(batch) < 1:
        raise ParameterError(f"batch takes whole numbers from 1 on, got {list(batch)}", "batch")
    if not 0 < seconds < float("inf"):
        raise ParameterError(f"seconds must be a positive number, got {seconds}", "seconds")
    if seed < 0:
        raise ParameterError(f"seed must be 0 or more, got {seed}", "seed")
    if threads is not None and threads < 1:
        raise ParameterError(f"threads must be at least 1, got {threads}", "threads")


def _sides(
    target: Path,
    runtimes: Sequence[str] | None,
    threads: int,
    images: Path | None,
    weights: Weights,
    data_dir: Path | None,
    device: Device,
    baseline: BaselineLike | None,
    largest: int,
    reporter: Reporter,
) -> "Sides":
    """Everything that is measured, of a run or a bundle."""
    from offramp.bundle.manifest import MANIFEST
    from offramp.runs import backends

    if (target / MANIFEST).is_file():
        if baseline is not None:
            message = f"{target} is a bundle, and baseline is for a run: name the run that the bundle was made of"
            raise with_parameters(ValueError(message), "baseline")
        if device != "auto":
            message = "device is for a run: a bundle's runtimes name theirs, as in runtimes=onnx,onnx-cuda"
            raise ParameterError(message, "device", "runtimes")
        return backends.of_bundle(target, runtimes, threads, images, data_dir, largest, reporter)
    loaded = load_run(target, weights, device=device)
    if images is not None:
        message = "images is for a bundle; a run is measured on its own test split (data_dir)"
        raise with_parameters(ValueError(message), "images", "data_dir")
    if loaded.policy is None:
        raise ValueError(
            f"{target} has no policy yet: fit one with `offramp calibrate {shell_word(target)} --max-drop 0.5%`"
        )
    warn_if_stale(loaded, weights, reporter)
    other = None if baseline is None else open_baseline(baseline, loaded, weights)
    rivals = {} if other is None else {BASELINE: other}

    def data() -> "DataSet":
        return load_data(loaded, data_dir, reporter)

    sides = backends.of_run(loaded, runtimes, threads, data, largest, reporter.working, rivals)
    return sides if other is None else dataclasses.replace(sides, baseline=_described(other, loaded))


def _described(baseline: LoadedRun, loaded: LoadedRun) -> dict[str, Any]:
    from offramp.measure import cost

    (macs,) = cost.macs(baseline.inference_net, tuple(baseline.about["shape"]))
    return {"source": source_of(baseline, loaded), "macs": macs}


def _measure(
    target: Path, sides: "Sides", sizes: Sequence[int], seconds: float, seed: int, reporter: Reporter
) -> Benchmark:
    from offramp.measure.interleaved_benchmark import run_interleaved
    from offramp.measure.provenance import provenance

    batches = []
    with reporter.working("measuring", len(sizes)) as advance:
        for size in sizes:
            batches.append(run_interleaved(sides.runners, sides.policy, sides.pixels, size, seconds, seed))
            advance(1)
    reports = [report for record in batches for report in record["runtimes"].values()]
    slow = [report for report in reports if report["plain"]["p50"] >= MS]
    return Benchmark(
        target=str(target),
        kind=sides.kind,
        images={"from": sides.images, "count": len(sides.pixels), "seed": seed},
        seconds=seconds,
        threads=sides.threads,
        policy=dataclasses.asdict(sides.policy),
        left_out=sides.left_out,
        batches=batches,
        least_of_predicted=min(report["of_predicted"] for report in reports),
        most_off_of_plain=max((report["off_of_plain"] for report in slow), default=None),
        provenance=provenance(),
        baseline=sides.baseline,
    )
