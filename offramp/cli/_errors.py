"""The edge between library and command line: parameters of the library become options in what is printed."""

import re


def as_typed(error: BaseException) -> str:
    """The message of an error with the parameters that it names (`ParameterError.parameters`) written as options.

    `batch_size must be at least 1` -> `--batch-size must be at least 1`; `take tune=all` -> `take --tune all`.
    """
    return dashed(str(error), getattr(error, "parameters", ()))


def dashed(message: str, parameters: tuple[str, ...]) -> str:
    """The message with these names in it written as options."""
    if not parameters:
        return message
    names = "|".join(map(re.escape, sorted(parameters, key=len, reverse=True)))
    pattern = rf"(?<![\w.\-/'\"=])({names})(=(?=\S)|(?![\w\-/'\"]|\.\w))"
    return re.sub(pattern, lambda match: _option(match[1]) + (" " if match[2] else ""), message)


def _option(name: str) -> str:
    """`batch_size` -> `--batch-size`; the key in `method.beta_begin` stays as the method writes it."""
    kind, dot, key = name.partition(".")
    return f"--{kind}.{key}" if dot else f"--{kind.replace('_', '-')}"
