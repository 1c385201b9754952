"""A model on paper of data-parallel training on many GPUs: what a step computes, exchanges and waits for.

    compute  = 3 * 2 * macs * samples / (utilisation * peak)        forward, and backward at twice its operations
    volume   = 2 (p - 1) / p * 4 bytes * parameters                 sent by each process: ring all-reduce of gradients
    exchange = buckets * 2 (p - 1) * latency + volume / bandwidth   reduce-scatter and all-gather, p - 1 messages each
    exposed  = max(exchange - backward, exchange of the last bucket)
    step     = compute + exposed

Sources: ring all-reduce and its bound, Patarasu & Yuan (J. Parallel Distrib. Comput. 2009) and Thakur, Rabenseifner &
Gropp (IJHPCA 2005); gradients exchanged in buckets of 25 MB while the backward pass goes on, Li et al. (PyTorch
Distributed, VLDB 2020). Left out: kernels that are not limited by arithmetic, reading images, batch norms over all
processes, congestion, and processes that wait for the slowest. It is a model: nothing in it was measured.
"""

from dataclasses import dataclass
from math import ceil

BUCKET = 25 * 2**20
"""Bytes of a bucket of gradients, PyTorch's default."""


@dataclass(frozen=True)
class Machine:
    """GPUs and what joins them.

    Attributes:
        peak: operations per second of one GPU, a multiply-add being two.
        utilisation: share of the peak that training reaches; an assumption.
        gpus: of one machine.
        inside, between: bytes per second that one GPU sends within its machine and to others.
        latency_inside, latency_between: seconds of a message; assumptions.
    """

    peak: float
    utilisation: float
    gpus: int
    inside: float
    between: float
    latency_inside: float
    latency_between: float


H200 = Machine(989e12, 0.3, 8, 450e9, 50e9, 5e-6, 15e-6)
"""Eight H200 in a machine: data sheet (989 TFLOPS dense bf16, NVLink 900 GB/s both ways), 400 Gb/s network per GPU."""


@dataclass(frozen=True)
class StepCost:
    """One optimizer step of every process, in seconds and bytes.

    Attributes:
        compute: forward and backward pass.
        volume: bytes that each process sends.
        exchange: time of the all-reduce by itself.
        exposed: the part of it that no computation hides.
    """

    compute: float
    volume: float
    exchange: float
    exposed: float

    @property
    def efficiency(self) -> float:
        """Images per second and process, as a share of those of one process with the same samples (weak scaling)."""
        return self.compute / (self.compute + self.exposed)


def step(parameters: int, macs: float, samples: int, processes: int, machine: Machine = H200) -> StepCost:
    """The model of a step.

    Args:
        parameters: that have gradients, exits included.
        macs: multiply-adds of all exits for one sample, forward.
        samples: of each process.
        processes: one per GPU.
    Raises:
        ValueError: if a number is not positive.
    """
    if min(parameters, macs, samples, processes) <= 0:
        raise ValueError("parameters, macs, samples and processes must be positive")
    compute = 6 * macs * samples / (machine.utilisation * machine.peak)
    volume = 2 * (processes - 1) / processes * 4 * parameters
    far = processes > machine.gpus
    bandwidth = machine.between if far else machine.inside
    latency = 2 * (processes - 1) * (machine.latency_between if far else machine.latency_inside)
    buckets = ceil(4 * parameters / BUCKET)
    exchange = buckets * latency + volume / bandwidth if processes > 1 else 0.0
    return StepCost(compute, volume, exchange, max(exchange - compute * 2 / 3, exchange / buckets))
