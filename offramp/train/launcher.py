"""Launchers of several processes (torchrun, srun, MPI): whether they fit a run, and where its processes meet."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from offramp.lookup import with_parameters


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
    if devices * nodes > 1:
        _check_port()
        _check_srun_is_used(devices, nodes)
    if nodes > 1:
        _check_nodes(devices, nodes)
    else:
        _check_count(devices)
    if devices * nodes > 1 and _started_by_srun():
        _check_srun(devices, nodes)


def _check_port() -> None:
    port = os.environ.get("MASTER_PORT", "")
    if port and not 0 < _number("MASTER_PORT", 0) <= LAST_PORT:
        raise ValueError(f"MASTER_PORT={port} must be a free port of the first machine, 1 to {LAST_PORT}")


def _check_count(devices: int) -> None:
    """Refuse a launcher that started another number of processes on one machine, or some on others."""
    if "LOCAL_RANK" in os.environ and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise _other_machines("GROUP_WORLD_SIZE")
    if _started_by_srun() and os.environ.get("SLURM_STEP_NUM_NODES", "1") != "1":
        raise _other_machines("SLURM_STEP_NUM_NODES")
    for name in _counts():
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) != devices and (int(count) > 1 or "LOCAL_RANK" in os.environ):
            raise with_parameters(
                ValueError(
                    f"a launcher started {_processes(int(count))} ({name}={count}), but the run is for {devices}: add "
                    f"devices={count} to train with all of them together, or start one process"
                ),
                "devices",
            )


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _check_nodes(devices: int, nodes: int) -> None:
    """Refuse a launcher that does not fit, or machines that cannot find each other, on several machines."""
    launched = [name for name in _counts() if os.environ.get(name, "").isdecimal() and "NODE_RANK" not in os.environ]
    if launched or "LOCAL_RANK" in os.environ:
        expected = dict.fromkeys(launched, devices * nodes) | _per_node(devices, nodes)
        for name, number in expected.items():
            count = os.environ.get(name, str(number))
            if count.isdecimal() and int(count) != number:
                raise with_parameters(
                    ValueError(
                        f"the launcher says {name}={count}, but the run is for {number} ({nodes} machines, "
                        f"{_processes(devices)} on each): correct the launcher's options, or nodes and devices"
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
    count = os.environ.get("WORLD_SIZE", "")
    if count.isdecimal() and int(count) not in (nodes, devices * nodes):  # clusters count machines or processes
        raise with_parameters(
            ValueError(
                f"WORLD_SIZE={count}, but the run is for {nodes} machines with {_processes(devices)} on each: correct "
                "nodes and devices, or unset it"
            ),
            "nodes",
            "devices",
        )


def _check_srun_is_used(devices: int, nodes: int) -> None:
    """Refuse several processes in a job of Slurm that neither srun nor torchrun started."""
    within_job = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE
    if within_job and not _started_by_torchrun() and not _started_by_srun():
        raise ValueError(
            f"srun did not start the {devices * nodes} processes of this run: put "
            f"`srun --ntasks-per-node={devices}` before the command"
        )


def _check_srun(devices: int, nodes: int) -> None:
    """Refuse tasks of srun that could not find each other, or that are distributed otherwise over the machines."""
    name, each = os.environ.get("SLURM_JOB_NAME"), os.environ.get("SLURM_NTASKS_PER_NODE")
    expected = str(devices) if nodes == 1 else f"{devices}(x{nodes})"
    distribution = os.environ.get("SLURM_STEP_TASKS_PER_NODE", expected)
    if name in INTERACTIVE:
        raise ValueError(
            f"SLURM_JOB_NAME={name}: tasks of an interactive job are not joined; add --job-name=NAME to srun"
        )
    if each is None:
        raise ValueError(f"srun does not say how many tasks run on each machine: add --ntasks-per-node={devices} to it")
    if each != str(devices):
        raise with_parameters(
            ValueError(
                f"SLURM_NTASKS_PER_NODE={each}, but the run is for devices={devices}: start it by "
                f"`srun --ntasks-per-node={devices}`"
            ),
            "devices",
        )
    if distribution != expected:
        raise with_parameters(
            ValueError(
                f"SLURM_STEP_TASKS_PER_NODE={distribution}, but the run is for devices={devices} on each machine: add "
                f"--ntasks-per-node={devices} to the options of the job"
            ),
            "devices",
        )


def _other_machines(variable: str) -> ValueError:
    count = os.environ[variable]
    message = f"{variable}={count}, but the run is for nodes=1: add nodes={count} with the devices of each"
    return with_parameters(ValueError(message), "nodes", "devices")


def _per_node(devices: int, nodes: int) -> dict[str, int]:
    """What torchrun, or else srun, says of machines and of the processes on each."""
    by_srun = {} if _started_by_torchrun() else {"SLURM_STEP_NUM_NODES": nodes}
    return {"LOCAL_WORLD_SIZE": devices, "GROUP_WORLD_SIZE": nodes, **by_srun}


def _counts() -> tuple[str, ...]:
    """Variables with the number of processes; of torchrun alone if it started this one, even if srun started it."""
    return ("WORLD_SIZE",) if _started_by_torchrun() else LAUNCHERS


def _started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _started_by_srun() -> bool:
    """Whether srun itself started this process and others."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    return not _started_by_torchrun() and tasks.isdecimal() and int(tasks) > 1


LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which torchrun, srun, Open MPI and MPICH give the number of processes."""

LAST_PORT = 65535

INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which Fabric does not regard srun as the launcher."""


def cluster_environment(processes: int) -> ClusterEnvironment | None:
    """How Fabric finds the other processes of a run: by default, it decides by itself.

    A single process is always on its own, whatever a scheduler has written into the environment. Tasks of srun meet on
    the first machine of their step, at a port of this step; MASTER_ADDR and MASTER_PORT have precedence.
    """
    if processes == 1:
        return LightningEnvironment()
    if _started_by_srun():
        host, port = _address()
        if host:
            os.environ.setdefault("MASTER_ADDR", host)
        os.environ.setdefault("MASTER_PORT", str(port))
    return None


def _address() -> tuple[str, int]:
    """Where the processes of a run meet; "" or 0 if that is unknown."""
    host, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", 0)
    port = port if port <= LAST_PORT else 0
    if not _started_by_srun():
        return host, port
    machines = os.environ.get("SLURM_STEP_NODELIST")
    host = host or (SLURMEnvironment.resolve_root_node_address(machines) if machines else "")
    return host, port or 15000 + (_number("SLURM_JOB_ID", 0) + 101 * _number("SLURM_STEP_ID", 0)) % 10000


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdecimal() else default


class Place(NamedTuple):
    """The place of a process among those of a run, and the address of their store.

    Attributes:
        rank: its number.
        local_rank: its number on its machine.
        processes: how many there are.
        host: of the first process.
        port: of the first process.
        keeps_store: whether it keeps the store through which they exchange messages.
        beside: ranks of the processes that it did not start and that did not start it.
    """

    rank: int
    local_rank: int
    processes: int
    host: str
    port: int
    keeps_store: bool
    beside: Sequence[int] = ()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def place_of(devices: int, nodes: int) -> Place | None:
    """The place of this process, as its launcher says; None if it is alone, or has yet to start the others.

    Args:
        devices: processes on each machine.
        nodes: machines.
    """
    devices = max(devices, 1)
    processes = max([devices * nodes, *(_number(name, 1) for name in _counts())])
    if processes == 1:
        return None
    local_rank = _number("LOCAL_RANK", 0)
    if _started_by_torchrun():
        rank = _number("RANK", 0)
    elif _started_by_srun():
        rank, local_rank = _number("SLURM_PROCID", 0), _number("SLURM_LOCALID", 0)
    elif nodes > 1 or "LOCAL_RANK" in os.environ:
        rank = _number("NODE_RANK", _number("GROUP_RANK", 0)) * devices + local_rank
    else:
        return None
    host, port = _address()
    if not host or not port:
        return None
    keeps_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    by_hand = "LOCAL_RANK" not in os.environ and not _started_by_srun()
    beside = range(devices if by_hand else 1, processes, devices if by_hand else 1)
    return Place(rank, local_rank, processes, host, port, keeps_store, beside)


def place_in(strategy: Any, processes: int) -> Place:
    """The same, once the other processes are started; the strategy is Fabric's."""
    environment: ClusterEnvironment = strategy.cluster_environment
    rank = 0 if isinstance(environment, LightningEnvironment) else environment.global_rank()
    address = environment.main_address, environment.main_port
    return Place(rank, environment.local_rank(), processes, *address, rank == 0, range(1, processes))
