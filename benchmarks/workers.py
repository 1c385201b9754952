"""Processes that take steps in turn, so that other work on the machine slows all of them alike."""

import subprocess
import sys
from collections.abc import Iterator

from offramp.measure.memory import peak_mib


class Worker:
    """A script in a process of its own, which takes steps on request (see `work`) and otherwise waits."""

    def __init__(self, script: str, *options: object) -> None:
        command = [sys.executable, script, *map(str, options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def steps(self, count: int) -> float:
        """Take this number of steps; returns the peak memory so far in MiB."""
        assert self.process.stdin and self.process.stdout
        print(count, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("a worker ended early; run it with --only NAME to see why")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def work(loop: Iterator[None], device: str) -> None:
    """For each line of the input, take that number of steps; print the peak memory in MiB (on `cuda`, of the GPU)."""
    for line in sys.stdin:
        for _ in range(int(line)):
            next(loop)
        print(_gpu_peak_mib() if device == "cuda" else peak_mib(), flush=True)


def _gpu_peak_mib() -> float:
    """The GPU's peak memory in MiB, after waiting for it; only this function imports torch."""
    import torch

    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20
