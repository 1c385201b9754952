"""Training on Slurm itself: two nodes, preemption, a lost node, and what is refused."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
import slurm_cluster
import torch
from safetensors.torch import load_file
from slurm_variables import batch, task

pytestmark = pytest.mark.full
TESTS = Path(__file__).parents[1]
NET = ["--net", "python:my_nets:faulty", "--exits-after", "1,3", "--branch", "linear", "--data", "digits"]
WORDS = [*NET, "--precision", "32", "--device", "cpu", "--lr", "0.01", "--batch-size", "128", "--holdout", "0.2"]
WORDS += ["--method", "joint", "--checkpoint-every", "4"]
SHORT, LONG = (" ".join([*WORDS, "--epochs", epochs]) for epochs in ("2", "40"))
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "nets")]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """Two nodes with four processors each, on which nothing runs."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def run_job(cluster: slurm_cluster.Cluster, out: Path, script: str) -> str:
    """What a job writes."""
    cluster.wait(cluster.submit(script, out, ENVIRONMENT))
    return out.read_text()


@pytest.mark.parametrize(("nodes", "each"), [(1, 2), (2, 1), (2, 2)])
def test_variables_are_those_that_other_tests_set(
    cluster: slurm_cluster.Cluster, tmp_path: Path, nodes: int, each: int
) -> None:
    script = f"#!/bin/bash\n#SBATCH --job-name=train.sh --nodes={nodes} --ntasks-per-node={each}\n"
    said = run_job(cluster, tmp_path / "out", f"{script}env > batch\nsrun bash -c 'env > $SLURM_PROCID'\n")
    number = {"SLURM_JOB_ID": read(tmp_path / "batch", said)["SLURM_JOB_ID"]}
    assert batch(nodes, each).items() <= (read(tmp_path / "batch", said) | {"SLURM_JOB_ID": "4711"}).items()
    assert "SLURM_STEP_NUM_TASKS" not in read(tmp_path / "batch", said)
    for rank in range(nodes * each):
        assert (task(nodes, each, rank) | number).items() <= read(tmp_path / str(rank), said).items()


def read(path: Path, said: str) -> dict[str, str]:
    """The environment that a process wrote into this file."""
    assert path.exists(), said
    lines = [line.partition("=") for line in path.read_text().splitlines()]
    return {name: value for name, _, value in lines}


def test_variables_of_tasks_that_are_distributed_otherwise_or_interactive(
    cluster: slurm_cluster.Cluster, tmp_path: Path
) -> None:
    script = "#!/bin/bash\n#SBATCH --nodes=2 --ntasks=4\nenv > batch\nsrun --ntasks-per-node=2 bash -c 'env > each'\n"
    said = run_job(cluster, tmp_path / "out", script)
    assert "SLURM_NTASKS_PER_NODE" not in read(tmp_path / "batch", said)
    each = read(tmp_path / "each", said)
    assert (each["SLURM_NTASKS_PER_NODE"], each["SLURM_STEP_TASKS_PER_NODE"]) == ("2", "3,1")
    cluster.run("salloc", "-Q", "--ntasks-per-node=2", "srun", "bash", "-c", f"env > {tmp_path}/salloc")
    assert read(tmp_path / "salloc", said)["SLURM_JOB_NAME"] == "interactive"


def test_two_nodes_and_two_steps_at_once_train_as_one_process(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    said = run_job(cluster, tmp_path / "nodes.out", slurm_cluster.job_script(2, 1, SHORT, "nodes"))
    assert "done: 2 epochs" in said, said
    step = f"srun --nodes=1 --ntasks=2 --exact offramp train {SHORT} --devices 2 --out"
    script = f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2\n{step} first & {step} second & wait\n"
    said = run_job(cluster, tmp_path / "steps.out", script)
    assert said.count("done: 2 epochs") == 2, said
    (ran,) = forked.run_offramp("train", *SHORT.split(), "--out", "one", cwd=tmp_path)
    assert ran.returncode == 0, ran
    one, *others = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "nodes", "first", "second"))
    for other in others:
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


def newest(run: Path) -> str:
    """Name of the newest checkpoint."""
    return max((path.name for path in run.glob("checkpoints/step-*")), default="")


def test_a_run_that_is_preempted_and_loses_a_node_is_the_same_to_the_bit(
    cluster: slurm_cluster.Cluster, tmp_path: Path
) -> None:
    script, out, run = slurm_cluster.job_script(2, 1, LONG, "run"), tmp_path / "run.out", tmp_path / "run"
    job = cluster.submit(script, out, ENVIRONMENT)

    def say() -> str:
        return (out.read_text() if out.exists() else "") + cluster.said()

    def wait_for_checkpoint() -> None:
        before = newest(run)
        slurm_cluster.wait_until(lambda: newest(run) > before, 100, say)

    def wait_for_requeue(times: int) -> None:
        def requeued() -> bool:
            return f"Restarts={times} " in cluster.run("scontrol", "show", "job", job)

        slurm_cluster.wait_until(requeued, 60, say)
        cluster.start_soon(job)

    for times, words in enumerate(("scancel --signal=USR1", "scancel --signal=TERM", "scontrol requeue"), 1):
        wait_for_checkpoint()
        cluster.run(*words.split(), job)
        wait_for_requeue(times)
        assert out.read_text().count("the same command with --resume continues") == times, say()
    wait_for_checkpoint()
    cluster.kill_node(1)
    lost = "offramp: the connection to another process was lost"
    slurm_cluster.wait_until(lambda: lost in out.read_text(), 60, say)
    cluster.give_up_node(1)
    wait_for_requeue(4)
    cluster.start_node(1)
    cluster.wait(job)
    said = out.read_text()
    assert said.count("continuing at epoch") == 4 and "done: 40 epochs" in said, said
    run_job(cluster, tmp_path / "at-once.out", slurm_cluster.job_script(2, 1, LONG, "at-once"))
    for name in ("last", "best"):
        first, second = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("run", "at-once"))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_what_does_not_fit_is_refused_and_one_process_needs_no_srun(
    cluster: slurm_cluster.Cluster, tmp_path: Path
) -> None:
    command = f"offramp train {SHORT} --out"
    lines = ["#!/bin/bash", "#SBATCH --nodes=2 --ntasks=3", f"{command} refused --nodes 2"]
    lines += [f"srun --ntasks=2 {command} refused", f"{command} alone", ""]
    said = run_job(cluster, tmp_path / "out", "\n".join(lines))
    assert "srun did not start the 2 processes of this run: put `srun --ntasks-per-node=1` before" in said
    assert "SLURM_STEP_NUM_NODES=2, but the run is for --nodes 1: add --nodes 2 with the --devices of each" in said
    assert not (tmp_path / "refused").exists()
    assert "done: 2 epochs" in said and "Warning" not in said, said
