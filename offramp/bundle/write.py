"""Write a bundle: segments to ONNX, compared with the network, then put in place in one move."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp.bundle.int8 import Converted, convert, segment_ms
from offramp.bundle.manifest import MANIFEST, POLICY, Manifest, render
from offramp.bundle.onnx import export_segments
from offramp.bundle.preprocess import Preprocessing
from offramp.bundle.read import open_bundle, open_files
from offramp.bundle.recertify import exported_trace, recertified
from offramp.bundle.verify import verify
from offramp.data.splits import DataSet, Split
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.score_bins import exit_counts
from offramp.files import DRAFT, sync_to_disk, write_errors
from offramp.images import default_fit
from offramp.lookup import with_parameters
from offramp.measure.cost import segment_macs
from offramp.net import MultiExitNet, segments


def preprocessing_of(data: DataSet) -> Preprocessing:
    """What this data set's images go through when a network is evaluated on them.

    Images of any size may be given to a bundle: for data sets whose images have their size already (digits, CIFAR) they
    are resized and cropped as usual.

    Raises:
        ValueError: if the inputs are not square.
    """
    channels, height, width = data.shape
    if height != width:
        raise ValueError(f"{data.name} has images of {height}x{width}; bundles read square ones")
    fit = data.fit if data.fit is not None else default_fit(height)
    return Preprocessing(
        channels=channels,
        size=height,
        resize=fit.resize or height,
        mean=data.mean,
        std=data.std,
        interpolation=fit.interpolation,
    )


def write(
    out: Path,
    net: MultiExitNet,
    policy: ExitPolicy,
    data: DataSet,
    *,
    images: int = 1000,
    provenance: dict[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    int8_drop: float | None = None,
    advance: Any = lambda samples: None,
) -> Manifest:
    """Export a network and its policy into a folder that runs without torch.

    Nothing is at `out` until the bundle there is whole and verified.

    Args:
        out: a folder that does not exist yet, or is empty.
        net: its weights are exported in float32, in evaluation mode.
        data: what it was trained on; gives the preprocessing and the images to verify with.
        images: how many images to verify with; see `offramp.bundle.verify.verify`.
        provenance: where the network comes from, kept in the manifest.
        origin: what `calibrate` stored beside the policy. Its goal is checked again on cal with the exported segments:
            the bundle's policy is the one that reaches it there.
        int8_drop: quantise the segments, if no exit loses more of its accuracy on cal than this share; see
            `offramp.bundle.int8.convert`. None: they stay in float32.
        advance: called with the number of images after each batch that was verified.
    Returns:
        The manifest, with what was measured.
    Raises:
        ValueError: if something is at `out`, the policy does not fit, a segment cannot be exported, or the goal is not
            reached with the exported segments, or an exit loses more than `int8_drop`.
        offramp.bundle.verify.Difference: if the bundle's results differ from the network's.
    """
    if policy.exits != net.exits:
        raise ValueError(f"the policy is for {policy.exits} exits, but the network has {net.exits}")
    preprocessing = preprocessing_of(data)
    cal = None if int8_drop is None else _cal_of(data)
    net = net.eval().float().cpu()
    with _in_place(out) as part:
        manifest = _files(part, net, policy, preprocessing, data.classes)
        manifest = replace(manifest, provenance=provenance or {})
        converted = None
        if int8_drop is not None and cal is not None:
            _, measured = verify(open_files(part, manifest, "onnx"), net, data, images, advance)
            converted = convert(part, manifest, cal, int8_drop, measured)
            manifest = _replaced(part, manifest, converted)
        if origin and "cal" in data.splits:
            manifest = _shipped(part, manifest, net, policy, origin, data, converted)
        verified, measured = verify(open_files(part, manifest, "onnx"), net, data, images, advance)
        manifest = replace(manifest, verified=verified, measured=measured)
        _put(part / MANIFEST, render(manifest).encode())
        return open_bundle(part).manifest


def _files(
    folder: Path, net: MultiExitNet, policy: ExitPolicy, preprocessing: Preprocessing, classes: tuple[str, ...]
) -> Manifest:
    """Write segments and policy; returns the manifest that names them."""
    _put(folder / POLICY, (policy.to_json() + "\n").encode())
    enabled = [exit for exit, on in enumerate(policy.enabled) if on]
    parts = []
    for model, spec in export_segments(segments(net, policy.enabled), enabled, preprocessing.shape):
        _put(folder / spec.file, model)
        parts.append(spec)
    names = (POLICY, *(spec.file for spec in parts))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    return Manifest(tuple(classes), preprocessing, net.exits, tuple(parts), digests)


def _cal_of(data: DataSet) -> Split:
    if "cal" not in data.splits:
        raise with_parameters(ValueError("int8 needs the split cal: train with holdout"), "int8", "holdout")
    return data.splits["cal"]


def _replaced(folder: Path, manifest: Manifest, converted: Converted) -> Manifest:
    """Put quantised segments in place of those in float32."""
    digests = {}
    for model, spec in zip(converted.models, manifest.parts, strict=True):
        _put(folder / spec.file, model)
        digests[spec.file] = hashlib.sha256(model).hexdigest()
    return replace(manifest, files={**manifest.files, **digests}, quantised=converted.about)


def _shipped(
    folder: Path,
    manifest: Manifest,
    net: MultiExitNet,
    policy: ExitPolicy,
    origin: Mapping[str, Any],
    data: DataSet,
    converted: Converted | None,
) -> Manifest:
    """Put the policy that reaches its goal with the exported segments into the bundle; see `recertified`."""
    bundle = open_files(folder, manifest, "onnx")
    costs = origin.get("segment_costs") or ()
    if converted and "ms" in origin.get("plain", {}):  # those of float32 are not theirs
        costs = segment_ms(bundle, origin.get("batch_size", 1))
    if len(costs) != sum(policy.enabled):  # a policy that was written by hand
        costs = segment_macs(net, data.shape, policy.enabled)
    logits, labels = converted[2:] if converted else exported_trace(bundle, data.splits["cal"])
    shipped = recertified(policy, origin, logits, labels, costs, manifest.precision)
    about = {**shipped.about, "scores": exit_counts(shipped.policy, logits)}
    text = shipped.policy.to_json({**origin, "shipped": about}) + "\n"
    _put(folder / POLICY, text.encode())
    files = {**manifest.files, POLICY: hashlib.sha256(text.encode()).hexdigest()}
    return replace(manifest, files=files, provenance={**manifest.provenance, "policy": about})


def _put(path: Path, content: bytes) -> None:
    with write_errors(path):
        path.write_bytes(content)


@contextlib.contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if all goes well, and is gone if not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise with_parameters(ValueError(f"{out} already exists and is not an empty folder; choose another out"), "out")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.parent / f"{DRAFT}{out.name}-{os.getpid()}"
    part.mkdir()
    try:
        yield part
        for file in part.iterdir():
            sync_to_disk(file)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
