"""Prepares the method's objective for the exits of the network."""

from torch import nn

from offramp.meta_device import blank, run_on_meta
from offramp.methods._method import Method
from offramp.protocols import MapCheckingObjective, PreparedObjective


def prepare_objective(method: Method, net: nn.Module, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Pass the exits of the network to the method's objective; returns notes for the user.

    Raises:
        ValueError: if the method cannot train this network, with the reason.
    """
    objective = method.objective
    if not isinstance(objective, PreparedObjective):
        return ()
    outputs = run_on_meta(net, blank(net, shape))
    widths = tuple(feature.shape[1] for feature in outputs.features)
    notes = objective.prepare_for_exits(exits=len(widths), widths=widths)
    if isinstance(objective, MapCheckingObjective):
        objective.check_exit_maps(tuple(tuple(features.shape[1:]) for features in outputs.maps))
    return notes
