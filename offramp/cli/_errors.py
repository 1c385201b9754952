"""The edge between library and command line: parameters of the library become options in what is printed."""

import re


def as_typed(error: BaseException) -> str:
    """The message of an error with the parameters that it names (`ParameterError.parameters`) written as options.

    `batch_size must be at least 1` -> `--batch-size must be at least 1`; `take tune=all` -> `take --tune all`. A name
    that has a value is an ordinary word of the sentence elsewhere: `weights=a.pt contains no weights`.
    """
    return dashed(str(error), getattr(error, "parameters", ()))


def dashed(message: str, parameters: tuple[str, ...]) -> str:
    """The message with these names in it written as options."""
    if not parameters:
        return message
    names = sorted(set(parameters), key=len, reverse=True)
    pattern = rf"{_BEFORE}(?:{'|'.join(_form(name, message) for name in names)})"
    return re.sub(pattern, lambda match: _option(match[0].removesuffix("=")) + " " * match[0].endswith("="), message)


_BEFORE, _AFTER = r"(?<![\w.\-/'\"=\[])", r"(?![\w\-/'\"=]|\.\w)"


def _form(name: str, message: str) -> str:
    """What to look for: the name with its value if there is one, else the name alone."""
    value = rf"{re.escape(name)}=(?=\S)"
    return value if re.search(_BEFORE + value, message) else re.escape(name) + _AFTER


def _option(name: str) -> str:
    """`batch_size` -> `--batch-size`, `from_` -> `--from`; the key in `method.beta_begin` stays as it is."""
    kind, dot, key = name.partition(".")
    return f"--{kind}.{key}" if dot else f"--{kind.rstrip('_').replace('_', '-')}"
