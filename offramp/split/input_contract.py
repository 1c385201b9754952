"""What the pretrained weights of an external network expect of their inputs, from the network's own configuration."""

from typing import Any, NamedTuple

from offramp.optional import vision


class InputContract(NamedTuple):
    """How images are prepared for a network.

    Attributes:
        mean: Of each channel, for pixels in 0..1.
        std: Standard deviation of each channel.
        interpolation: How images are resized, one of `offramp.images.INTERPOLATIONS`.
        crop: Share of the resized image that the centre crop keeps, size / resize.
        note: What of its own preparation is not done here; empty if all is.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float
    note: str = ""


def input_contract(name: str) -> InputContract | None:
    """The input contract of a network such as timm:resnet18 or torchvision:resnet50; None for other names.

    Raises:
        ValueError: if the library is not installed.
    """
    source, _, rest = name.partition(":")
    if source == "timm":
        return _of_timm(rest)
    return _of_torchvision(rest) if source == "torchvision" else None


def _of_timm(name: str) -> InputContract | None:
    timm = vision("timm")
    config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return None
    note = ""
    if config.crop_mode != "center":
        note = f"timm prepares images for {name} by {config.crop_mode}; here the centre is cropped"
    return InputContract(
        tuple(map(float, config.mean)), tuple(map(float, config.std)), config.interpolation, config.crop_pct, note
    )


def _of_torchvision(name: str) -> InputContract | None:
    models = vision("torchvision.models")
    if name not in models.list_models(module=models):
        return None
    transforms: Any = models.get_model_weights(name).DEFAULT.transforms()
    crop = transforms.crop_size[0] / transforms.resize_size[0]
    return InputContract(tuple(transforms.mean), tuple(transforms.std), transforms.interpolation.value, crop)
