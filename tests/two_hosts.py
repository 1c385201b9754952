"""Every method trained a little, by one process or by several on several machines: for a test, and as a program."""

import sys
from pathlib import Path
from typing import Any

import torch

from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.methods import available
from offramp.testing import SilentReporter, patterns
from offramp.train import checkpoint
from offramp.train.device import launch, set_up
from offramp.train.loop import Loop

WITHOUT_NORMS: dict[str, Any] = {"net": "python:my_nets:faulty", "exits_after": ("1", "3"), "branch": "linear"}
OPTIONS = {
    **dict.fromkeys(("hdkd", "hdbt", "hmsdnet"), WITHOUT_NORMS),
    "l2w": WITHOUT_NORMS | {"net_options": {}, "method_options": {"meta_lr": "0.01"}},
}
"""Where all methods do not take the same: those that look ahead have no batch norms over all processes."""
USUAL: dict[str, Any] = {"net": "resnet18", "width": 4, "sync_batch_norm": True}


def train_all(folder: Path, devices: int, nodes: int) -> None:
    """Three steps by every method, each an epoch; `devices` processes in all. With more, rounding becomes signs."""
    for name in available():
        torch.manual_seed(0)
        common = {"method": name, "epochs": 3, "batch_size": 8, "lr": 0.002, "precision": "32", "device": "cpu"}
        config = resolve(Config(**{**common, "devices": devices, **OPTIONS.get(name, USUAL)}))
        data, method = patterns(8, 8, 4, 16), build_method(config)
        net = build_net(config, method, classes=4, shape=data.shape)
        prepare_objective(method, net, data.shape)
        place = folder / f"{name}-{devices}"
        place.mkdir(exist_ok=True)
        fabric = set_up(config, freezes=method.freezes, nodes=nodes)
        launch(fabric)
        Loop(fabric, place, config, net, method, data, SilentReporter()).run(resume=False)


def same(one: Path, other: Path) -> bool:
    """Whether the weights of two runs and what their methods learned are equal to rounding."""
    first, second = (checkpoint.latest(run / "checkpoints")[0] for run in (one, other))
    assert first is not None and second is not None and first.weights.keys() == second.weights.keys()
    pairs = [(first.weights[name], second.weights[name]) for name in first.weights]
    pairs += [(value, second.state["objective"][name]) for name, value in first.state["objective"].items()]
    return all(torch.allclose(value, result, rtol=1e-4, atol=1e-5) for value, result in pairs)


def main() -> None:
    """Train in this folder, on one of these machines."""
    train_all(Path(), *map(int, sys.argv[1:]))
