"""What a file of a run or a bundle must look like, checked where it is read: a small language of types for JSON."""

from typing import Any

from offramp.text import quoted

LARGEST = 1e300
"""Numbers from here on are as good as infinite: whole ones need not fit into a float."""
Spec = Any
"""What a value must be:

- `bool`, `int`, `str`; `float`, a finite number, whole or not; `None`; `object`, anything
- `(a, b)`: one of them
- `[a]`: a list of such values
- `{"key": a}`: an object with these keys and perhaps others; a key that ends in `?` may be absent
- `{str: a}`: an object whose values are all such
"""


def check(value: Any, spec: Spec, source: str, key: str = "") -> None:
    """Compare a value, as JSON or YAML gives it, with what it must be.

    Args:
        source: the file (and line) that the value is from; key: its place in the file.
    Raises:
        ValueError: naming the source, the key and what it must be.
    """
    if isinstance(spec, dict) and isinstance(value, dict):
        _check_object(value, spec, source, key)
    elif isinstance(spec, list) and isinstance(value, list):
        for place, part in enumerate(value):
            check(part, spec[0], source, f"{key}[{place}]")
    elif isinstance(spec, tuple) and any(_same_kind(value, choice) for choice in spec):
        check(value, next(choice for choice in spec if _same_kind(value, choice)), source, key)
    elif isinstance(spec, tuple) or not _same_kind(value, spec):
        raise ValueError(f"{source}: {key or 'its content'} must be {_words(spec)}, got {quoted(value)}")


def fits(value: Any, spec: Spec) -> bool:
    """Whether a value is what it must be."""
    try:
        check(value, spec, "")
    except ValueError:
        return False
    return True


def _check_object(value: dict[Any, Any], spec: dict[Any, Spec], source: str, key: str) -> None:
    inside = f"{key}." if key else ""
    if str in spec:
        for name, part in value.items():
            check(part, spec[str], source, f"{inside}{quoted(name, 40)}")
        return
    for name, expected in spec.items():
        plain = name.removesuffix("?")
        if plain in value:
            check(value[plain], expected, source, inside + plain)
        elif plain == name:
            raise ValueError(f"{source}: {inside}{name} is missing")


def _same_kind(value: Any, spec: Spec) -> bool:
    """Whether a value is of the spec's type; of lists and objects, without looking inside."""
    if spec is object:
        return True
    if spec is None or isinstance(spec, list | dict):
        return type(value) is type(spec)
    if spec is float:
        return type(value) in (int, float) and abs(value) < LARGEST
    return type(value) is spec


def _words(spec: Spec) -> str:
    if isinstance(spec, tuple):
        return " or ".join(_words(part) for part in spec)
    if isinstance(spec, list):
        return "a list"
    if isinstance(spec, dict):
        return "an object"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", None: "null"}
    return names[spec]
