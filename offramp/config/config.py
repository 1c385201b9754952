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

    It only adds fields to `Recipe`, the part that the training loop reads.

    Attributes:
        net: The network (`offramp nets`), also timm:NAME, torchvision:NAME, transformers:TYPE, python:MODULE:FUNCTION;
            for methods that train several networks, a comma-separated list.
        branch: The structure of the exits (`offramp branches`), also python:MODULE.
        method: How the exits are trained (`offramp methods`), also python:MODULE.
        tap: How gradients of several exits are combined in the backbone. `method`: as the method specifies;
            `equilibrium`: with gradient equilibrium in addition (in multi-scale networks at the coarsest scale only);
            `equilibrium-all`: the same at every scale.
        data: The data set (`offramp data`), folder:PATH, parquet:PATH, tar:PATH, hub:OWNER/NAME or
            python:MODULE.
        data_dir: The folder of the data set, or its parent; default: $OFFRAMP_DATA.
        width: Base channels of the network; short for the network's parameter `width`.
        exits_after: Layers of an external model (`timm:`, `torchvision:`, `transformers:`, `python:`) to attach exits
            to, comma-separated, such as layer1,layer2.
        exits_at: Stages to attach exits to, comma-separated, counted from 1, such as 2,3; default: all but the last.
        exits: Number of exits, the final one included. In external models they are placed at equal shares of the
            operations. `auto`: their places and structure are chosen for goal_macs.
        goal_macs: With exits=auto: target for the mean multiply-adds, as a share of the plain network's, such as 0.4.
        weights: File to start from: safetensors, a PyTorch checkpoint, or the weights of a run.
        pretrained: Start from the pretrained weights of a timm: or torchvision: network; its library downloads them
            unless they are installed or cached.
        image_size: Height and width of the images in pixels, for data sets without a fixed size.
        per_class: Use only this many training images of each class (CIFAR(X) in the DBT and HDKD papers).
        holdout: Share of the training images to hold out, half for val and half for cal; 0: none.
        split_seed: Seed that selects the held-out images.
        streaming: Decode the images in every epoch instead of once, in bounded memory.
        skip_damaged: Leave out damaged images and shards of folder:, parquet:, tar: and hub:; their number is printed.
        net_options: Parameters of the network (`offramp nets NAME`), such as `{"form": "cifar"}`.
        branch_options: Parameters of the exits (`offramp branches NAME`).
        method_options: Parameters of the method (`offramp methods NAME`), such as `{"alpha": 0.1}`.
        data_options: Parameters of the data source (`offramp data NAME`).
    Raises:
        ParameterError: naming the parameter, if a value is invalid or of a wrong type.
    """

    net: str = "resnet18"
    branch: str = "sketch"
    method: str = "joint"
    tap: Literal["method", "equilibrium", "equilibrium-all"] = "method"
    data: str = "digits"
    data_dir: Path | None = None
    width: int | None = None
    exits_after: tuple[str, ...] = ()
    exits_at: tuple[int, ...] = ()
    exits: int | Literal["auto"] | None = None
    goal_macs: float | None = None
    weights: Path | None = None
    pretrained: bool = False
    image_size: int | None = None
    per_class: int | None = None
    holdout: float = 0.1
    split_seed: int = 0
    streaming: bool = False
    skip_damaged: bool = False
    net_options: Mapping[str, Any] = field(default_factory=dict)
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.holdout < 1:
            raise ParameterError(f"holdout must be a share in [0, 1), got {self.holdout}", "holdout")
        if (self.exits == "auto") != (self.goal_macs is not None):
            raise ParameterError("exits=auto and goal_macs=SHARE go together: give both or none", "exits", "goal_macs")
        if self.goal_macs is not None and not 0 < self.goal_macs < 1:
            raise ParameterError(f"goal_macs must be a share in (0, 1), such as 0.4, got {self.goal_macs}", "goal_macs")

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Parameters of network, branch, method and data source by kind; kinds without any are absent."""
        options = {kind: dict(getattr(self, f"{kind}_options")) for kind in KINDS}
        return {kind: values for kind, values in options.items() if values}
