"""Device and precision of a run: Lightning Fabric, configured from the recipe."""

import dataclasses
import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from lightning_fabric.strategies.strategy import Strategy

from offramp.lookup import with_parameters
from offramp.train.launcher import cluster_environment
from offramp.train.recipe import Recipe

R = TypeVar("R", bound=Recipe)


def device_of(wish: str) -> str:
    """`cpu` or `cuda`.

    Raises:
        ValueError: if a GPU is requested and there is none.
    """
    if wish == "cuda" and not torch.cuda.is_available():
        why = "PyTorch was installed without CUDA" if torch.version.cuda is None else "PyTorch sees no CUDA GPU here"
        raise with_parameters(ValueError(f"device=cuda: {why}; take device=cpu or auto"), "device")
    return "cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu"


def check_devices(recipe: Recipe) -> None:
    """Refuse more devices than there are.

    Raises:
        ValueError: naming the parameter, and how many there are.
    """
    if device_of(recipe.device) == "cuda" and recipe.devices > torch.cuda.device_count():
        count = torch.cuda.device_count()
        available = "1 GPU" if count == 1 else f"{count} GPUs"
        raise with_parameters(
            ValueError(f"devices={recipe.devices}: PyTorch sees {available} here; take devices={count}"), "devices"
        )


GPU_ONLY = ("tf32", "16")
"""Precisions of GPUs alone."""
ELSEWHERE = {"cpu": dict.fromkeys(GPU_ONLY, "32"), "cuda": {"bf16-dense": "bf16"}}
"""By device, what it takes for the precisions of the other kind when a finished run is used there."""

FABRIC = {"bf16": "bf16-mixed", "bf16-dense": "bf16-mixed", "16": "16-mixed"}
"""What Fabric calls the precisions that are not float32; `bf16-dense` also needs `depthwise.keep_float32`."""


def precision_of(wish: str, device: str) -> str:
    """The precision: `auto` is bf16 if the processor has instructions for it (AVX512-BF16, AMX, Ampere GPUs), else 32.

    Raises:
        ValueError: if it is one of GPUs alone, and the device is none.
    """
    if wish in GPU_ONLY and device != "cuda":
        raise with_parameters(
            ValueError(f"precision={wish} is for GPUs; on a CPU take precision=32, bf16, bf16-dense or auto"),
            "precision",
        )
    if wish != "auto":
        return wish
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "32"


def writes(fabric: Fabric) -> bool:
    """Whether this process is the one that writes; known before other processes are started or joined."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    if environment is None:  # one process, whatever the environment says about ranks
        return True
    if environment.creates_processes_externally and not isinstance(environment, LightningEnvironment):
        return bool(environment.global_rank() == 0)
    return bool(environment.local_rank() == 0 and environment.node_rank() == 0)


def make_fabric(recipe: Recipe, freezes: bool = False) -> Fabric:
    """Fabric as returned by `set_up`, launched."""
    fabric = set_up(recipe, freezes)
    launch(fabric)
    return fabric


def of_all_nodes(recipe: R, nodes: int) -> R:
    """The recipe with the processes of all machines as its devices.

    Raises:
        ValueError: if a batch does not divide evenly over them.
    """
    if recipe.batch_size % (recipe.devices * nodes):
        raise with_parameters(
            ValueError(
                f"batch_size={recipe.batch_size} does not divide evenly over nodes={nodes} with "
                f"devices={recipe.devices} on each"
            ),
            "batch_size",
            "nodes",
            "devices",
        )
    return dataclasses.replace(recipe, devices=recipe.devices * nodes)


def set_up(recipe: Recipe, freezes: bool = False, nodes: int = 1) -> Fabric:
    """Fabric for the recipe's device, precision and number of processes; `launch` starts the other ones.

    Args:
        freezes: parts of the network are frozen in some phase.
        nodes: machines that the recipe's devices are on.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = device_of(recipe.device)
    precision = FABRIC.get(precision_of(recipe.precision, device), "32-true")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `srun` command is available on your system")  # but not asked for
        return Fabric(
            accelerator=device,
            devices=recipe.devices // nodes,
            num_nodes=nodes,
            precision=precision,  # type: ignore[arg-type]
            strategy=_strategy(recipe, freezes),
            plugins=cluster_environment(recipe.devices),
        )


def launch(fabric: Fabric, agree: Callable[[], None] = lambda: None) -> None:
    """Start the other processes of a run on several devices, or join them.

    Args:
        agree: called once they are started, before they are connected to each other.
    """
    if isinstance(fabric.strategy, SingleDeviceStrategy):
        return
    connect = fabric.strategy.setup_environment

    def setup_environment() -> None:
        agree()
        connect()

    fabric.strategy.setup_environment = setup_environment  # type: ignore[method-assign]
    fabric.launch()


def _strategy(recipe: Recipe, freezes: bool) -> str | Strategy:
    if recipe.devices == 1:
        return "auto"
    if recipe.strategy == "fsdp":
        from offramp.train.sharding import strategy

        return strategy(recipe.devices)
    # Frozen parts have no gradients.
    return "ddp" if recipe.tune == "all" and not freezes else "ddp_find_unused_parameters_true"
