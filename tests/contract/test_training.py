"""What every method keeps on every kind of network: it learns, it minimises what it logs, it goes on to the bit after a
stop, in bf16 too, and it does on two processes what it does on one.

A method added later is tested by existing. Run as a program, this file is what the two processes do.
"""

import copy
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

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
from offramp.step import StepContext
from offramp.testing import SilentReporter, patterns
from offramp.train import checkpoint, log
from offramp.train.device import make_fabric
from offramp.train.held_out import HeldOut
from offramp.train.loop import Loop
from offramp.train.reporter import Interrupted
from offramp.train.step_trainer import StepTrainer

CLASSES, SIDE, HELD = 4, 16, 8
NETS: dict[str, dict[str, Any]] = {
    "small": {"net": "wrn16-4", "branch": "sketch", "width": 2, "net_options": {"blocks": 1}, "exits_at": (2, 3)},
    "resnet18": {"net": "resnet18", "branch": "sketch", "width": 4},
    "wrn16-4": {"net": "wrn16-4", "branch": "sketch", "width": 4},
    "msdnet": {"net": "msdnet", "branch": "own", "net_options": {"exits": 4, "base": 1, "step": 1, "growth": 2}},
}
LOSSES = Path(__file__).with_name("losses.json")
"""Losses of the thirty steps of `test_its_steps_lower_its_loss` by network and method, when they were written."""
GOLDEN: dict[str, dict[str, list[float]]] = json.loads(LOSSES.read_text())
PHASED = [name for name in methods.available() if len(methods.find(name).build().phases) > 1]


def loop(net: str, method: str, folder: Path, *, train: int = 24, frozen: bool = False, **recipe: Any) -> Loop:
    """A run in its folder, ready to start; `frozen`: batch norms keep the statistics of one batch."""
    torch.manual_seed(0)
    values = {"epochs": 2, "batch_size": 8, "lr": 0.02, "precision": "32", "device": "cpu", **recipe}
    phases = len(methods.find(method).build().phases)  # a run has an epoch for each at least
    values["epochs"] = max(values["epochs"], phases)
    config = resolve(Config(method=method, **values, **NETS[net]))
    data, built = patterns(train, HELD, CLASSES, SIDE), build_method(config)
    network = build_net(config, built, classes=CLASSES, shape=data.shape)
    prepare_objective(built, network, data.shape)
    if frozen:
        freeze(network)
    folder.mkdir(exist_ok=True)
    freezes = {"freezes": True} if phases > 1 else {}
    return Loop(make_fabric(config, **freezes), folder, config, network, built, data, SilentReporter())


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
    source = running.data
    batches = Loader(source.splits["train"], source, batch_size=len(ids), augment=False, seed=0)
    return next(iter(batches.epoch(0)))


def loss(running: Loop, network: nn.Module, objective: Any, batch: Batch) -> float:
    """What this network, in the mode it is in, loses by this objective, which stays as it is."""
    if isinstance(objective, nn.Module):
        objective = copy.deepcopy(objective).eval()
    with torch.no_grad():
        outputs = copy.deepcopy(network)(batch.inputs, tap=running.method.tap)
        return sum(float(term) for term in objective(outputs, batch, 0.0).values())


class Record(NamedTuple):
    """A training that was watched; every contract reads what it needs. `handed` to `grew` are by the step's number."""

    net: str
    method: str
    steps: int
    folder: Path
    running: Loop
    began: list[nn.Module]
    """Copies of the network as each phase began."""
    handed: dict[int, list[dict[str, Tensor]]]
    """Terms that were to be minimised, of the first two steps of each phase: some methods minimise several times."""
    wanted: dict[int, list[list[Tensor | None]]]
    """Gradients of their sum."""
    taken: dict[int, list[list[Tensor | None]]]
    """Gradients along which the optimizer went."""


RECIPE: dict[str, Any] = {"train": 40, "epochs": 6, "lr": 0.005}


def stopping(running: Loop, stop_at: int) -> None:
    """Ctrl-C during the step of that number."""
    step, calls = running.step, [0]

    def watched(batch: Batch, progress: float) -> None:
        calls[0] += 1
        if calls[0] == stop_at:
            running.stop.set()
        step(batch, progress)

    running.step = watched


