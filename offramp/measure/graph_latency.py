"""Milliseconds of every segment that a choice of exits can need, as a CUDA graph with the policy's decision inside."""

from functools import partial
from itertools import combinations
from statistics import median

import torch

from offramp.early_exit.fixed_stay import FixedStay
from offramp.early_exit.graphed_policy import Entering, GraphedStep, entering_each, power_of_two, results_for
from offramp.early_exit.policy import ExitPolicy
from offramp.measure.latency import ROUNDS, StageExit
from offramp.measure.timing import side_by_side
from offramp.net import FusedSegment, MultiExitNet, segments


def graph_ms(
    net: MultiExitNet, inputs: torch.Tensor, policy: ExitPolicy, rounds: int = ROUNDS
) -> dict[StageExit, float]:
    """Milliseconds per sample of every segment there is for any choice of exits, each replayed as one graph.

    Each is timed as it runs: its batch is copied in, and the number of samples that continue (all but one) is read.
    Medians over rounds in which all take turns. On a CPU the same is computed without a graph.

    Args:
        inputs: one batch (B, channels, height, width) on the network's device; call this in inference mode and under
            the desired autocast.
        policy: all exits on; its score and answer are used, its thresholds are not.
    Returns:
        {(first stage, exit): milliseconds}; `offramp.measure.latency.spans_as_run` puts a choice of exits together.
    """
    batch, device = len(inputs), inputs.device
    each = segments(net)
    entering = entering_each(each, policy, inputs)
    staying = FixedStay(policy, dict.fromkeys(range(net.exits), batch - 1))
    size = power_of_two(batch)
    results = results_for(size, each, entering[-1], device)
    places = torch.arange(batch, device=device)
    runs = {}
    for begin, end in combinations(range(net.exits + 1), 2):
        step = GraphedStep(_segment(net, begin, end - 1), staying, end - 1, entering[begin], size, results, device)
        runs[f"{begin} {end - 1}"] = partial(_run, step, entering[begin], places)
    seconds = side_by_side(runs, rounds, device=device)
    spans = [(begin, end - 1) for begin, end in combinations(range(net.exits + 1), 2)]
    return {(begin, exit): 1000 / batch * median(seconds[f"{begin} {exit}"]) for begin, exit in spans}


def _segment(net: MultiExitNet, begin: int, exit: int) -> FusedSegment:
    """The stages from `begin` up to an exit, with its branch."""
    on = {begin - 1, exit, net.exits - 1}
    return segments(net, [number in on for number in range(net.exits)])[1 if begin else 0]


def _run(step: GraphedStep, entering: Entering, places: torch.Tensor) -> int:
    return int(step(entering, places, len(places))[2])
