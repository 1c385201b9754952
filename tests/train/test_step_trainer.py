"""A method in a loop of one's own does what `offramp train` does, step by step, or is refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import offramp
from offramp import methods
from offramp.branches import sketch
from offramp.config import Config, ResolvedConfig, build_method, build_net, prepare_objective, resolve
from offramp.data.loading import Loader
from offramp.methods import find
from offramp.models import resnet
from offramp.net import Backbone, MultiExitNet, attach
from offramp.testing import SilentReporter, patterns
from offramp.train import log
from offramp.train.device import make_fabric
from offramp.train.held_out import HeldOut
from offramp.train.loop import Loop
from offramp.train.step_trainer import StepTrainer

SHAPE = (3, 16, 16)


def configured(method: str) -> ResolvedConfig:
    epochs = max(2, len(find(method).build().phases))
    recipe = {"epochs": epochs, "batch_size": 8, "lr": 0.02, "precision": "32", "schedule": "constant", "clip": 1.0}
    return resolve(Config(method=method, net="resnet18", branch="sketch", width=4, device="cpu", **recipe))


def built(config: ResolvedConfig) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    method = build_method(config)
    net = build_net(config, method, classes=4, shape=SHAPE)
    return method, net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param(name, steps, marks=() if (name, steps) in (("muse", 1), ("hdkd", 2)) else pytest.mark.full)
        for name in methods.available()
        for steps in (1, 2)
    ],
)
def test_steps_equal_those_of_a_run(name: str, steps: int, tmp_path: Path) -> None:
    """Weights and terms, clipped, of two epochs or one per phase; tests/contract asks every method for its terms."""
    config, data = configured(name), patterns(train=8 * steps)
    method, net = built(config)
    prepare_objective(method, net, SHAPE)
    fabric = make_fabric(config, freezes=method.freezes)
    Loop(fabric, tmp_path, config, net, method, data, SilentReporter()).run(resume=False)
    expected = [record["terms"] for record in log.read(tmp_path / "metrics.jsonl", "step")]

    method, ours = built(config)
    optimizer = torch.optim.SGD(ours.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4, fused=True)
    common = {"device": torch.device("cpu"), "seed": 0, "channels_last": True, "batch_size": 8}
    held = HeldOut(partial(Loader, data.splits["val"], data, augment=False, shuffle=True, **common))
    batches = (held.for_step(step) for step in range(100))
    trainer = StepTrainer(
        method, ours, optimizer, input_shape=SHAPE, epochs=config.epochs, held_out=batches, clip=config.clip
    )
    terms = []
    for epoch in range(config.epochs):
        trainer.start_epoch(epoch)
        for batch in Loader(data.splits["train"], data, augment=True, **common).epoch(epoch):
            taken = trainer.step(batch.inputs, batch.labels, batch.ids)
            terms.append({term: value.item() for term, value in taken.items()})
    assert terms == expected
    for one, other in zip(net.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def backbone() -> Backbone:
    return resnet.build("resnet18", classes=4, width=4, image_size=16)


def branch(trunk: Backbone, exit: int) -> nn.Module:
    return sketch.build(trunk, exit, 4)


def attached() -> MultiExitNet:
    return attach(backbone(), branch)


def trainer(name: str, net: nn.Module, optimizer: Any = torch.optim.SGD, **options: Any) -> StepTrainer:
    values = {"input_shape": SHAPE, "epochs": 3, **options}
    return offramp.StepTrainer(find(name).build(), net, optimizer(net.parameters(), lr=0.01), **values)


@pytest.mark.parametrize("name", ["boostnet", "ztw", "imta", "dml", "one", "vanilla"])
def test_a_network_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"build it by method.network\(backbone, branch\)$"):
        trainer(name, attached(), held_out=[])
    trainer(name, find(name).build().network(backbone, branch))


def test_what_a_step_needs_is_asked_for() -> None:
    for name in ("hdkd", "hdbt", "hmsdnet"):
        with pytest.raises(ValueError, match="this method learns from held-out batches: held_out must be given"):
            trainer(name, attached())
    with pytest.raises(ValueError, match="this method looks ahead by the optimizer's own step: optimizer must be SGD"):
        trainer("l2w", attached(), torch.optim.AdamW)
    with pytest.raises(ValueError, match="trains in 2 phases and needs"):
        trainer("imta", find("imta").build().network(backbone, branch), epochs=1)
    with pytest.raises(ValueError, match="net must be a MultiExitNet for this method, got Cohort"):
        trainer("joint", find("dml").build().network(backbone, branch))
    with pytest.raises(ValueError, match=r"call start_epoch\(epoch\) before the first step of every epoch"):
        trainer("joint", attached()).step(torch.zeros(4, *SHAPE), torch.zeros(4, dtype=torch.long))
    empty = trainer("hdkd", attached(), held_out=[])
    empty.start_epoch(0)
    with pytest.raises(ValueError, match="held_out must have at least one batch, and must be iterable more than once"):
        empty.step(torch.zeros(4, *SHAPE), torch.arange(4))


def test_a_network_of_its_own_without_a_check_is_refused() -> None:
    method = offramp.Method(
        find("joint").build().objective, network=lambda backbone, branch: attach(backbone(), branch)
    )
    with pytest.raises(ValueError, match="network of its own but no check_network, so nothing shows that it built net"):
        StepTrainer(method, attached(), torch.optim.SGD(attached().parameters()), input_shape=SHAPE, epochs=1)


def test_own_precision_and_held_out_pairs() -> None:
    images, labels = torch.randn(8, *SHAPE), torch.arange(8) % 4
    held = [(images, labels)]
    running = trainer("hdkd", attached(), held_out=held, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    running.start_epoch(0)
    for _ in range(2):
        terms = running.step(images, labels)
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
