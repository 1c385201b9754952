"""A small bundle with everything that is awkward: two maps between stages, exits in a chain, one of them off."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from offramp.bundle.manifest import Manifest
from offramp.bundle.write import write
from offramp.data.load import load
from offramp.data.splits import DataSet
from offramp.early_exit.policy import ExitPolicy
from offramp.images import Fit
from offramp.net import MultiExitNet
from offramp.outputs import Carry, State

EXITS = 4


class Stage(nn.Module):
    """Two maps in (the image at first), two maps out, the second at half the resolution."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1 if first else 4, 4, 3, padding=1)
        self.coarse = nn.Conv2d(1 if first else 6, 6, 3, stride=2 if first else 1, padding=1)

    def forward(self, state: State) -> State:
        fine, coarse = state if isinstance(state, tuple) else (state, state)
        return torch.relu(self.fine(fine)), torch.relu(self.coarse(coarse))


class Exit(nn.Module):
    """Adds the logits of the exit before; hands its own along, and the label they stand for."""

    chained_exit = True

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(0.5), nn.Linear(10, 10)

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        assert isinstance(state, tuple)
        feature = torch.cat([part.amax((2, 3)) for part in state], 1)
        logits = 12 * self.classifier(self.dropout(feature)) + (0.5 * carry[0] if carry else 0)
        return logits, feature, state[0], (logits, logits.argmax(1))


def network(seed: int = 0) -> MultiExitNet:
    torch.manual_seed(seed)
    return MultiExitNet([Stage(exit == 0) for exit in range(EXITS)], [Exit() for _ in range(EXITS)]).eval()


class Exported(NamedTuple):
    folder: Path
    net: MultiExitNet
    policy: ExitPolicy
    data: DataSet
    manifest: Manifest
    advanced: list[int]


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load("digits")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, digits: DataSet) -> Exported:
    """A bundle on disk, and what it was made of; nobody may change its files."""
    folder = tmp_path_factory.mktemp("bundle") / "b"
    policy = ExitPolicy(
        thresholds=(0.85, 0.5, 0.6, 0.5),
        enabled=(True, False, True, True),
        answer="arithmetic",
        temperatures=(2.0,) * 4,
    )
    net, advanced = network().double().train(), list[int]()  # what is written is float32 in evaluation mode
    data = dataclasses.replace(digits, fit=Fit(8, 10))
    manifest = write(folder, net, policy, data, images=300, advance=advanced.append)
    return Exported(folder, net, policy, digits, manifest, advanced)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in exported.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def make_network() -> Callable[[int], Any]:
    return network
