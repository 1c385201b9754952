"""Early exit on a split: accuracy, operations and time, compared with the plain network of the same weights."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate
from statistics import median
from typing import Any

import torch

from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.measure.cost import segment_macs
from offramp.measure.timing import medians, side_by_side
from offramp.net import MultiExitNet, segments
from offramp.outputs import Batch

TIMED = 30
"""Number of whole batches that are timed, the first ones of the split."""


def leave_early(
    net: MultiExitNet,
    policy: ExitPolicy,
    batches: Iterable[Batch],
    shape: tuple[int, int, int],
    batch_size: int,
    advance: Callable[[int], None] = lambda samples: None,
    baseline: MultiExitNet | None = None,
) -> dict[str, Any]:
    """Run all batches with the policy and with the plain network; the first ones are timed in turn.

    Args:
        net: in eval mode and on its device; call this in inference mode and under the desired autocast.
        batches: labelled with class indices; only those of `batch_size` samples are timed.
        shape: one input's (channels, height, width), for the MACs.
        advance: called with the number of samples after each batch.
        baseline: another plain network, which is timed too; in eval mode and on the device of `net`.

    Returns:
        Plain values: shares (E,) of samples at each exit; accuracy in [0, 1], mean `macs` and `ms` per sample
        of both sides (ms is None if no batch was whole), and `speedup`, the median over batches of plain / adaptive.
        With a baseline also `baseline_ms` and `baseline_speedup`, the median of baseline / adaptive.

    Raises:
        ValueError: if there are no samples, or the policy is for another number of exits.
    """
    final_only = [False] * (net.exits - 1) + [True]
    parts, (plain,) = segments(net, policy.enabled), segments(net, final_only)
    runs: dict[str, Callable[[torch.Tensor], object]] = {
        "plain": lambda inputs: plain(inputs, ()),
        "adaptive": lambda inputs: answer(parts, policy, inputs),
    }
    if baseline is not None:
        (other,) = segments(baseline)
        runs["baseline"] = lambda inputs: other(inputs, ())
    right, plainly_right, taken = 0, 0, Counter[int]()
    times: list[dict[str, float]] = []
    for batch in batches:
        result = answer(parts, policy, batch.inputs)
        right += int((result.logits.argmax(1) == batch.labels).sum())
        plainly_right += int((plain(batch.inputs, ())[2].argmax(1) == batch.labels).sum())
        taken.update(result.exit.tolist())
        if len(times) < TIMED and len(batch.ids) == batch_size:
            times.append(_time_each(runs, batch.inputs))
        advance(len(batch.ids))
    n = taken.total()
    if not n:
        raise ValueError("there are no samples to evaluate")
    enabled = [exit for exit, on in enumerate(policy.enabled) if on]
    price = dict(zip(enabled, accumulate(segment_macs(net, shape, policy.enabled)), strict=True))
    ms = {side: 1000 * median(pair[side] for pair in times) / batch_size if times else None for side in runs}
    faster = {
        side: median(pair[side] / pair["adaptive"] for pair in times) if times else None
        for side in runs
        if side != "adaptive"
    }
    return {
        "policy": {"thresholds": policy.thresholds, "enabled": policy.enabled, "score": policy.score},
        "batch_size": batch_size,
        "shares": [taken[exit] / n for exit in range(net.exits)],
        "accuracy": right / n,
        "macs": sum(price[exit] * count for exit, count in taken.items()) / n,
        "ms": ms["adaptive"],
        "plain": {"accuracy": plainly_right / n, "macs": segment_macs(net, shape, final_only)[0], "ms": ms["plain"]},
        "speedup": faster["plain"],
        **({} if baseline is None else {"baseline_ms": ms["baseline"], "baseline_speedup": faster["baseline"]}),
    }


def _time_each(runs: Mapping[str, Callable[[torch.Tensor], object]], inputs: torch.Tensor) -> dict[str, float]:
    """Median seconds of every side on one batch, measured in turn."""
    sides = {side: partial(run, inputs) for side, run in runs.items()}
    return medians(side_by_side(sides, rounds=3, warm_up=1, device=inputs.device))
