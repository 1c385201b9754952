"""What Slurm 22.05 writes into the environment of a job's script and of each task that srun starts."""


def batch(nodes: int, each: int, each_known: bool = True, name: str = "train.sh") -> dict[str, str]:
    """What the script of a job sees.

    Args:
        nodes: machines of the job, node1 and so on.
        each: tasks on each.
        each_known: the job has the option --ntasks-per-node, not just --ntasks.
        name: name of the job.
    """
    tasks, machines = str(nodes * each), "node1" if nodes == 1 else f"node[1-{nodes}]"
    places = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": name, "SLURM_NODELIST": machines, "SLURM_JOB_NODELIST": machines}
    counts = {"SLURM_NTASKS": tasks, "SLURM_NPROCS": tasks, "SLURM_NNODES": str(nodes)}
    known = {"SLURM_NTASKS_PER_NODE": str(each)} if each_known else {}
    return {**job, **counts, **known, **places, "SLURM_TASKS_PER_NODE": _distribution(nodes, each)}


def task(nodes: int, each: int, rank: int = 0, **others: str) -> dict[str, str]:
    """What a task of a step on all machines of a job sees; `others` replace variables or are added to them."""
    job = batch(nodes, each)
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": job["SLURM_NODELIST"]}
    step |= {"SLURM_STEP_NUM_TASKS": job["SLURM_NTASKS"], "SLURM_STEP_NUM_NODES": str(nodes)}
    step |= {"SLURM_STEP_TASKS_PER_NODE": _distribution(nodes, each), "SLURM_LOCALID": str(rank % each)}
    return {**job, **step, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank // each), **others}


def _distribution(nodes: int, each: int) -> str:
    return str(each) if nodes == 1 else f"{each}(x{nodes})"
