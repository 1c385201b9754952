"""Checkpoints as people have them: containers, prefixes, the usual names of ResNets, and what holds code."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.models import resnet
from offramp.split import weights
from offramp.train.checkpoint import save_weights


class Block(nn.Module):
    """The basic block of the usual code for CIFAR."""

    def __init__(self, enters: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(enters, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or enters != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(enters, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(inner + self.shortcut(maps))


class ResNet18(nn.Module):
    """The ResNet18 of the usual code for CIFAR, narrow."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for layer, (enters, planes) in enumerate(pairwise(sizes), start=1):
            stride = 1 if layer == 1 else 2
            setattr(self, f"layer{layer}", nn.Sequential(Block(enters, planes, stride), Block(planes, planes, 1)))
        self.linear = nn.Linear(sizes[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return self.linear(F.avg_pool2d(maps, 4).flatten(1))


@pytest.fixture(scope="module")
def usual() -> ResNet18:
    torch.manual_seed(0)
    net = ResNet18()
    net(torch.randn(8, 3, 32, 32))  # other batch statistics than those of a new network
    return net.eval()


def logits(path: Path) -> Tensor:
    backbone = resnet.build("resnet18", classes=10, width=4)
    weights.load_state(backbone, weights.read(path))
    state = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for stage in backbone.stages:
        state = stage.eval()(state)
    return backbone.head(state)[0]


@pytest.mark.parametrize("container", [None, "net", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_usual_resnet18_is_loaded(tmp_path: Path, usual: ResNet18, container: str | None, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in usual.state_dict().items()}
    content = state if container is None else {container: state, "acc": 95.1, "epoch": 199}
    torch.save(content, tmp_path / "ckpt.pth")
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(tmp_path / "ckpt.pth"), usual(inputs), atol=1e-5, rtol=1e-5)


def test_the_names_of_torchvision(tmp_path: Path, usual: ResNet18) -> None:
    state = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): tensor
        for name, tensor in usual.state_dict().items()
    }
    torch.save(state, tmp_path / "ckpt.pth")
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(tmp_path / "ckpt.pth"), usual(inputs), atol=1e-5, rtol=1e-5)


def test_a_whole_pickled_model_names_the_way_that_works(tmp_path: Path, usual: ResNet18) -> None:
    torch.save(usual, tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match=r"it holds [\w.]*ResNet18, such as a whole pickled model has, and loading"
    ) as error:
        weights.read(tmp_path / "model.pth")
    assert "torch.save(model.state_dict(), FILE)" in str(error.value) and "\n" not in str(error.value)


def test_weights_of_a_run_that_were_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    about = {"epoch": 1, "val_accuracy": None, "classes": ["a"], "shape": [1, 8, 8]}
    save_weights(path, {"weight": torch.ones(3)}, about)
    assert torch.equal(weights.read(path)["weight"], torch.ones(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"^weights=.*last\.safetensors was changed since it was written"):
        weights.read(path)


def test_other_weights_are_refused_with_their_names(tmp_path: Path, usual: ResNet18) -> None:
    state = usual.state_dict()
    del state["layer2.0.conv1.weight"]
    torch.save(state | {"layer2.0.conv9.weight": torch.zeros(1)}, tmp_path / "ckpt.pth")
    with pytest.raises(ValueError, match=r"1 missing \(blocks.3.conv1.weight\); 1 unexpected \(blocks.3.conv9"):
        logits(tmp_path / "ckpt.pth")
