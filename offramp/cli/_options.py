"""Options that several verbs share, and those of a configuration, made from the fields of `Config`."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli._errors import dashed
from offramp.config import Config
from offramp.config.files import fields
from offramp.docstrings import described
from offramp.hyperparameters import KINDS
from offramp.lookup import ParameterError
from offramp.text import as_typed
from offramp.train.recipe import Recipe


def _words(kind: Any, tokens: Sequence[Any]) -> tuple[str, ...]:
    """Comma-separated words, the option repeated, or both; an empty word counts as none."""
    return tuple(word for token in tokens for word in token.value.split(",") if word)


def _fractions(kind: Any, tokens: Sequence[Any]) -> tuple[float, ...]:
    """Comma-separated numbers, the option repeated, or both; an empty word counts as none."""
    words = _words(kind, tokens)
    try:
        return tuple(map(float, words))
    except ValueError:
        raise ParameterError(f"fractions of the run must be numbers such as 0.5,0.75, got {','.join(words)}") from None


def _sizes(kind: Any, tokens: Sequence[Any]) -> tuple[int, ...]:
    """Comma-separated batch sizes, the option repeated, or both; an empty word counts as none."""
    words = _words(kind, tokens)
    try:
        return tuple(map(int, words))
    except ValueError:
        raise ParameterError(f"batch sizes must be whole numbers such as 1,64, got {','.join(words)}") from None


def _stages(kind: Any, tokens: Sequence[Any]) -> tuple[int, ...]:
    """Comma-separated whole numbers, the option repeated, or both; an empty word counts as none."""
    words = _words(kind, tokens)
    try:
        return tuple(map(int, words))
    except ValueError:
        raise ParameterError(f"stages must be whole numbers such as 2,3, got {','.join(words)}") from None


Json = Annotated[bool, Parameter(negative="", help="Print the result as one JSON object.")]
DataDir = Annotated[Path | None, Parameter(help="Data directory, if it has moved since training.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Parameter(help="Device to compute on; `auto` is a GPU if there is one.")
]
Jobs = Annotated[
    int | Literal["auto"],
    Parameter(
        help="Number of runs at a time (with Ray: on each node), each with an equal share of the cores. `auto`: the "
        "number that finishes all runs soonest, from a measurement of a few steps; with Ray, 1."
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    Parameter(
        help="Where runs are trained. `local`: in processes of this machine; `ray`: on the nodes of a Ray cluster that "
        "share --out."
    ),
]
Address = Annotated[
    str | None,
    Parameter(
        help="HOST:PORT of the Ray cluster's head; default: $RAY_ADDRESS, a cluster of this machine, or a new one."
    ),
]
Fetch = Annotated[
    bool,
    Parameter(
        negative="",
        help="For Ray nodes that do not share --out: each run is trained in a temporary folder of its node, and "
        "fetched after checkpoints and when it ends.",
    ),
]
BaselinePath = Annotated[
    Path | None,
    Parameter(
        help="Plain network to compare with: a run without early exits (--method vanilla) on the same images, or a "
        "file of weights of this network. Default: the final exit of this network."
    ),
]
Weights = Annotated[
    Literal["last", "best"],
    Parameter(help="Weights of the last epoch, or of the epoch with the best validation accuracy."),
]


def _paths(kind: Any, tokens: Sequence[Any]) -> tuple[Path, ...]:
    return tuple(map(Path, _words(kind, tokens)))


OutputFiles = Annotated[tuple[Path, ...], Parameter(negative="", show_default=False, converter=_paths)]
Stages = Annotated[tuple[int, ...], Parameter(negative="", show_default=False, converter=_stages)]
Sizes = Annotated[tuple[int, ...], Parameter(negative="", show_default=False, converter=_sizes)]
Layers = Annotated[tuple[str, ...], Parameter(negative="", show_default=False, converter=_words)]
Dotted = Annotated[list[str] | None, Parameter(name="--option", negative="", show=False)]
"""What `--net.KEY value` and the like become."""
ConfigFile = Annotated[
    Path | None,
    Parameter(name="--config", parse=True, help="YAML file with options; options on the command line take precedence."),
]
RecipeName = Annotated[
    str | None,
    Parameter(
        name="--recipe",
        parse=True,
        help="Name of a recipe that ships with offramp (see `offramp recipes`), instead of --config.",
    ),
]


_CONVERTERS = {
    "exits_at": Parameter(negative="", show_default=False, converter=_stages),
    "exits_after": Parameter(negative="", show_default=False, converter=_words),
    "milestones": Parameter(negative="", converter=_fractions, show_default=as_typed),
    "log_accuracy": Parameter(negative="", show_default=False, converter=_words),
}


def _option(name: str, hint: Any, text: str, show: bool) -> Any:
    """An option; parameters of other options in its text are written as on the command line."""
    converter = (_CONVERTERS[name],) if name in _CONVERTERS else ()
    named = tuple(one for one in fields() if f"{one}=" in text or ("_" in one and one in text))
    return Annotated[(hint, *converter, Parameter(help=dashed(text, named), show=show))]


def _config_options(class_name: str, hidden: tuple[str, ...] = ()) -> type[Any]:
    """A dataclass of all options of a configuration, with the help texts of `Config` and `Recipe`.

    Args:
        hidden: options that the help of the verb does not list.
    """
    hints, texts = typing.get_type_hints(Config), described(Recipe) | described(Config)
    defaults = {spec.name: spec.default for spec in dataclasses.fields(Config)}
    options = [
        (name, _option(name, hints[name], texts[name], name not in hidden), dataclasses.field(default=defaults[name]))
        for name in fields()
    ]
    namespace = {"__module__": __name__}  # else it counts as a type of Python's own, which has no options
    parsed = dataclasses.make_dataclass(class_name, options, namespace=namespace, kw_only=True, frozen=True)
    return Parameter(name="*")(parsed)


if TYPE_CHECKING:
    ConfigOptions = Config
    SharedOptions = Config
else:
    ConfigOptions = _config_options("ConfigOptions")
    SharedOptions = _config_options("SharedOptions", hidden=("method", "seed"))  # of all runs of a comparison


def config_of(options: ConfigOptions | SharedOptions, dotted: list[str] | None) -> Config:
    """The configuration that was typed: options, and `net.KEY=VALUE` and the like."""
    return Config(**{name: getattr(options, name) for name in fields()}, **by_kind(dotted or []))


def by_kind(words: list[str]) -> dict[str, Any]:
    """`["method.alpha=.5"]` -> {"method_options": {"alpha": ".5"}}, as `Config` takes them."""
    options: dict[str, dict[str, Any]] = {}
    for word in words:
        matched = re.fullmatch(rf"({'|'.join(KINDS)})\.([^=]+)=(.*)", word, re.DOTALL)
        if matched is None:
            raise ValueError(f"--option takes KIND.KEY=VALUE with KIND one of {', '.join(KINDS)}, got {word!r}")
        options.setdefault(f"{matched[1]}_options", {})[matched[2]] = matched[3]
    return options