def watch(running: Loop, patch: pytest.MonkeyPatch) -> tuple[list[nn.Module], *tuple[dict[int, Any], ...]]:
    """What a `Record` holds of it, filled while it runs."""
    began, handed, wanted, taken = [], defaultdict(list), defaultdict(list), defaultdict(list)
    begin, update, since = running._begin, StepContext.update, [0]

    def begun(span: Any) -> None:
        begin(span)
        began.append(copy.deepcopy(running.net))
        since[0] = running.step_number

    def minimised(context: StepContext, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        if running.step_number < since[0] + 2:
            trained = [p if p.requires_grad else torch.zeros((), requires_grad=True) for p in running.net.parameters()]
            of_sum = torch.autograd.grad(sum(terms.values()), trained, retain_graph=True, allow_unused=True)
            wanted[running.step_number].append(of_sum)
            handed[running.step_number].append({name: term.detach() for name, term in terms.items()})
        return update(context, terms)

    def moving(*_: Any) -> None:
        if running.step_number < since[0] + 2:
            gradients = [None if p.grad is None else p.grad.clone() for p in running.net.parameters()]
            taken[running.step_number].append(gradients)

    running._begin = begun
    patch.setattr(StepContext, "update", minimised)  # every step works on a copy of the run's
    running.context.optimizer.optimizer.register_step_pre_hook(moving)
    return began, handed, wanted, taken


def ten_or_thirty() -> Iterator[Any]:
    """All thirty steps; of methods in one phase only in the full grid, and the first ten otherwise."""
    for net in NETS:
        for method in methods.available():
            short, rare = method not in PHASED, net != "small"
            for steps in (10, 30) if short else (30,):
                marks = [pytest.mark.full] if rare or (short and steps == 30) else []
                yield pytest.param((net, method, steps), id=f"{net}-{method}-{steps}", marks=marks)


@pytest.fixture(scope="module", params=list(ten_or_thirty()))
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """One training, stopped after those steps, with a checkpoint two steps before."""
    net, method, steps = request.param
    folder = tmp_path_factory.mktemp("record") / "run"
    running = loop(net, method, folder, checkpoint_every=steps - 2, **RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        watched = watch(running, patch)
        until(running, steps, steps=steps, resume=False)
    return Record(net, method, steps, folder, running, *watched)


def until(running: Loop, last: int, *, steps: int, resume: bool) -> None:
    """Train that many steps, until the number of all is `last`: Ctrl-C stops it there, unless the run ends with it."""
    ends = last == running.recipe.epochs * running.steps
    if not ends:
        stopping(running, steps)
    with nullcontext() if ends else pytest.raises(Interrupted):
        running.run(resume=resume)


def test_its_steps_lower_its_loss(record: Record) -> None:
    """Those of its last phase, where it has several: who teaches and what is frozen is settled before."""
    running, began, batch = record.running, copy.deepcopy(record.began[-1]), whole(record.running)
    assert running.step_number == record.steps and len(record.began) == len(running.method.phases)
    if record.net in GOLDEN:
        golden = GOLDEN[record.net][record.method]
        losses = [step["loss"] for step in log.read(record.folder / "metrics.jsonl", "step")]
        assert losses[:3] == pytest.approx(golden[:3], rel=1e-4)
        assert losses == pytest.approx(golden[: record.steps], rel=0.05)  # rounding grows
    objective = running.context.objective  # as the run left it: weights and temperatures move with the run
    first = loss(running, began, objective, batch)
    began.load_state_dict(running.net.state_dict())  # frozen norms stay so
    assert loss(running, began, objective, batch) < first


def test_what_is_logged_is_what_is_minimised(record: Record) -> None:
    logged = log.read(record.folder / "metrics.jsonl", "step")
    assert len(record.handed) == 2 * len(record.began) and record.handed.keys() == record.taken.keys()
    for number, handed in record.handed.items():
        for taken, wanted in zip(record.taken[number], record.wanted[number], strict=True):
            assert any(gradient is not None for gradient in taken)
            torch.testing.assert_close([g for g in taken if g is not None], [g for g in wanted if g is not None])
        mean = {name: sum(float(terms[name]) for terms in handed) / len(handed) for name in handed[0]}
        assert logged[number]["terms"] == pytest.approx(mean, rel=1e-5)
        assert logged[number]["loss"] == pytest.approx(sum(mean.values()), rel=1e-5)


def test_continued_in_the_middle_it_is_the_same_to_the_bit(record: Record, tmp_path: Path) -> None:
    """From the checkpoint two steps before the end of the record, as if the process had been killed after it."""
    shutil.copytree(record.folder, tmp_path / "again")
    newest = f"step-{record.steps:09d}"
    shutil.rmtree(tmp_path / "again/checkpoints" / newest)
    again = loop(record.net, record.method, tmp_path / "again", checkpoint_every=record.steps - 2, **RECIPE)
    until(again, record.steps, steps=2, resume=True)
    one, other = (checkpoint.load(folder / "checkpoints" / newest) for folder in (record.folder, tmp_path / "again"))
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)
    torch.testing.assert_close(other.state["objective"], one.state["objective"], rtol=0, atol=0)
    steps = [log.read(folder / "metrics.jsonl", "step") for folder in (record.folder, tmp_path / "again")]
    assert steps[0] == steps[1] and len(steps[0]) == record.steps
    assert all(np.isfinite(step["loss"]) for step in steps[0])
    began = record.began[0].state_dict()
    assert any(not torch.equal(tensor, began[name]) for name, tensor in one.weights.items())


def test_a_loop_of_one_s_own_takes_the_same_steps(record: Record) -> None:
    """By `StepTrainer`, up to the second step of the last phase; tests/train/test_step_trainer.py compares weights."""
    config, data = record.running.recipe, record.running.data
    torch.manual_seed(0)
    method = build_method(config)
    net = build_net(config, method, classes=CLASSES, shape=data.shape)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4, fused=True)
    common = {"device": torch.device("cpu"), "seed": 0, "channels_last": True, "batch_size": 8}
    held = HeldOut(partial(Loader, data.splits["val"], data, augment=False, shuffle=True, **common))
    batches = (held.for_step(step) for step in range(30))
    trainer = StepTrainer(method, net, optimizer, input_shape=data.shape, epochs=config.epochs, held_out=batches)
    train = Loader(data.splits["train"], data, augment=True, **common)
    logged = log.read(record.folder / "metrics.jsonl", "step")
    for expected in logged[: max(record.handed) + 1]:
        epoch, place = divmod(expected["step"], len(train))
        if place == 0:
            trainer.start_epoch(epoch)
        optimizer.param_groups[0]["lr"] = expected["lr"] / trainer.span.phase.rate
        batch = next(train.epoch(epoch, place))
        terms = trainer.step(batch.inputs, batch.labels, batch.ids)
        assert {term: value.item() for term, value in terms.items()} == expected["terms"]


