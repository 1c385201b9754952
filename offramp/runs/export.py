"""A calibrated run as a folder that runs without torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError
from offramp.measure.units import count, percent
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import LoadedRun, RunLike, Weights, as_trained, folder_of, load_run, warn_if_stale
from offramp.runs.run_data import load_data
from offramp.text import shell_word

LEAST = 1000
"""Images to verify and measure with, at least."""


@dataclass(frozen=True)
class Export:
    """A bundle that was written and verified.

    Attributes:
        bundle: its folder.
        segments: names of the segments' files.
        bytes: size of all files together, in bytes.
        verified: the images on which the bundle was compared with the network, and the largest differences.
        measured: accuracy, operations and time on test images, of early exit and of the plain network.
        provenance: the run, its configuration, versions, hardware and commit.
        quantised: of an int8 bundle: accuracy on cal and times in float32 and in int8, see
            `offramp.bundle.int8.convert`; else empty.
    """

    bundle: str
    segments: list[str]
    bytes: int
    verified: dict[str, Any]
    measured: dict[str, Any]
    provenance: dict[str, Any]
    quantised: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        return Path(self.bundle)

    def __str__(self) -> str:
        verified, measured = self.verified, self.measured
        images, difference = sum(verified["images"].values()), verified["largest_difference"]
        logits = f"logits within {difference:.1g} of the largest" if difference else "equal logits"
        lines = (
            f"{self.bundle}: {len(self.segments)} segments and the policy, {self.bytes / 1e6:.2f} MB",
            f"verified on {images:,} images: same exits ({verified['ties']} ties), {logits}",
            f"on {measured['samples']:,} test images: accuracy {percent(measured['accuracy'])} % (plain "
            f"{percent(measured['plain_accuracy'])} %),",
            f"  {count(measured['macs'])} MACs (plain {count(measured['plain_macs'])}), "
            f"{measured['ms']:.3f} ms per image in ONNX Runtime on cpu",
        )
        return "\n".join((*lines, *_int8_lines(self.quantised)))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def _int8_lines(quantised: dict[str, Any]) -> list[str]:
    """Accuracy of every exit and times in both precisions, and whether int8 is slower; nothing in float32."""
    if not quantised:
        return []
    accuracy, ms, plain = quantised["accuracy"], quantised["ms"], quantised["float32"]["plain_accuracy"]
    pairs = zip(quantised["exits"], accuracy["float32"], accuracy["int8"], strict=True)
    exits = [f"  exit {exit + 1} {percent(before)} -> {percent(after)}" for exit, before, after in pairs]
    times = [
        f"  batch {size} through all segments: {ms['int8'][size]:.2f} ms, {value:.2f} in float32"
        for size, value in _by_size(ms)
    ]
    lines = [
        f"int8: accuracy % on {quantised['samples']:,} images of cal, float32 -> int8:",
        *exits,
        f"  plain in float32 on test: {percent(plain)} %",
        *times,
    ]
    slower = [size for size, value in _by_size(ms) if ms["int8"][size] > value]
    if slower:
        lines.append(f"int8 is slower than float32 here at batch {' and '.join(slower)}: export without int8")
    return lines


def _by_size(ms: dict[str, dict[str, float]]) -> list[tuple[str, float]]:
    return list(ms["float32"].items())


@check_arguments
def export(
    run: RunLike,
    out: Path | str,
    *,
    weights: Weights = "last",
    data_dir: Path | str | None = None,
    images: int = LEAST,
    int8: bool = False,
    int8_drop: float | None = None,
    reporter: Reporter | None = None,
) -> Export:
    """Write segments, policy and preprocessing as a bundle, verified against the network on real images.

    Args:
        run: folder of a trained and calibrated run, or an object that has one.
        out: folder of the bundle; it must not exist yet, or be empty.
        weights: those of the last epoch, or of the best one on val.
        data_dir: data directory, if it has moved since training.
        images: how many images to verify and measure with, at least 1000; all if there are fewer.
        int8: quantise the segments, with ranges from cal, and fit the thresholds to the policy's goal again.
        int8_drop: with `int8`, largest loss of accuracy on cal at any exit, a share; default 0.005, half a point. A
            larger loss is refused if it is statistically significant (95 %).
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ValueError: if the run has no policy, `out` is not empty, the network cannot be exported, or its exported
            segments do not reach the policy's goal on cal; if an exit loses more than `int8_drop`.
        ImportError: if a package is missing, with the command that installs it.
        offramp.bundle.verify.Difference: if the bundle's results differ from the network's.
    """
    if images < LEAST:
        raise ParameterError(f"images must be at least {LEAST}, got {images}", "images")
    drop = _int8_drop(int8, int8_drop)
    folder = folder_of(run)
    loaded = load_run(folder, weights, device="cpu")
    if loaded.policy is None:
        raise ValueError(
            f"{folder} has no policy yet: fit one with `offramp calibrate {shell_word(folder)} --max-drop 0.5%`"
        )
    return _write(loaded, Path(out), weights, data_dir, images, drop, reporter or SILENT)


def _int8_drop(int8: bool, drop: float | None) -> float | None:
    """What an exit may lose in int8; None in float32."""
    from offramp.bundle.int8 import DROP

    if drop is not None and not int8:
        raise ParameterError("int8_drop goes with int8, which is missing", "int8_drop", "int8")
    if drop is not None and not 0 <= drop < 1:
        raise ParameterError(
            f"int8_drop must be at least 0 and below 1 (100 percentage points), got {drop:g} ({100 * drop:g} points)",
            "int8_drop",
        )
    return (DROP if drop is None else drop) if int8 else None


def _write(
    loaded: LoadedRun,
    out: Path,
    weights: str,
    data_dir: Path | str | None,
    images: int,
    int8_drop: float | None,
    reporter: Reporter,
) -> Export:
    from offramp.bundle.write import write
    from offramp.config import flat
    from offramp.measure.provenance import provenance
    from offramp.runs import split

    assert loaded.policy is not None
    warn_if_stale(loaded, weights, reporter)
    data = load_data(loaded, data_dir, reporter)
    about = {
        "run": str(loaded.folder),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        "weights_digest": loaded.about["digest"],
        "split": split.summary(loaded.folder),
        "config": flat(as_trained(loaded)),
        **provenance("cpu"),
    }
    total = min(images, sum(map(len, data.splits.values()))) * (1 if int8_drop is None else 2)
    with reporter.working("verifying", total) as advance:
        manifest = write(
            out,
            loaded.inference_net,
            loaded.policy,
            data,
            images=images,
            provenance=about,
            origin=loaded.fitted,
            int8_drop=int8_drop,
            advance=advance,
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    return Export(
        bundle=str(out),
        segments=[part.file for part in manifest.parts],
        bytes=size,
        verified=dict(manifest.verified),
        measured=dict(manifest.measured),
        provenance=dict(manifest.provenance),
        quantised=dict(manifest.quantised),
    )
