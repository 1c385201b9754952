"""Device and precision of a run: Lightning Fabric, configured from the recipe."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from lightning_fabric.strategies.strategy import Strategy

from offramp.lookup import with_parameters
from offramp.train.recipe import Recipe

R = TypeVar("R", bound=Recipe)


def device_of(wish: str) -> str:
    """`cpu` or `cuda`.

    Raises:
        ValueError: if a GPU is requested and there is none.
    """
    if wish == "cuda" and not torch.cuda.is_available():
        raise with_parameters(
            ValueError("device=cuda: PyTorch sees no CUDA GPU here; take device=cpu or auto"), "device"
        )
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


GPU_ONLY = {"tf32": "32", "16": "32"}
"""Precisions of GPUs alone, and what a CPU takes for them when a finished run is used there."""

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


def check_launcher(devices: int, nodes: int = 1) -> None:
    """Refuse a launcher that started another number of processes than the run has devices.

    Args:
        devices: processes on each machine.
        nodes: machines.
    Raises:
        ValueError: naming the launcher's variable, and the option.
    """
    if nodes < 1:
        raise with_parameters(ValueError(f"nodes must be at least 1, got {nodes}"), "nodes")
    if nodes > 1:
        _check_nodes(devices, nodes)
    else:
        _check_count(devices)
    if devices * nodes > 1:
        _check_srun(devices, nodes)


def _check_count(devices: int) -> None:
    """Refuse a launcher that started another number of processes on one machine."""
    for name in LAUNCHERS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) != devices and (int(count) > 1 or "LOCAL_RANK" in os.environ):
            processes = "1 process" if int(count) == 1 else f"{count} processes"
            raise with_parameters(
                ValueError(
                    f"a launcher started {processes} ({name}={count}), but the run is for {devices}: add "
                    f"devices={count} to train with all of them together, or start one process"
                ),
                "devices",
            )
    machines = os.environ.get("GROUP_WORLD_SIZE", "1") if "LOCAL_RANK" in os.environ else "1"
    if devices > 1 and machines != "1":
        raise _other_machines("GROUP_WORLD_SIZE", 1)


def _check_nodes(devices: int, nodes: int) -> None:
    """Refuse a launcher that does not fit, or machines that cannot find each other, on several machines."""
    launched = [name for name in LAUNCHERS if os.environ.get(name, "").isdecimal() and "NODE_RANK" not in os.environ]
    if launched or "LOCAL_RANK" in os.environ:
        expected = dict.fromkeys(launched, devices * nodes) | per_node(devices, nodes)
        for name, number in expected.items():
            count = os.environ.get(name, str(number))
            if count.isdecimal() and int(count) != number:
                raise with_parameters(
                    ValueError(
                        f"the launcher says {name}={count}, but nodes={nodes} with devices={devices} on each make it "
                        f"{number}: correct the launcher's options, or nodes and devices"
                    ),
                    "nodes",
                    "devices",
                )
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)]
    if missing:
        raise with_parameters(
            ValueError(
                f"nodes={nodes} needs a launcher (torchrun, srun), or the variables MASTER_ADDR, MASTER_PORT and "
                f"NODE_RANK (0 to {nodes - 1}) on each machine: {', '.join(missing)} not set"
            ),
            "nodes",
        )
    rank = os.environ["NODE_RANK"]
    if not rank.isdecimal() or int(rank) >= nodes:
        raise with_parameters(ValueError(f"NODE_RANK={rank} must be 0 to {nodes - 1} for nodes={nodes}"), "nodes")


def _check_srun(devices: int, nodes: int) -> None:
    """Refuse tasks of srun that could not find each other, and a job in which srun did not start the processes."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun within a job
        return
    tasks, name = os.environ.get("SLURM_STEP_NUM_TASKS") or "1", os.environ.get("SLURM_JOB_NAME")
    interactive = name in ("bash", "interactive")
    command = f"srun --ntasks-per-node={devices}"
    if int(tasks) < 2:
        if "SLURM_NTASKS" in os.environ and not interactive:
            raise ValueError(
                f"srun did not start the {devices * nodes} processes of this run: put `{command}` before the command"
            )
        return
    if interactive:
        raise ValueError(
            f"SLURM_JOB_NAME={name}: tasks of an interactive job are not joined; add --job-name=NAME to srun"
        )
    each, machines = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_STEP_NUM_NODES", str(nodes))
    if each is None:
        raise ValueError(f"srun does not say how many tasks run on each machine: add --ntasks-per-node={devices} to it")
    if machines != str(nodes):
        raise _other_machines("SLURM_STEP_NUM_NODES", nodes)
    if each != str(devices):
        raise with_parameters(
            ValueError(f"SLURM_NTASKS_PER_NODE={each}, but the run is for devices={devices}: start it by `{command}`"),
            "devices",
        )


def _other_machines(variable: str, nodes: int) -> ValueError:
    count = os.environ[variable]
    message = f"{variable}={count}, but the run is for nodes={nodes}: add nodes={count} with the devices of each"
    return with_parameters(ValueError(message), "nodes", "devices")


def per_node(devices: int, nodes: int) -> dict[str, int]:
    """What torchrun and srun say of machines and of the processes on each."""
    return {"LOCAL_WORLD_SIZE": devices, "GROUP_WORLD_SIZE": nodes, "SLURM_STEP_NUM_NODES": nodes}


LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which torchrun, srun, Open MPI and MPICH give the number of processes."""


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


def check_shared(fabric: Fabric, folder: Path) -> None:
    """Refuse to resume if a process does not see the checkpoints that the first one sees.

    Raises:
        ValueError: in every process.
    """
    here = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    same = torch.tensor(float(fabric.broadcast(here) == here), device=fabric.device)
    if float(fabric.all_reduce(same, reduce_op="mean")) < 1:  # type: ignore[arg-type]
        raise with_parameters(
            ValueError(
                f"not all processes see the checkpoints in {folder}: choose an out that all machines share, or copy it"
            ),
            "out",
        )


def set_up(recipe: Recipe, freezes: bool = False, nodes: int = 1) -> Fabric:
    """Fabric for the recipe's device, precision and number of processes; `launch` starts the other ones.

    Args:
        freezes: parts of the network are frozen in some phase.
        nodes: machines that the recipe's devices are on.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = device_of(recipe.device)
    precision = FABRIC.get(precision_of(recipe.precision, device), "32-true")
    return Fabric(
        accelerator=device,
        devices=recipe.devices // nodes,
        num_nodes=nodes,
        precision=precision,  # type: ignore[arg-type]
        strategy=_strategy(recipe, freezes),
    )


def launch(fabric: Fabric) -> None:
    """Start the other processes of a run on several devices, or join them."""
    if not isinstance(fabric.strategy, SingleDeviceStrategy):
        fabric.launch()


def _strategy(recipe: Recipe, freezes: bool) -> str | Strategy:
    if recipe.devices == 1:
        return "auto"
    if recipe.strategy == "fsdp":
        from offramp.train.sharding import strategy

        return strategy(recipe.devices)
    # Frozen parts have no gradients.
    return "ddp" if recipe.tune == "all" and not freezes else "ddp_find_unused_parameters_true"
