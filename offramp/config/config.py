"""What a run is made of, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from offramp.hyperparameters import KINDS
from offramp.lookup import ParameterError
from offramp.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """Network, exits, method and data of a run, and every field of `Recipe`: `Config(net="resnet18", epochs=15)`.

    It extends `Recipe` by fields alone, so that the training loop, which reads nothing else, needs not know `Config`.

    Attributes:
        net: The network (`offramp nets`), also timm:NAME, torchvision:NAME, transformers:TYPE, python:MODULE:FUNCTION;
            for methods that train several of them, a comma-separated list.
        branch: The structure of the exits (`offramp branches`), also python:MODULE.
        method: How the exits are trained (`offramp methods`), also python:MODULE.
        tap: How gradients meet at the exits: the method's `own` way, or gradient equilibrium on top of any method (in
            networks of several scales at the coarsest scale, or at all).
        data: The data set (`offramp data`), folder:PATH, parquet:PATH, hub:OWNER/NAME or python:MODULE.
        data_dir: The data set's own folder or its parent; else $OFFRAMP_DATA.
        width: Base channels of the network, short for the parameter `width` of the network.
        exits_after: Layers after which exits stand, such as layer1,layer2 (`timm:`, `torchvision:`, `transformers:`,
            `python:`).
        exits_at: Stages behind which exits stand, such as 2,3 for the second and third; default all but the last stage.
        exits: Number of exits, the final one included; in those networks placed at equal shares of the operations.
        weights: Start from these weights: safetensors, a PyTorch checkpoint, or those of a run.
        image_size: Side of the images in pixels, if the data set has no size of its own.
        per_class: Take only this many training images of each class, CIFAR(X) of DBT and HDKD.
        holdout: Share of the training images held out, half for val and half for cal; 0 trains on all.
        split_seed: Seed of the held-out split.
        streaming: Decode images anew in every epoch, in bounded memory.
        net_options: Parameters of the network (`offramp nets NAME`), such as `{"form": "cifar"}`.
        branch_options: Parameters of the exits (`offramp branches NAME`).
        method_options: Parameters of the method (`offramp methods NAME`), such as `{"alpha": 0.1}`.
        data_options: Parameters of the data source (`offramp data NAME`).
    Raises:
        ParameterError: naming the parameter, if a value makes no sense.
    """

    net: str = "resnet18"
    branch: str = "sketch"
    method: str = "muse"
    tap: Literal["own", "equilibrium", "equilibrium-all"] = "own"
    data: str = "digits"
    data_dir: Path | None = None
    width: int | None = None
    exits_after: tuple[str, ...] = ()
    exits_at: tuple[int, ...] = ()
    exits: int | None = None
    weights: Path | None = None
    image_size: int | None = None
    per_class: int | None = None
    holdout: float = 0.1
    split_seed: int = 0
    streaming: bool = False
    net_options: Mapping[str, Any] = field(default_factory=dict)
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.holdout < 1:
            raise ParameterError(f"holdout must be a share in [0, 1), got {self.holdout}", "holdout")

    @property
    def recipe(self) -> Recipe:
        """What the training loop reads of it."""
        return self

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Parameters of network, branch, method and data source by kind; kinds without any are absent."""
        options = {kind: dict(getattr(self, f"{kind}_options")) for kind in KINDS}
        return {kind: values for kind, values in options.items() if values}
