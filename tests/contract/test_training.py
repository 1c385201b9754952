"""What every method keeps on every kind of network: it learns, it minimises what it logs, it goes on to the bit after a
stop, in bf16 too, and it does on two processes what it does on one.

A method added later is tested by existing. Run as a program, this file is what the two processes do.
"""

import copy
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from offramp import methods
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.data.loading import Loader
from offramp.outputs import Batch
from offramp.step import plain_step
from offramp.testing import SilentReporter, patterns
from offramp.train import checkpoint, log
from offramp.train.device import make_fabric
from offramp.train.loop import Loop
from offramp.train.reporter import Interrupted

CLASSES, SIDE, HELD = 4, 16, 8
NETS: dict[str, dict[str, Any]] = {
    "resnet18": {"net": "resnet18", "branch": "sketch", "width": 4},
    "wrn16-4": {"net": "wrn16-4", "branch": "sketch", "width": 4},
    "msdnet": {"net": "msdnet", "branch": "own", "net_options": {"exits": 4, "base": 1, "step": 1, "growth": 2}},
}
LOSSES = Path(__file__).with_name("losses.json")
"""Losses of the thirty steps of `test_its_steps_lower_its_loss` by method, as they were when it was written."""
GOLDEN: dict[str, list[float]] = json.loads(LOSSES.read_text())
EVERY_METHOD = pytest.mark.parametrize("method", methods.available())
SAME_STATE = {"vanilla": "joint", "equilibrium": "joint", "hdbt": "hdkd", "hmsdnet": "hdkd", "msd": "muse"}
"""Methods that keep the same between steps as another one; what concerns that is asked of them in the full grid."""
EVERY_STATE = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.full if name in SAME_STATE else ()) for name in methods.available()]
)
PHASED = [name for name in methods.available() if len(methods.find(name).build().phases) > 1]
EVERY_NET = pytest.mark.parametrize(
    "net", [pytest.param(net, marks=[] if net == "resnet18" else pytest.mark.full) for net in NETS]
)


def loop(net: str, method: str, folder: Path, *, train: int = 24, frozen: bool = False, **recipe: Any) -> Loop:
    """A run in its folder, ready to start; `frozen`: batch norms keep the statistics of one batch."""
    torch.manual_seed(0)
    given = {"epochs": 2, "batch_size": 8, "lr": 0.02, "precision": "32", "device": "cpu", **recipe}
    phases = len(methods.find(method).build().phases)  # a run has an epoch for each at least
    given["epochs"] = max(given["epochs"], phases)
    config = resolve(Config(method=method, **given, **NETS[net]))
    data, made = patterns(train, HELD, CLASSES, SIDE), build_method(config)
    network = build_net(config, made, classes=CLASSES, shape=data.shape)
    prepare_objective(made, network, data.shape)
    if frozen:
        freeze(network)
    folder.mkdir(exist_ok=True)
    parted = {"parted": True} if phases > 1 else {}
    return Loop(make_fabric(config, **parted), folder, config, network, made, data, SilentReporter())


