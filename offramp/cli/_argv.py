"""Prepares the command line for the parser: collects dotted parameters and merges the config file (options win)."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from offramp import trust
from offramp.config import read_yaml, recipes, resolve, unflat
from offramp.config.files import OF_DEVICE
from offramp.hyperparameters import KINDS
from offramp.lookup import ParameterError
from offramp.text import as_typed

CONFIGURED, DOTTED = ("train", "compare", "sweep"), ("train", "compare", "sweep", "info", "evaluate")
"""The verbs that take a config file, and those that take dotted parameters; elsewhere both are unknown options."""
ONE_FOR_MANY = ("--seed", "--method")
"""Options that `compare` has in the plural; in a config file the singular is allowed and overridden."""


def rewrite(argv: list[str]) -> list[str]:
    """Rewrite the words of a command line.

    `--method.alpha .5` (and `=`) becomes `--option method.alpha=.5`; `--config FILE` or the file of `--recipe NAME` is
    read, or else the configuration of the run that is resumed, and what the command line does not say itself is
    appended from it. The folder of a run of a recipe is runs/ and the recipe's name, unless `--out` is given.

    Raises:
        ValueError: if a value is missing, an option is given beside its values in `--grid`, or the config file is
            absent, no YAML, has an unknown key or a value of the wrong type.
    """
    words: list[str] = []
    typed: set[str] = set()
    varied: list[str] = []
    configs: list[Path] = []
    recipe = ""
    rest = list(argv)
    verb = argv[0] if argv else ""
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        kind, dot, key = name.removeprefix("--").partition(".")
        dotted = verb in DOTTED and name.startswith("--") and dot and key and kind in KINDS
        config = verb in CONFIGURED and name in ("--config", "--recipe")
        if (dotted or config) and not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{name} needs a value")
            value = rest.pop(0)
        if dotted:
            typed.add(_bare(name))
            words += ["--option", f"{kind}.{key}={value}"]
        elif config:
            recipe = value if name == "--recipe" else recipe
            configs.append(recipes.find(value) if name == "--recipe" else Path(value))
        else:
            if word.startswith("--"):
                typed.add(_bare(name))
            if verb == "compare" and name in ONE_FOR_MANY:
                raise ParameterError(f"compare trains with several: take {name}s (comma-separated), not {name}")
            if name == "--grid":
                varied.append((value or (rest[0] if rest else "")).removeprefix("--").partition("=")[0])
            words.append(word)
    for key in varied:
        if _bare(key) in typed:
            raise ParameterError(f"--grid {key} and --{key} set the same option: give one of them")
    if (gpu := (value_of(words, "device") or "").removeprefix("cuda:")).isdecimal():
        raise ParameterError(
            f"--device takes auto, cpu or cuda, not the number of a GPU: set CUDA_VISIBLE_DEVICES={gpu} for that one"
        )
    if verb == "train" and recipe and "out" not in typed:
        words += ["--out", f"runs/{recipe}"]
    if len(configs) > 1:
        raise ValueError("--config and --recipe name one file: give one of them, once")
    for path in configs or _of_resumed(words):
        values = read_yaml(path)
        if not configs and value_of(words, "device") not in (None, "auto", values.get("device")):
            values = {key: value for key, value in values.items() if key not in OF_DEVICE}
        if not configs and trust.code_names({key: value for key, value in values.items() if _bare(key) not in typed}):
            trust.check(values, path.parent)
        unflat(values, str(path))  # a value of the wrong type is an error in the file: its name is added
        others = [kind for kind in KINDS if not configs and value_of(words, kind) not in (None, values.get(kind))]
        for key, value in values.items():
            if _bare(key) not in typed and key.partition(".")[0] not in others:
                words += _words(key, value)
    return words


def _of_resumed(words: list[str]) -> list[Path]:
    """The configuration in the folder of a run that is resumed: what is not typed is as it was."""
    out = value_of(words, "out") if words[:1] == ["train"] and "--resume" in words else None
    return [] if out is None or not (Path(out) / "config.yaml").is_file() else [Path(out) / "config.yaml"]


def value_of(words: list[str], option: str) -> str | None:
    """The value of an option among the words of a command."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            return value if equals else following
    return None


def check_whole(verb: Callable[..., Any], words: list[str]) -> None:
    """Refuse fractions where a verb's option takes a whole number: the parser would round them.

    Raises:
        ParameterError: naming the option.
    """
    hints = _whole(verb)
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        text = value if equals else following
        if not name.startswith("--") or _bare(name) not in hints or "." not in text:
            continue
        try:
            whole = float(text).is_integer()
        except ValueError:  # the parser says what is wrong with it
            continue
        if not whole:
            raise ParameterError(f"{name} takes a whole number, got {text}")


def _whole(owner: Any) -> set[str]:
    """The options of a verb, or of a configuration among its parameters, that take whole numbers."""
    types: set[str] = set()
    for name, hint in get_type_hints(owner).items():
        if dataclasses.is_dataclass(hint):
            types |= _whole(hint)
        elif int in (hint, *get_args(hint)):
            types.add(name.replace("_", "-"))
    return types


def with_config_file(argv: list[str], message: str) -> str:
    """The message, with the name of the config file if the mistake is in it."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name == "--config":
            path = value or following
            try:
                resolve(unflat(read_yaml(Path(path)), path))
            except ParameterError as error:
                return message if str(error).startswith(path) else f"{path}: {error}"
    return message


def _bare(name: str) -> str:
    """The option that is meant: `--no-streaming` is about `streaming`, and `--net.width` is `--width`."""
    bare = name.removeprefix("--").removeprefix("no-").replace("_", "-")
    return "width" if bare == "net.width" else bare


def _words(key: str, value: Any) -> list[str]:
    """A key of a config file, as it would be typed."""
    kind, dot, _ = key.partition(".")
    if dot and kind in KINDS:
        if value is None:
            return []
        return ["--option", f"{key}={as_typed(value)}"]
    option = f"--{key.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if isinstance(value, list):
        return [word for part in value for word in (option, str(part))] or [option, ""]
    return [option, str(value)]
