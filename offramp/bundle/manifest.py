"""The manifest of a bundle: what its files are, what they take and give, and where they come from. Runs without torch.

It is JSON that carries the digest of its own text, so that no byte of it changes unnoticed. Digests find accidents;
they do not prove who wrote a bundle.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from offramp.bundle.preprocess import Preprocessing
from offramp.files import parse_json
from offramp.text import one_line, quoted

FORMAT, VERSION = "offramp-bundle", 1
MANIFEST, POLICY = "manifest.json", "policy.json"
MOST_EXITS = 1000
LARGEST = 1 << 26
"""Values that a tensor between segments may have for one image."""
LONGEST_NAME = 100
DTYPES = ("float32", "float16", "int64", "int32", "bool")

_BLANK = "0" * 64
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a segment takes or gives: its name, its shape without the batch, its type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class SegmentSpec:
    """One segment's file. `exit` is counted from 0 among all exits of the network.

    It takes state and carry of the segment before (the first one the inputs) and gives `logits` (B, C) and, but for
    the last one, state and carry for the next.
    """

    file: str
    exit: int
    takes_state: tuple[TensorSpec, ...]
    takes_carry: tuple[TensorSpec, ...]
    gives_state: tuple[TensorSpec, ...]
    gives_carry: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle.

    Attributes:
        classes: names of the C classes.
        preprocessing: from image files to inputs.
        exits: E of the network; the policy has that many, and `parts` are those that it enables.
        parts: the segments in the order in which they run.
        files: SHA-256 of every other file of the folder, by name.
        measured: accuracy and costs, as measured while exporting.
        verified: on how many images of what the files were compared with the network, and how far they differed.
        provenance: where it comes from.
        quantised: of an int8 bundle, how it was quantised and how its accuracy and times compare with float32; empty
            if the segments are in float32. See `offramp.bundle.int8.convert`.
        digest: SHA-256 of the text that was read; filled by `parse`.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    exits: int
    parts: tuple[SegmentSpec, ...]
    files: Mapping[str, str]
    measured: Mapping[str, Any] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    quantised: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def precision(self) -> str:
        """`int8` if the segments are quantised, else `float32`."""
        return "int8" if self.quantised else "float32"


def render(manifest: Manifest) -> str:
    """The manifest as text, with the digest of that text in it."""
    values = {"format": FORMAT, "version": VERSION, **asdict(manifest), "digest": _BLANK}
    text = json.dumps(values, indent=2) + "\n"
    return text.replace(_BLANK, _digest(text))


def parse(data: bytes, source: str) -> Manifest:
    """Read a manifest; `source` names it in errors.

    Raises:
        ValueError: if it is none, of another version, changed since it was written, or says what cannot be.
    """
    values = parse_json(data, source, object)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{source} is not the manifest of a bundle: its `format` is not `{FORMAT}`")
    if values.get("version") != VERSION:
        raise ValueError(
            f"{source} has bundle version {quoted(values.get('version'))}; this offramp reads version {VERSION}"
        )
    digest = values.get("digest")
    if not isinstance(digest, str) or _digest(data.decode().replace(digest, _BLANK, 1)) != digest:
        raise ValueError(f"{source} was changed since it was written: export the bundle again")
    try:
        return _consistent(_manifest(values, digest))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(str(error), 500)
        raise ValueError(f"{source} is inconsistent: {reason}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(values: dict[str, Any], digest: str) -> Manifest:
    """The checked values of a JSON object."""
    image = values["preprocessing"]
    preprocessing = Preprocessing(
        channels=_whole(image["channels"]),
        size=_whole(image["size"]),
        resize=_whole(image["resize"]),
        mean=_many(image["mean"], _number),
        std=_many(image["std"], _number),
        interpolation=_text(image.get("interpolation", "bilinear")),
    )
    return Manifest(
        classes=_many(values["classes"], _text),
        preprocessing=preprocessing,
        exits=_whole(values["exits"]),
        parts=_many(values["parts"], _segment),
        files={_plain(name): _text(value) for name, value in values["files"].items()},
        measured=dict(values["measured"]),
        verified=dict(values["verified"]),
        provenance=dict(values["provenance"]),
        quantised=dict(values.get("quantised", {})),
        digest=digest,
    )


def _consistent(manifest: Manifest) -> Manifest:
    """The same manifest, if its segments fit each other, the exits and the files."""
    if not 0 < manifest.exits <= MOST_EXITS or not manifest.classes:
        raise ValueError(f"it has {manifest.exits} exits and {len(manifest.classes)} classes")
    order = [spec.exit for spec in manifest.parts]
    if not order or order != sorted(set(order)) or order[0] < 0 or order[-1] != manifest.exits - 1:
        raise ValueError(f"segments of the exits {order} do not end with the last of {manifest.exits}")
    for name in (POLICY, *(spec.file for spec in manifest.parts)):
        if name not in manifest.files:
            raise ValueError(f"{name} has no digest")
    shape = tuple(port.shape for port in manifest.parts[0].takes_state)
    if shape != (manifest.preprocessing.shape,) or manifest.parts[0].takes_carry:
        raise ValueError(f"images become {manifest.preprocessing.shape}, but the first segment takes {shape}")
    for previous, following in zip(manifest.parts, manifest.parts[1:], strict=False):
        outputs, inputs = previous.gives_state + previous.gives_carry, following.takes_state + following.takes_carry
        if [(p.shape, p.dtype) for p in outputs] != [(p.shape, p.dtype) for p in inputs]:
            raise ValueError(f"{following.file} does not take the outputs of {previous.file}")
    return manifest


def _segment(value: Any) -> SegmentSpec:
    names = [field.name for field in fields(SegmentSpec) if field.name not in ("file", "exit")]
    tensors = {name: _many(value[name], _tensor) for name in names}
    return SegmentSpec(file=_plain(value["file"]), exit=_whole(value["exit"]), **tensors)


def _tensor(value: Any) -> TensorSpec:
    if value["dtype"] not in DTYPES:
        raise ValueError(f"tensors are of {', '.join(DTYPES)}, not {quoted(value['dtype'])}")
    shape = _many(value["shape"], _whole)
    if min(shape, default=1) < 1 or math.prod(shape) > LARGEST:
        raise ValueError(
            f"a tensor of shape {quoted(shape)} is empty, or has more than {LARGEST:,} values for an image"
        )
    name = _text(value["name"])
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{quoted(name)} is not a tensor name")
    return TensorSpec(name, shape, value["dtype"])


def _plain(name: Any) -> str:
    """A file name that stays in the folder, whatever the system."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or name.endswith("."):
        raise ValueError(f"{quoted(name)} is not the name of a file in the bundle's folder")
    return name


def _many(value: Any, kind: Callable[[Any], Any]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{quoted(value)} should be a list")
    return tuple(map(kind, value))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{quoted(value)} should be a whole number")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{quoted(value)} should be a finite number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} should be a text")
    return value
