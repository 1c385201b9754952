"""What several processes share: two of them train as one does, with batch norms, in parts, divided, and resumed.

Run as a program, this file is what the two processes do.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from torch import distributed, nn

from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.testing import SilentReporter, patterns
from offramp.train import checkpoint, log
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

WAYS: dict[str, dict[str, Any]] = {
    "norms": {"sync_batch_norm": True, "clip": 0.5},
    "norms-dml": {"sync_batch_norm": True, "method": "dml"},
    "parts": {"still": True, "accumulate": 2, "method": "byot", "method_options": {"adapt": "all", "beta": 0.1}},
    "divided": {"strategy": "fsdp", "sync_batch_norm": True, "clip": 0.5},
    "divided-parts": {"strategy": "fsdp", "still": True, "accumulate": 2, "optimizer": "adamw", "lr": 1e-4},
}
SMALL: dict[str, Any] = {"net": "wrn16-4", "width": 2, "net_options": {"blocks": 1}, "exits_at": (3,)}
"""Four blocks with batch norms, one of them in the branch of the first of two exits: each layer costs time."""
AFTER = [
    *((way, before, devices) for way in ("norms", "divided") for before, devices in ((1, 2), (2, 1), (2, 2))),
    ("divided-parts", 2, 2),
]
"""Which are resumed: the way, and by how many processes before and after."""


def trained(
    folder: Path, devices: int, resume: bool = False, *, still: bool = False, samples: int = 22, **options: Any
) -> None:
    """Two epochs of three steps, the last of them with fewer samples: 6, or 3 in each of two processes."""
    torch.manual_seed(0)
    values = {"method": "msd", "epochs": 2, "batch_size": 8, "lr": 0.01, "precision": "32", "device": "cpu", **SMALL}
    config = resolve(Config(**{**values, "devices": devices, "checkpoint_every": 3, **options}))
    data, method = patterns(samples, 8, 4, 16), build_method(config)
    net = build_net(config, method, classes=4, shape=data.shape)
    for part in net.modules():
        if still and isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign, misc]
    prepare_objective(method, net, data.shape)
    folder.mkdir(exist_ok=True)
    Loop(make_fabric(config), folder, config, net, method, data, SilentReporter()).run(resume=resume)


def test_a_checkpoint_of_longer_epochs_is_refused(tmp_path: Path) -> None:
    """As after a last batch of three samples: one process takes it, two would leave one of them a single sample."""
    trained(tmp_path, 1)
    with pytest.raises(ValueError, match=r"step-000000006 is of epochs of 3 steps, and 1 process\(es\) make 4 of"):
        trained(tmp_path, 1, resume=True, samples=26)


def train_all(folder: Path, devices: int) -> None:
    for way, options in WAYS.items():
        trained(folder / f"{way}-{devices}", devices, **options)


def resume_all(folder: Path, devices: int) -> None:
    """From the checkpoint after the first epoch; of several processes, the first one makes the copies."""
    several = devices > 1
    if several:
        distributed.barrier()
    for way, before, after in AFTER:
        if after == devices and not (several and distributed.get_rank()):
            shutil.copytree(folder / f"{way}-{before}", copy := folder / f"{way}-{before}-then-{after}")
            shutil.rmtree(copy / "checkpoints/step-000000006")
    if several:
        distributed.barrier()
    for way, before, after in AFTER:
        if after == devices:
            trained(folder / f"{way}-{before}-then-{after}", devices, resume=True, **WAYS[way])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ways")
    train_all(place, 1)
    forked.run_ranks(__file__, place)
    resume_all(place, 1)
    return place


def weights(folder: Path) -> dict[str, torch.Tensor]:
    kept = checkpoint.latest(folder / "checkpoints")[0]
    assert kept is not None and kept.path.name == "step-000000006"
    return kept.weights


def assert_equal_runs(folder: Path, one: str, other: str, same: Callable[..., None]) -> None:
    """Weights, losses and accuracies of two runs."""
    first, second = weights(folder / one), weights(folder / other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        same(second[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
    for kind, key in (("step", "loss"), ("epoch", "val_accuracy")):
        records = [[record[key] for record in log.read(folder / run / "metrics.jsonl", kind)] for run in (one, other)]
        assert len(records[0]) == (6 if kind == "step" else 2)
        same(*map(torch.tensor, records))


def close(*tensors: torch.Tensor, **how: Any) -> None:
    torch.testing.assert_close(*tensors, rtol=1e-5, atol=1e-5, **how)


def equal(*tensors: torch.Tensor, **how: Any) -> None:
    torch.testing.assert_close(*tensors, rtol=0.0, atol=0.0, **how)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_are_one(folder: Path, way: str) -> None:
    assert_equal_runs(folder, f"{way}-1", f"{way}-2", close)


@pytest.mark.parametrize(("way", "before", "after"), AFTER)
def test_a_run_goes_on_with_as_many_processes_to_the_bit_and_with_others_to_rounding(
    folder: Path, way: str, before: int, after: int
) -> None:
    assert_equal_runs(folder, f"{way}-{before}", f"{way}-{before}-then-{after}", equal if before == after else close)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), 2)
    resume_all(Path(sys.argv[1]), 2)
