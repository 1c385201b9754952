"""Interleaved timing, so that changes of the machine's speed affect all candidates alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def side_by_side(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Time every run once per round, in turn.

    Args:
        runs: what to call, by name.
        rounds: number of counted rounds; `warm_up` more precede them.
        device: what computes; a GPU's work is waited for. Default: nothing but the CPU.
    Returns:
        Seconds of every counted round, by name. Report medians, and ratios of medians or of pairs.
    Raises:
        ValueError: if there are no rounds to count.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(warm_up + rounds):
        for name, run in runs.items():
            finish(device)
            began = time.perf_counter()
            run()
            finish(device)
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each, in seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish(device: torch.device | None) -> None:
    """Return when the device has finished; at once for a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
