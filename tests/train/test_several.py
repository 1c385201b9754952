"""Networks that are trained together, in the loop: resumed to the bit, the same on two processes, what is refused.

Run as a program, this file is what the two processes do.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from offramp.data.splits import ArraySource, DataSet, Split
from offramp.methods import find
from offramp.multi_net import Cohort, GatedFan
from offramp.net import Backbone, Head
from offramp.train import checkpoint, log
from offramp.train.device import make_fabric
from offramp.train.loop import Loop
from offramp.train.recipe import Recipe
from offramp.train.reporter import Interrupted

CLASSES, SHAPE = 4, (1, 6, 6)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "in-turn": ("dml", {"networks": 3, "updates": "alternating"}),
    "fan": ("one", {"ramp_up": 0.0}),
}


class Silent:
    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None: ...

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None: ...

    def epoch_done(self, record: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def data() -> DataSet:
    pixels = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    source = ArraySource("toy", tuple("abcd"), np.arange(40, dtype=np.int64) % CLASSES, pixels)
    splits = {"train": Split(source, np.arange(32), "train"), "val": Split(source, np.arange(32, 40), "val")}
    return DataSet("toy", splits, source.classes, SHAPE, (0.5,), (0.25,), "crop")


def backbone() -> Backbone:
    widths = (1, 4, 6)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
    return Backbone(tuple(stages), Head(6, CLASSES), SHAPE)


def network(way: str) -> nn.Module:
    name, hyper = WAYS[way]
    torch.manual_seed(3)
    built = find(name).build(**hyper).network(backbone, lambda trunk, exit: None)
    assert isinstance(built, Cohort | GatedFan)
    return built


def loop(way: str, folder: Path, frozen: bool = False, **changes: Any) -> Loop:
    name, hyper = WAYS[way]
    how = Recipe(**{"epochs": 2, "batch_size": 8, "precision": "32", "device": "cpu", "lr": 0.05, **changes})
    net = network(way)
    for part in net.modules() if frozen else ():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.eval().running_var.fill_(0.25)
            part.train = lambda mode=True, part=part: part
    folder.mkdir(exist_ok=True)
    return Loop(make_fabric(how), folder, how, net, find(name).build(**hyper), data(), Silent())


@pytest.mark.parametrize(("way", "precision"), [("in-turn", "32"), ("fan", "bf16")])
def test_interrupted_and_resumed_is_the_same_to_the_bit(way: str, precision: str, tmp_path: Path) -> None:
    how = {"precision": precision, "ema": 0.9, "mixup": 0.3}
    whole, cut = (loop(way, tmp_path / name, **how) for name in ("whole", "cut"))
    whole.run(resume=False)
    take, calls = cut.take_step, [0]

    def step(*args: Any) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == 3:
            cut.stop.set()
        return take(*args)

    cut.take_step = step
    with pytest.raises(Interrupted):
        cut.run(resume=False)
    loop(way, tmp_path / "cut", **how).run(resume=True)
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    steps = [log.read(tmp_path / run / "metrics.jsonl", "step") for run in ("whole", "cut")]
    assert steps[0] == steps[1] and len(steps[0]) == 8
    epochs = log.read(tmp_path / "whole" / "metrics.jsonl", "epoch")
    assert all(len(record["val_accuracy"]) == whole.net.exits for record in epochs)


def train(folder: Path, devices: int) -> None:
    loop("in-turn", folder / str(devices), frozen=True, devices=devices, clip=0.5).run(resume=False)


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path: Path) -> None:
    """Networks that are updated in turn; tests/contract/test_training.py has the other ways."""
    train(tmp_path, 1)
    forked.run_ranks(__file__, tmp_path)
    one, two = (checkpoint.latest(tmp_path / str(devices) / "checkpoints")[0] for devices in (1, 2))
    assert one is not None and two is not None
    torch.testing.assert_close(two.weights, one.weights, rtol=1e-5, atol=1e-5)
    start = network("in-turn").state_dict()
    assert all(not torch.equal(one.weights[key], start[key]) for key in start if key.endswith("classifier.weight"))


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"tune": "mixed"}, "tune"), ({"tune": "exits"}, "tune"), ({"lr_backbone": 0.1}, "lr")],
)
def test_backbone_and_exits_are_not_told_apart(changes: dict[str, Any], option: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"{option}.* tells a backbone from its exits, but this method trains networks"
    ):
        loop("fan", tmp_path, **changes)


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2)
