"""A calibrated run as a folder that runs without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.lookup import ParameterError
from offramp.measure.units import count, percent
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import LoadedRun, RunLike, Weights, folder_of, load_run, warn_if_stale
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
        bytes: size of all files.
        verified: on how many images of what the bundle was compared with the network, and how far they differed.
        measured: accuracy, operations and time on test images, beside the plain network.
        provenance: the run, its configuration, versions, hardware and commit.
    """

    bundle: str
    segments: list[str]
    bytes: int
    verified: dict[str, Any]
    measured: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        return Path(self.bundle)

    def __str__(self) -> str:
        verified, measured = self.verified, self.measured
        images = sum(verified["images"].values())
        lines = (
            f"{self.bundle}: {len(self.segments)} segments and the policy, {self.bytes / 1e6:.2f} MB",
            f"verified on {images:,} images: same exits ({verified['ties']} ties), logits within "
            f"{verified['largest_difference']:.1g} of the largest",
            f"on {measured['samples']:,} test images: accuracy {percent(measured['accuracy'])} % (plain "
            f"{percent(measured['plain_accuracy'])} %),",
            f"  {count(measured['macs'])} MACs (plain {count(measured['plain_macs'])}), "
            f"{measured['ms']:.3f} ms an image in ONNX Runtime",
        )
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def export(
    run: RunLike,
    out: Path | str,
    *,
    weights: Weights = "last",
    data_dir: Path | str | None = None,
    images: int = LEAST,
    reporter: Reporter | None = None,
) -> Export:
    """Write segments, policy and preprocessing as a bundle, verified against the network on real images.

    Args:
        run: folder of a trained and calibrated run, or an object that has one.
        out: folder of the bundle; it must not exist yet, or be empty.
        weights: those of the last epoch, or of the best one on val.
        data_dir: data directory, if it has moved since training.
        images: how many images to verify and measure with, at least 1000; all if there are fewer.
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ValueError: if the run has no policy, something is at `out`, the network cannot be exported, or its exported
            segments do not reach the policy's goal on cal.
        ImportError: if a package is missing, with the command that installs it.
        offramp.bundle.verify.Difference: if the bundle answers otherwise than the network.
    """
    if images < LEAST:
        raise ParameterError(f"images must be at least {LEAST}, got {images}", "images")
    folder = folder_of(run)
    loaded = load_run(folder, weights)
    if loaded.policy is None:
        raise ValueError(
            f"{folder} has no policy yet: fit one with `offramp calibrate {shell_word(folder)} --max-drop 0.5%`"
        )
    return _write(loaded, Path(out), weights, data_dir, images, reporter or SILENT)


def _write(
    loaded: LoadedRun, out: Path, weights: str, data_dir: Path | str | None, images: int, reporter: Reporter
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
        "config": flat(loaded.config),
        **provenance(),
    }
    total = min(images, sum(map(len, data.splits.values())))
    with reporter.working("verifying", total) as advance:
        manifest = write(
            out,
            loaded.inference_net,
            loaded.policy,
            data,
            images=images,
            provenance=about,
            origin=loaded.fitted,
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
    )