def stops() -> Iterator[Any]:
    for net, method, precision, position in product(NETS, methods.available(), ("32", "bf16"), (1, 3)):
        quick = (net, method, precision, position) == ("small", "muse", "bf16", 3)
        yield pytest.param(net, method, precision, position, marks=[] if quick else pytest.mark.full)


@pytest.mark.parametrize(("net", "method", "precision", "stop_at"), list(stops()))
def test_stopped_in_the_middle_and_resumed_is_the_same_to_the_bit(
    net: str, method: str, precision: str, stop_at: int, tmp_path: Path
) -> None:
    """By Ctrl-C, and in bf16 too."""
    unbroken, cut = (loop(net, method, tmp_path / name, train=16, precision=precision) for name in ("whole", "cut"))
    began = copy.deepcopy(unbroken.net.state_dict())
    unbroken.run(resume=False)
    stopping(cut, stop_at)
    with pytest.raises(Interrupted):
        cut.run(resume=False)
    again = loop(net, method, tmp_path / "cut", train=16, precision=precision)
    again.run(resume=True)
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    objectives = [built.context.objective for built in (unbroken, again)]
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


def families() -> list[str]:
    """One of all methods that train the same kind of network in the same phases by the same step, and learn alike."""
    kinds = {}
    for name in reversed(methods.available()):
        method = methods.find(name).build()
        learned = [*method.objective.state_dict()] if isinstance(method.objective, nn.Module) else []
        network = getattr(method.network, "func", method.network)
        kinds[network, method.step, len(method.phases), tuple(learned)] = name
    return sorted(kinds.values())


def in_turn(net: str, steps: int, folder: Path, names: Sequence[str], devices: int) -> None:
    """Train by these methods with the same global batch."""
    for method in names:
        how = {"devices": devices, "ema": 0.9, "clip": 1.0, "epochs": 2 if steps > 2 else 1}
        with smooth():
            running = loop(net, method, folder / f"{method}-{devices}", train=steps * 8, frozen=True, **how)
            running.run(resume=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("net", "steps"), [("small", 2), *(pytest.param(net, 3, marks=pytest.mark.full) for net in NETS)]
)
def test_two_processes_do_as_one_with_the_same_global_batch(net: str, steps: int, tmp_path: Path) -> None:
    """One epoch of two steps, one method of each family; in the full grid two epochs of three steps, every method.

    Methods in phases take an epoch for each.
    """
    names = [*methods.available()] if steps > 2 else families()
    in_turn(net, steps, tmp_path, names, 1)
    forked.run_ranks(__file__, net, steps, tmp_path, ",".join(names))
    for method in names:
        one, two = (checkpoint.latest(tmp_path / f"{method}-{devices}/checkpoints")[0] for devices in (1, 2))
        assert one is not None and two is not None
        for result, expected in ((two.weights, one.weights), (two.state["objective"], one.state["objective"])):
            assert result.keys() == expected.keys()
            for key in expected:
                torch.testing.assert_close(result[key], expected[key], rtol=1e-5, atol=1e-5, msg=f"{method}: {key}")


if __name__ == "__main__":
    in_turn(
        sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","), int(os.environ.get("WORLD_SIZE", 1))
    )
