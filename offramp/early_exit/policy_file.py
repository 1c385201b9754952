"""Policies in files: `policy.json` is read, checked and written here. Runs without torch."""

from pathlib import Path
from typing import Any

from offramp.early_exit.policy import FIELDS, LATER, VERSION, ExitPolicy, digest_of
from offramp.files import parse_json, replacing, write_errors
from offramp.schema import check
from offramp.text import quoted

ORIGIN = {
    "goal?": ({str: (float, None)}, None),
    "samples?": int,
    "weights?": str,
    "epoch?": int,
    "weights_digest?": str,
    "segment_costs?": [float],
    "plain?": {str: float},
    "certificate?": ({"samples": int}, None),
}
"""Content of the provenance of a policy; see `offramp.schema`."""


def parse(text: str | bytes, source: str = "policy") -> ExitPolicy:
    """Read a policy from JSON text; `source` names it in errors.

    Raises:
        ValueError: if it is not a policy, of another version, changed since it was written, or not valid.
    """
    values = parse_json(text, source, object)
    if not isinstance(values, dict) or values.get("format") != "offramp-policy":
        raise ValueError(f"{source} is not a policy: its `format` is not `offramp-policy`")
    if values.get("version") != VERSION:
        raise ValueError(
            f"{source} has policy version {quoted(values.get('version'))}; this offramp reads version {VERSION}"
        )
    missing = [name for name in FIELDS if name not in values and name not in LATER]
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing)}")
    try:
        policy = ExitPolicy(**{name: _typed(name, values[name]) for name in FIELDS if name in values})
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{source}: {error}") from None
    if "digest" in values and values["digest"] != digest_of(values):
        raise ValueError(
            f"{source} was changed since it was written: fit it again, or remove its `digest` to use it as it is"
        )
    return policy


def _typed(name: str, value: Any) -> Any:
    """The value of a field of a policy, lists as tuples; an error says what it must be."""
    if name == "predictors":
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list of lists of numbers, got {quoted(value)}")
        return tuple(_typed(f"{name}[]", weights) for weights in value)
    many, kinds, expected = _KINDS[name]
    parts = value if many and isinstance(value, list) else [value]
    if many != isinstance(value, list) or any(type(part) not in kinds for part in parts):
        raise ValueError(f"{name} must be {expected}, got {quoted(value)}")
    return tuple(map(kinds[0], value)) if many else value


_NUMBERS = (True, (float, int), "a list of numbers")
_KINDS: dict[str, tuple[bool, tuple[type, ...], str]] = {
    "thresholds": _NUMBERS,
    "enabled": (True, (bool,), "a list of true or false"),
    "score": (False, (str,), "a text"),
    "temperatures": _NUMBERS,
    "answer": (False, (str,), "a text"),
    "patience": (False, (int,), "a whole number"),
    "predictors[]": _NUMBERS,
}


def save(policy: ExitPolicy, path: Path, provenance: dict[str, Any] | None = None) -> None:
    """Write atomically; the previous policy is kept as `<name>.old`."""
    with write_errors(path), replacing(path) as draft:
        draft.write_text(policy.to_json(provenance) + "\n")
        if path.exists():  # copied, not moved: there is a policy at every moment
            with replacing(path.with_suffix(path.suffix + ".old")) as copy:
                copy.write_bytes(path.read_bytes())


def load(path: Path) -> ExitPolicy:
    """Read `policy.json`; see `parse`."""
    return load_with_origin(path)[0]


def load_with_origin(path: Path) -> tuple[ExitPolicy, dict[str, Any]]:
    """Read `policy.json` and its provenance ({} if there is none), checked; errors as in `parse`."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a policy: it is not text") from None
    policy = parse(text, str(path))
    origin = parse_json(text, str(path)).get("provenance") or {}
    check(origin, ORIGIN, f"{path} is damaged", "provenance")
    return policy, origin
