"""The network of a run as it is evaluated and saved: with the moving average of its weights if there is one."""

from pathlib import Path
from typing import Any

from torch import nn

from offramp.data.loading import Loader
from offramp.data.splits import DataSet
from offramp.measure.accuracy import top_k
from offramp.measure.trace import trace
from offramp.train import checkpoint, sharding
from offramp.train.moving_average import MovingAverage


class EvaluatedNet:
    """Measures the accuracy of a network while it is trained, and saves it with what is needed to use it.

    Args:
        fabric: the run's.
        net: the network.
        wrapped: the same as it is trained, in the run's precision.
        average: the moving average of its weights, if there is one: it is evaluated instead.
        val: batches of the val split; None if nothing was held out.
    """

    def __init__(
        self, fabric: Any, net: nn.Module, wrapped: nn.Module, average: MovingAverage | None, val: Loader | None
    ) -> None:
        self.fabric, self.net, self.val = fabric, net, val
        self.weights: nn.Module = average.module if average else net
        self.module: nn.Module = average.module if average else wrapped
        self.sharded = sharding.is_sharded(net)

    def validate(self) -> list[float] | None:
        """Accuracy of every exit on val, in [0, 1]; None if nothing was held out."""
        if self.val is None:
            return None
        if self.sharded:  # else its wrapper does that
            sharding.take_first_buffers(self.net)
        traced = trace(self.module, self.val.epoch(0), "val")
        assert traced.labels is not None
        accuracy = top_k(traced.logits, traced.labels)
        return self.fabric.broadcast(accuracy) if self.sharded else accuracy  # all must agree on which epoch is best

    def save(self, path: Path, epoch: int, accuracy: list[float] | None, data: DataSet) -> None:
        """Write the network to evaluate, with what is needed to use it; the first process only."""
        weights = sharding.whole(self.weights.state_dict())
        if not self.fabric.is_global_zero:
            return
        about = {
            "epoch": epoch,
            "val_accuracy": accuracy,
            "data": data.name,
            "classes": data.classes,
            "shape": data.shape,
            "mean": data.mean,
            "std": data.std,
        }
        checkpoint.save_weights(path, weights, about)
