"""Slurm on this machine: a controller and two nodes, each a network namespace with a host name of its own."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from namespaces import ADDRESSES, two_namespaces

NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
CONFIG = """
ClusterName=offramp
SlurmctldHost=node1
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=10
ReturnToService=2
NodeName=node[1-2] CPUs=4 RealMemory=2000
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(holds: Callable[[], object], seconds: float, say: Callable[[], str]) -> None:
    """Wait until this holds; after some seconds, the test fails with this text."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, say()
        time.sleep(0.1)


class Cluster:
    """A cluster in a folder: commands on its first node, and its daemons."""

    def __init__(self, folder: Path, namespaces: list[str]) -> None:
        self.folder, self.namespaces = folder, namespaces
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # not mounted in a namespace, and not used
        hosts = [f"{address} {node}\n" for address, node in zip(ADDRESSES, NODES, strict=True)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)

    def start(self) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        munge = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")]
        munge += [f"--key-file={self.folder}/key", f"--seed-file={self.folder}/munge.seed"]
        self._daemon(0, "munged", "--foreground", "--force", *munge)
        wait_until((self.folder / "munge.socket").exists, 20, self.said)
        self._daemon(0, "slurmctld", "-D", "-c")
        for number in range(2):
            self.start_node(number)
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%T", check=False).split() == ["idle"], 60, self.said)

    def start_node(self, number: int) -> None:
        """Start the daemon of a node."""
        self._daemon(number, "slurmd", "-D", "-N", NODES[number])

    def kill_node(self, number: int) -> None:
        """End all processes of a node at once."""
        command = ["ip", "netns", "pids", self.namespaces[number]]
        pids = subprocess.run(command, capture_output=True, text=True, check=True)
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def give_up_node(self, number: int) -> None:
        """Tell the controller that a node is lost, which it would notice after some minutes."""
        self.run("scontrol", "update", f"NodeName={NODES[number]}", "State=DOWN", "Reason=killed")

    def run(self, *words: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        """What a command prints on the first node."""
        ran = subprocess.run([*self._on(0), *words], env=env, capture_output=True, text=True, timeout=300, check=False)
        assert not check or ran.returncode == 0, f"{words}: {ran.stderr}{self.said()}"
        return ran.stdout.strip()

    def submit(self, script: str, out: Path, env: Mapping[str, str]) -> str:
        """Submit a job, whose output is appended to `out`; returns its number."""
        path = out.with_suffix(".sh")
        path.write_text(script)
        return self.run("sbatch", "--parsable", f"--chdir={out.parent}", f"--output={out}", str(path), env=env)

    def wait(self, job: str) -> None:
        """Wait for the end of a job."""
        wait_until(lambda: not self.run("squeue", "-h", "-j", job, check=False), 280, self.said)

    def start_soon(self, job: str) -> None:
        """Start a job that was requeued after three seconds, not two minutes; in the same second, nodes refuse it."""
        reason = ["squeue", "-h", "-j", job, "-o", "%T %r"]
        wait_until(lambda: self.run(*reason).startswith("PENDING"), 60, self.said)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")

    def said(self) -> str:
        """The last lines that each daemon wrote."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in logs)

    def stop(self) -> None:
        """End everything that runs on the nodes."""
        self.run("scancel", "--full", "--user=root", check=False)
        for number in range(2):
            self.kill_node(number)
        for daemon in self.daemons:
            daemon.wait(20)

    def _daemon(self, number: int, *words: str) -> None:
        with (self.folder / f"{words[0]}-{number}.log").open("ab") as log:
            command = [*self._on(number), *words]
            self.daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _on(self, number: int) -> list[str]:
        """How to run a command on a node."""
        named = f"hostname {NODES[number]}; mount --bind {self.folder}/hosts /etc/hosts"
        enter = f'{named}; export SLURM_CONF={self.folder}/slurm.conf; exec "$@"'
        return ["ip", "netns", "exec", self.namespaces[number], "unshare", "--mount", "--uts", "sh", "-c", enter, "sh"]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster while it runs; skips the test where Slurm is not installed or the user is not root."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing:
        pytest.skip(f"needs Slurm and MUNGE: {', '.join(missing)} not installed")
    with two_namespaces() as names:
        made = Cluster(folder, names)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def documented_script() -> str:
    """The job script of docs/scaling.md."""
    text = (Path(__file__).parents[1] / "docs/scaling.md").read_text()
    (script,) = [block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "#SBATCH" in block]
    return script


def job_script(nodes: int, each: int, words: str, out: str) -> str:
    """The job script of docs/scaling.md with other numbers, without GPUs, and with these options of `offramp train`."""
    text = re.sub(r" --gpus-per-node=\d+", "", documented_script())
    text = re.sub(r"(--ntasks-per-node[= ]|--devices )\d+", rf"\g<1>{each}", text)
    text = re.sub(r"(--nodes[= ])\d+", rf"\g<1>{nodes}", text)
    assert "... --out /shared/run" in text
    return text.replace("... --out /shared/run", f"{words} --out {out}")
