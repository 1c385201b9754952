"""What the tests of serving share: a small trained and calibrated bundle on digits, and its images as bytes."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http as triton
from PIL import Image
from torch import nn

from offramp.bundle.read import Bundle, open_bundle
from offramp.bundle.write import write
from offramp.data.augment import normalise
from offramp.data.load import load
from offramp.early_exit.calibrate import calibrate
from offramp.measure.cost import segment_macs
from offramp.net import Branch, Head, MultiExitNet
from offramp.serve.costs import CostCurve, linear
from offramp.serve.server import Server


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained bundle of three exits whose policy reaches a goal on cal; nobody may change its files."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(1 if n == 0 else 8, 8, 3, padding=1), nn.ReLU()) for n in range(3)]
    net = MultiExitNet(stages, [Branch(nn.Identity(), Head(8, 10)) for _ in range(3)])
    data = load("digits")
    train, cal = data.splits["train"], data.splits["cal"]
    inputs = normalise(torch.from_numpy(train.source.batch(train.indices)), data.mean, data.std)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(60):
        loss = sum(nn.functional.cross_entropy(z, torch.from_numpy(train.labels)) for z in net(inputs).logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        seen = normalise(torch.from_numpy(cal.source.batch(cal.indices)), data.mean, data.std)
        logits = net.eval()(seen).logits.numpy()
    plain = float((logits[-1].argmax(1) == cal.labels).mean())
    on = (True, True, True)
    costs = segment_macs(net, data.shape, on)
    policy = calibrate(logits, cal.labels, segment_costs={on: costs}, accuracy=plain - 0.05).policy
    assert policy.enabled == on
    origin = {"goal": {"max_drop": 0.05}, "segment_costs": costs}
    path = tmp_path_factory.mktemp("serve") / "digits"
    write(path, net, policy, data, images=100, origin=origin)
    return path


@pytest.fixture(scope="session")
def bundle(folder: Path) -> Bundle:
    return open_bundle(folder)


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """The test images of digits (N, 1, 8, 8)."""
    split = load("digits").splits["test"]
    return np.asarray(split.source.batch(split.indices))


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return np.asarray(load("digits").splits["test"].labels)


@pytest.fixture(scope="session")
def images(pixels: np.ndarray) -> list[bytes]:
    """The first 60 of them as PNG files."""
    return [png(image) for image in pixels[:60]]


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[0]).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def quick(costs: tuple[CostCurve, ...]) -> Iterator[None]:
    """Nothing is measured when a server of these tests starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.serve.predictor.measure", lambda bundle, most: costs)
        yield


@pytest.fixture(scope="session")
def costs() -> tuple[CostCurve, ...]:
    """Invented costs under which survivors gather: nothing has to be measured."""
    return (linear(1e-3, 1e-5, 16),) * 3


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """An HTTP client of the module's fixture `server`."""
    with httpx.Client(base_url=server.url, trust_env=False) as opened:
        yield opened


@pytest.fixture
def remote(server: Server) -> Iterator[Any]:
    """Triton's client of the module's fixture `server`."""
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as opened:
        yield opened
