"""Accuracy of every exit and of the ensemble on whole splits, once per epoch: recorded, and used for nothing."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from offramp.data.loading import Loader
from offramp.measure.accuracy import ensemble, top_k
from offramp.measure.trace import trace


def epoch_accuracies(net: nn.Module, loaders: Mapping[str, Loader]) -> dict[str, Any]:
    """Per split `exits`, the share of samples that each exit gets right, and `ensemble`, that of the summed logits.

    Training images are not augmented here. The network is left in evaluation mode.
    """
    accuracies: dict[str, Any] = {}
    for split, loader in loaders.items():
        traced = trace(net, loader.epoch(0), split)
        assert traced.labels is not None
        whole = top_k(ensemble(traced.logits)[None], traced.labels)
        accuracies[split] = {"exits": top_k(traced.logits, traced.labels), "ensemble": whole[0]}
    return accuracies
