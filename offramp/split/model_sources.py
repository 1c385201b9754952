"""External models by name: timm:NAME, torchvision:NAME, transformers:TYPE and python:package.module:function."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.lookup import ParameterError, nearest, unknown, with_parameters
from offramp.net import Backbone
from offramp.optional import vision
from offramp.python_names import import_module, working_directory
from offramp.split.logits import dtype_of
from offramp.split.untraceable import where

EXITS = 4
"""Exits, the final one included, where neither their number nor their places were asked for."""
FROM_DATA = ("classes", "num_classes", "num_labels", "channels", "in_chans", "num_channels")
"""Arguments of constructors that follow from the data."""
FROM_FILES = ("pretrained", "use_pretrained", "checkpoint_path", "weights", "cache_dir")
"""Beginnings of arguments by which constructors fetch weights, or read them in ways that are not safe."""
FROM_CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "code_revision")
"""Arguments of transformers that load code from elsewhere."""


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    exits_after: Sequence[str] = (),
    exits: int | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    check: bool = True,
) -> Backbone:
    """Build an external model, newly initialised, and cut it; nothing is downloaded.

    Args:
        name: as in `offramp.models.EXTERNAL`.
        classes: number of classes C.
        channels: channels of the images.
        size: (height, width) of the images; default what the network is made for.
        exits_after: layers to attach exits to.
        exits: how many exits to place at equal shares of the multiply-adds instead; default `EXITS`.
        options: passed to the network's constructor.
        device, check: as in `offramp.split.split`.

    Raises:
        ValueError: naming the nearest name, the package to install, or what does not fit.
    """
    from offramp.split import split

    if exits_after and exits is not None:
        raise with_parameters(
            ValueError("exits_after names the layers to place them after, exits how many to place: give one of them"),
            "exits_after",
            "exits",
        )
    with working_directory(name):
        make, usual = _source(name, classes, channels, size, options or {})
        model = _constructed(name, make)
        if isinstance(model, Backbone):
            if exits_after or exits is not None:
                raise with_parameters(
                    ValueError(
                        f"{name} is divided into stages already: exits_after and exits are for models that are not"
                    ),
                    "exits_after",
                    "exits",
                )
            return model
        _check_precision(name, model)
        places = exits_after or (EXITS if exits is None else exits)
        again = partial(_again, name, make)
        return split(model, places, (channels, *(size or usual)), make=again, device=device, check=check)


def construct(
    name: str, *, classes: int, channels: int = 3, size: tuple[int, int] | None = None, **options: Any
) -> nn.Module | Backbone:
    """Construct an external model, newly initialised, without cutting it; arguments and errors as in `build`."""
    with working_directory(name):
        model: nn.Module | Backbone = _constructed(name, _source(name, classes, channels, size, options)[0])
    return model


def shape(
    name: str, *, classes: int, channels: int = 3, options: Mapping[str, Any] | None = None
) -> tuple[int, int, int]:
    """The input (channels, height, width) that an external model is made for; it is not cut for that."""
    with working_directory(name):
        make, usual = _source(name, classes, channels, None, options or {})
        model = _constructed(name, make)
    return model.shape if isinstance(model, Backbone) else (channels, *usual)


def _again(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    with working_directory(name):
        return make()


def _source(
    name: str, classes: int, channels: int, size: tuple[int, int] | None, options: Mapping[str, Any]
) -> "ModelSource":
    library, _, rest = name.partition(":")
    offered = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers, "python": _python}
    if library not in offered:
        raise ValueError(f"unknown net {name!r}; before a colon {nearest(library, offered)}")
    _check_options(library, options)
    return offered[library](rest, classes, channels, size, dict(options))


def _check_precision(name: str, model: nn.Module) -> None:
    """Refuse models that cannot take float32 images.

    Raises:
        ValueError: naming the precision.
    """
    dtype = dtype_of(model)
    if dtype != torch.float32:
        raise ValueError(
            f"{name} has weights in {str(dtype).removeprefix('torch.')}, but images come in float32: let the function "
            "return model.float() (precision=bf16 computes in bfloat16)"
        )


def _check_options(library: str, options: Mapping[str, Any]) -> None:
    """Refuse arguments of constructors that say what is known already, or would bring weights by themselves.

    Raises:
        ParameterError: naming the argument and what to do instead.
    """
    for key in options:
        if key in FROM_DATA:
            raise ParameterError(f"net.{key} follows from the data: omit it", f"net.{key}")
        if library != "python" and key.startswith(FROM_FILES):
            raise ParameterError(
                f"net.{key}: nothing is downloaded here; omit it and use weights=FILE", f"net.{key}", "weights"
            )
        if library != "python" and key in FROM_CODE:
            raise ParameterError(f"net.{key}: code is not downloaded; use python:MODULE:FUNCTION for it", f"net.{key}")
    side = options.get("image_size", 1)
    if library != "transformers" and not (isinstance(side, int) and side >= 1):
        raise ParameterError(f"net.image_size must be a whole number of at least 1, got {side!r}", "net.image_size")


def _constructed(name: str, make: Callable[[], Any]) -> Any:
    """The model.

    Raises:
        ValueError: with what its constructor says; of a function of the user's, with the line.
    """
    try:
        return make()
    except Exception as error:  # other people's code fails in many ways
        reason = " ".join(str(error).split())
        if name.startswith("python:") and traceback.extract_tb(error.__traceback__)[-1].filename != __file__:
            reason = f"{where(error)}: {type(error).__name__}: {reason}"
        raise ValueError(f"{name} cannot be built: {reason}") from None


ModelSource = tuple[Callable[[], Any], tuple[int, int]]
"""How the network is built, and the (height, width) of the images that it is made for."""


def _timm(name: str, classes: int, channels: int, size: tuple[int, int] | None, options: dict[str, Any]) -> ModelSource:
    timm = vision("timm")
    if not timm.is_model(name):
        raise unknown("network of timm", name, timm.list_models(), listing="")
    known = timm.get_pretrained_cfg(name)
    usual: tuple[int, int] = tuple(known.input_size[1:]) if known else (224, 224)
    if size and size != usual and known and known.fixed_input_size:
        options.setdefault("img_size", size)
    return partial(timm.create_model, name, pretrained=False, num_classes=classes, in_chans=channels, **options), usual


def _torchvision(
    name: str, classes: int, channels: int, size: tuple[int, int] | None, options: dict[str, Any]
) -> ModelSource:
    models = vision("torchvision.models")
    names = models.list_models(module=models)
    if name not in names:
        raise unknown("network of torchvision", name, names, listing="")
    if channels != 3:
        raise ValueError(f"torchvision:{name} takes images of 3 channels, not {channels}; timm:{name} may accept them")
    if name in ("googlenet", "inception_v3"):  # without the second classifier that only training has
        options = {"aux_logits": False, "init_weights": True, **options}
    if name.startswith("vit_") and size and size[0] == size[1]:
        options.setdefault("image_size", size[0])
    side = int(options.get("image_size", 299 if name == "inception_v3" else 224))
    return partial(models.get_model, name, weights=None, num_classes=classes, **options), (side, side)


def _transformers(
    name: str, classes: int, channels: int, size: tuple[int, int] | None, options: dict[str, Any]
) -> ModelSource:
    library = vision("transformers")
    auto = vision("transformers.models.auto.modeling_auto")
    arguments = {"num_labels": classes, **options}
    types = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if (Path(name) / "config.json").is_file():
        arguments |= {"local_files_only": True, "trust_remote_code": False}
        config = _constructed(f"transformers:{name}", partial(library.AutoConfig.from_pretrained, name, **arguments))
    elif name in types:
        config = _constructed(f"transformers:{name}", partial(library.AutoConfig.for_model, name, **arguments))
    else:
        raise unknown(
            "type of image classifier, nor folder with a config.json, of transformers", name, types, listing=""
        )
    if hasattr(config, "num_channels"):
        config.num_channels = channels
    if size and hasattr(config, "image_size"):
        config.image_size = size[0] if size[0] == size[1] else list(size)
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise with_parameters(
            ValueError(
                f"transformers:{name} asks for the attention {attention!r}, which may have to be downloaded: use "
                "net.attn_implementation=eager or sdpa"
            ),
            "net.attn_implementation",
        )
    side = getattr(config, "image_size", 224)
    usual = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    return partial(
        _quiet, partial(library.AutoModelForImageClassification.from_config, config, trust_remote_code=False)
    ), usual


def _quiet(make: Callable[[], nn.Module]) -> nn.Module:
    """A model that returns an output with `logits` whatever its configuration says."""
    model = make()
    model.config.return_dict = True  # type: ignore[union-attr]
    return model


def _python(
    name: str, classes: int, channels: int, size: tuple[int, int] | None, options: dict[str, Any]
) -> ModelSource:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"python:{name} must be python:package.module:function")
    function = getattr(import_module(module_name), function_name, None)
    if not callable(function):
        near = nearest(function_name, [each for each in dir(import_module(module_name)) if not each.startswith("_")])
        raise ValueError(f"python:{name}: {module_name} has no function {function_name!r}; {near}")
    parameters = inspect.signature(function).parameters
    if not {"classes", "num_classes"} & set(parameters):
        raise ValueError(
            f"python:{name}: {function_name} must take the number of classes as `classes` or `num_classes`"
        )
    offered = {"classes": classes, "num_classes": classes, "channels": channels, "in_chans": channels}
    if size:
        offered |= {"image_size": size[0]}
    arguments = {key: value for key, value in offered.items() if key in parameters}
    side = int(options.get("image_size", 224))
    return partial(_checked, name, partial(function, **{**arguments, **options})), (side, side)


def _checked(name: str, make: Callable[[], Any]) -> nn.Module | Backbone:
    model = make()
    if not isinstance(model, nn.Module | Backbone):
        raise TypeError(f"the function must return an nn.Module or a Backbone, not {type(model).__name__}")
    return model
