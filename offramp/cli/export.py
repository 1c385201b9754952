"""offramp export: a calibrated run as a folder that answers without torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.lookup import NotUnderstood
from offramp.measure.units import count, percent
from offramp.runs import LoadedRun, load_data, load_run

LEAST = 1000


def export(
    run: Path,
    *,
    out: Path,
    weights: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    images: int = LEAST,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write segments, policy and preprocessing as a bundle, verified against the network on real images.

    Args:
        run: Folder of a trained and calibrated run.
        out: Folder of the bundle; it must not exist yet, or be empty.
        weights: Those of the last epoch, or of the best one on val.
        data_dir: Where the data are, if not where they were.
        images: How many images to verify and measure with, at least 1000; all where there are fewer.
        json: Print one JSON object.
    """
    if images < LEAST:
        raise NotUnderstood(f"--images must be at least {LEAST}, got {images}")
    loaded = load_run(run, weights)
    if loaded.policy is None:
        raise ValueError(f"{run} has no policy yet: fit one with `offramp calibrate {run} --max-drop 0.5`")
    result = _write(loaded, out, weights, data_dir, images, show=not json)
    if json:
        emit(result)
    else:
        _show(result)


def _write(
    loaded: LoadedRun, out: Path, weights: str, data_dir: Path | None, images: int, show: bool
) -> dict[str, Any]:
    from offramp.bundle.write import write
    from offramp.cli._console import warn_of_stale, working
    from offramp.config import flat
    from offramp.measure.provenance import provenance

    assert loaded.policy is not None
    warn_of_stale(loaded, weights)
    data = load_data(loaded, data_dir, show)
    about = {
        "run": str(loaded.folder),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        "config": flat(loaded.config),
        **provenance(),
    }
    total = min(images, sum(map(len, data.splits.values())))
    with working("verifying", total, show) as advance:
        manifest = write(
            out,
            loaded.net,
            loaded.policy,
            data,
            images=images,
            provenance=about,
            advance=advance,
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    return {
        "bundle": str(out),
        "segments": [part.file for part in manifest.parts],
        "bytes": size,
        "verified": manifest.verified,
        "measured": manifest.measured,
        "provenance": about,
    }


def _show(result: dict[str, Any]) -> None:
    from offramp.cli._console import stdout

    verified, measured = result["verified"], result["measured"]
    images = sum(verified["images"].values())
    lines = (
        f"{result['bundle']}: {len(result['segments'])} segments and the policy, {result['bytes'] / 1e6:.2f} MB",
        f"verified on {images:,} images: same exits ({verified['ties']} ties), logits within "
        f"{verified['largest_difference']:.1g} of the largest",
        f"on {measured['samples']:,} test images: accuracy {percent(measured['accuracy'])} % (plain "
        f"{percent(measured['plain_accuracy'])} %),",
        f"  {count(measured['macs'])} MACs (plain {count(measured['plain_macs'])}), "
        f"{measured['ms']:.3f} ms an image in ONNX Runtime",
    )
    for line in lines:
        stdout.print(line, highlight=False, soft_wrap=True)
