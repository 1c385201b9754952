"""A training method in one file: `python own_method.py`, or `offramp train --method python:own_method --out RUN`."""

import sys

from torch import Tensor, linspace

import offramp
from offramp.losses.cross_entropy import cross_entropy


def build(*, first: float = 0.2) -> offramp.Method:
    """L = sum_k w_k CE_k; the weights w increase linearly from the first exit to 1 at the final one.

    Args:
        first: weight of the first exit's cross-entropy, above 0.

    Raises:
        ValueError: if the weight is not above 0.
    """
    if first <= 0:
        raise ValueError(f"first must be above 0, got {first}")

    def objective(outputs: offramp.ExitOutputs, batch: offramp.Batch, progress: float) -> dict[str, Tensor]:
        losses = cross_entropy(outputs.logits, batch.labels)  # (E,)
        exits = len(losses)
        weights = linspace(first, 1, exits, device=losses.device) if exits > 1 else losses.new_ones(1)
        return {"ce": (weights * losses).sum()}

    return offramp.Method(objective)


def main(out: str = "runs/own-method", epochs: int = 3) -> offramp.Evaluation:
    """Train a small ResNet18 on digits by this method, calibrate it to 70 % of the operations, evaluate it."""
    config = offramp.Config(
        net="resnet18", width=8, branch="linear", method="python:own_method", data="digits", epochs=epochs
    )
    run = offramp.train(config, out)
    offramp.calibrate(run, offramp.Goal(macs=0.7))
    result = offramp.evaluate(run)
    print(result)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