def freeze(network: nn.Module) -> None:
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    network(torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    for norm in norms:
        norm.eval()
        norm.train = lambda mode=True, norm=norm: norm


def whole(running: Loop) -> Batch:
    """All training images as one batch."""
    ids = torch.arange(len(running.data.splits["train"]))
    of = running.data
    batches = Loader(of.splits["train"], of, batch_size=len(ids), augment=False, seed=0)
    return next(iter(batches.epoch(0)))


def loss(running: Loop, network: nn.Module, objective: Any, batch: Batch) -> float:
    """What this network, in the mode it is in, loses by this objective, which stays as it is."""
    if isinstance(objective, nn.Module):
        objective = copy.deepcopy(objective).eval()
    with torch.no_grad():
        outputs = copy.deepcopy(network)(batch.inputs, tap=running.method.tap)
        return sum(float(term) for term in objective(outputs, batch, 0.0).values())


def thirty_and_ten() -> Iterator[Any]:
    """All thirty steps; of methods in one phase only in the full grid, and its first ten otherwise."""
    for method in methods.available():
        if method not in PHASED:
            yield method, 10
        yield pytest.param(method, 30, marks=[] if method in PHASED else pytest.mark.full)


@EVERY_NET
@pytest.mark.parametrize(("method", "steps"), list(thirty_and_ten()))
def test_its_steps_lower_its_loss(net: str, method: str, steps: int, tmp_path: Path) -> None:
    """Those of its last phase, where it has several: who teaches and what is frozen is settled before."""
    running = loop(net, method, tmp_path, train=40, epochs=6, lr=0.005)
    began, begin, batch = [], running._begin, whole(running)

    def watched(span: Any) -> None:
        begin(span)
        began.append(copy.deepcopy(running.net))

    running._begin = watched
    if steps < 30:
        stopping(running, steps)
    with pytest.raises(Interrupted) if steps < 30 else nullcontext():
        running.run(resume=False)
    assert running.step_number == steps and len(began) == len(running.method.phases)
    if net == "resnet18":
        losses = [record["loss"] for record in log.read(tmp_path / "metrics.jsonl", "step")]
        assert losses[:3] == pytest.approx(GOLDEN[method][:3], rel=1e-4)
        assert losses == pytest.approx(GOLDEN[method][:steps], rel=0.05)  # rounding grows from step to step
    objective = running.context.objective  # as the run left it: weights and temperatures move with the run
    first = loss(running, began[-1], objective, batch)
    began[-1].load_state_dict(running.net.state_dict())  # frozen norms stay so
    assert loss(running, began[-1], objective, batch) < first


@EVERY_NET
@EVERY_METHOD
def test_what_is_logged_is_what_is_minimised(net: str, method: str, tmp_path: Path) -> None:
    running = loop(net, method, tmp_path, train=16)
    parts, handed, wanted, taken = running.context, [], [], []
    update, trained = parts.update, [p for p in running.net.parameters() if p.requires_grad]

    def watched(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        of_sum = torch.autograd.grad(sum(terms.values()), trained, retain_graph=True, allow_unused=True)
        wanted.append(of_sum)
        handed.append(update(terms))
        return handed[-1]

    parts.update = watched
    parts.optimizer.optimizer.register_step_pre_hook(
        lambda *given: taken.append([None if p.grad is None else p.grad.clone() for p in trained])
    )
    parts.net.train()
    logged = []
    for batch in running.batches.train.epoch(0):
        logged.append((running.method.step or plain_step)(parts, batch, 0.0))
    assert len(taken) == len(handed) >= 2 and any(gradient is not None for gradient in taken[0])
    for found, expected in zip(taken, wanted, strict=True):
        torch.testing.assert_close([g for g in found if g is not None], [g for g in expected if g is not None])
    each = len(handed) // len(logged)  # some methods take several steps on one batch, and log their mean
    for number, terms in enumerate(logged):
        mine = handed[number * each : (number + 1) * each]
        torch.testing.assert_close(terms, {name: sum(part[name] for part in mine) / each for name in terms})


def stopping(running: Loop, at: int) -> None:
    """Ctrl-C during the step of that number."""
    step, calls = running.step, [0]

    def watched(batch: Batch, progress: float) -> None:
        calls[0] += 1
        if calls[0] == at:
            running.stop.set()
        step(batch, progress)

    running.step = watched


@EVERY_NET
@EVERY_STATE
@pytest.mark.parametrize("precision", [pytest.param("32", marks=pytest.mark.full), "bf16"])
@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.full), 3])
def test_stopped_in_the_middle_and_resumed_is_the_same_to_the_bit(
    net: str, method: str, at: int, precision: str, tmp_path: Path
) -> None:
    unbroken, cut = (loop(net, method, tmp_path / name, train=16, precision=precision) for name in ("whole", "cut"))
    began = copy.deepcopy(unbroken.net.state_dict())
    unbroken.run(resume=False)
    stopping(cut, at)
    with pytest.raises(Interrupted):
        cut.run(resume=False)
    again = loop(net, method, tmp_path / "cut", train=16, precision=precision)
    again.run(resume=True)
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    objectives = [made.context.objective for made in (unbroken, again)]
    if isinstance(objectives[0], nn.Module):
        states = [objective.state_dict() for objective in objectives]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    steps = [log.read(tmp_path / run / "metrics.jsonl", "step") for run in ("whole", "cut")]
    assert steps[0] == steps[1] and len(steps[0]) == 2 * unbroken.recipe.epochs
    assert all(np.isfinite(step["loss"]) for step in steps[0])
    assert any(not torch.equal(tensor, began[name]) for name, tensor in one.items())


@contextmanager
def smooth() -> Iterator[None]:
    """Softplus instead of ReLU: where one stands within rounding of its kink, the derivative hdkd learns from jumps."""
    relu = functional.relu
    functional.relu = lambda inputs, inplace=False: functional.softplus(inputs, beta=4.0)
    try:
        yield
    finally:
        functional.relu = relu


def in_turn(net: str, steps: int, folder: Path, names: Sequence[str], devices: int) -> None:
    """Train by these methods with the same global batch."""
    for method in names:
        how = {"devices": devices, "ema": 0.9, "clip": 1.0, "epochs": 2 if steps > 2 else 1}
        with smooth():
            running = loop(net, method, folder / f"{method}-{devices}", train=steps * 8, frozen=True, **how)
            running.run(resume=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("net", "steps"), [("resnet18", 2), *(pytest.param(net, 3, marks=pytest.mark.full) for net in NETS)]
)
def test_two_processes_do_as_one_with_the_same_global_batch(net: str, steps: int, tmp_path: Path) -> None:
    """One epoch of two steps, in the full grid two epochs of three: methods in phases take an epoch for each.

    Of methods that keep the same state, one outside the full grid.
    """
    names = [name for name in methods.available() if steps > 2 or name not in SAME_STATE]
    for devices in (1, 2):
        forked.run_ranks(__file__, net, steps, tmp_path, ",".join(names), processes=devices)
    for method in names:
        one, two = (checkpoint.latest(tmp_path / f"{method}-{devices}/checkpoints")[0] for devices in (1, 2))
        assert one is not None and two is not None
        for found, expected in ((two.weights, one.weights), (two.state["objective"], one.state["objective"])):
            assert found.keys() == expected.keys()
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5, msg=f"{method}: {key}")


if __name__ == "__main__":
    in_turn(
        sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","), int(os.environ.get("WORLD_SIZE", 1))
    )
