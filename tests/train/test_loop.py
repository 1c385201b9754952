"""The loop does what a plain loop in PyTorch does, stops where it must, and goes on as if it had not stopped."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from offramp.data.loading import Loader
from offramp.data.splits import ArraySource, DataSet, Split
from offramp.measure.accuracy import top_k
from offramp.measure.trace import trace
from offramp.methods import find
from offramp.methods._method import Method
from offramp.net import Branch, Head, MultiExitNet
from offramp.outputs import Batch, ExitOutputs, State
from offramp.step import plain_step
from offramp.train import checkpoint, log, optim, soft_labels
from offramp.train.device import make_fabric
from offramp.train.held_out import HeldOut
from offramp.train.loop import Loop
from offramp.train.recipe import Recipe
from offramp.train.reporter import Diverged, Interrupted, Reporter

CLASSES, SHAPE = 4, (1, 6, 6)


def data(train: int = 40, held_out: bool = True, val: int = 12) -> DataSet:
    rng = np.random.default_rng(0)
    sizes = {"train": train, "val": val, "cal": 12, "test": 12}
    n = sum(sizes.values())
    pixels = rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    source = ArraySource("toy", tuple("abcd"), np.arange(n, dtype=np.int64) % CLASSES, pixels)
    splits, start = {}, 0
    for name, size in sizes.items():
        if held_out or name in ("train", "test"):
            splits[name] = Split(source, np.arange(start, start + size, dtype=np.int64), name)
        start += size
    return DataSet("toy", splits, source.classes, SHAPE, (0.5,), (0.25,), "crop")


def network() -> MultiExitNet:
    """Three exits with features of widths 6, 6 and 8."""
    torch.manual_seed(3)
    widths = (1, 6, 6, 8)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(width, CLASSES)) for width in widths[1:]])


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": 16, "precision": "32", "device": "cpu", **changes})


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.started: list[tuple[int, ...]] = []
        self.seen: list[tuple[int, int]] = []
        self.epochs: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        self.started.append((epochs, steps, epoch, step))

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        self.seen.append((epoch, step))

    def epoch_done(self, record: dict[str, Any]) -> None:
        self.epochs.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Frozen(nn.BatchNorm2d):
    """Batch norm whose statistics stay: those of half a batch are not those of the whole."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


PARALLEL = (
    ("joint", {}),
    ("vanilla", {}),
    ("muse", {"beta_begin": 0.1, "beta_end": 0.1, "adapt": "linear"}),
    ("byot", {"adapt": "all", "beta": 0.1}),
    ("byot", {"adapt": "all", "beta": 0.1, "features": "norm"}),
    ("dbt", {"rate": 1.5, "limit": 0.78}),
    ("eed", {"beta": 0.0}),
    ("beed", {"beta": 0.0}),
    ("dense", {}),
    ("hdkd", {"step_size": 1e-4}),
)


def train_all(folder: Path, devices: int) -> None:
    """Train by each of these methods with the same global batch; run `number`-`devices` is the one of that number.

    The last batch has 7 samples, one of the held-out batches 5: two processes do not get the same number of them.
    """
    how = recipe(devices=devices, ema=0.9, clip=1.0, lr=0.02)
    fabric = make_fabric(how)
    for number, (name, changes) in enumerate(PARALLEL):
        net, method = network(), find(name).build(**changes)
        for stage in net.stages:
            stage[1].__class__ = Frozen
            stage[1].running_var.fill_(0.25)
        with torch.no_grad():
            net.branches[-1].head.classifier.weight.mul_(40)  # so that the processes' mean confidences differ
        if hasattr(method.objective, "prepare_for_exits"):
            torch.manual_seed(4)
            method.objective.prepare_for_exits(exits=3, widths=(6, 6, 8))
        run = folder / f"{number}-{devices}"
        run.mkdir(exist_ok=True)
        Loop(fabric, run, how, net, method, data(39, val=21), Told()).run(resume=False)


def loop(folder: Path, how: Recipe, method: Method | None = None, dataset: DataSet | None = None) -> Loop:
    method = method or find("joint").build()
    net = network()
    if hasattr(method.objective, "prepare_for_exits"):
        torch.manual_seed(4)
        method.objective.prepare_for_exits(exits=3, widths=(6, 6, 8))
    folder.mkdir(exist_ok=True)
    reporter = Told()
    assert isinstance(reporter, Reporter)
    return Loop(make_fabric(how), folder, how, net, method, dataset or data(), reporter)


def plainly(how: Recipe) -> tuple[MultiExitNet, MultiExitNet]:
    """(the last weights, their moving average) of a loop written out in PyTorch."""
    net, average, toy = network(), network(), data()
    optimizer = torch.optim.SGD(net.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay)
    batches = Loader(toy.splits["train"], toy, batch_size=how.batch_size, augment=True, seed=how.seed)
    taken = 0
    for epoch in range(how.epochs):
        for step, batch in enumerate(batches.epoch(epoch)):
            optim.set_rate(optimizer, optim.rate(how, epoch, taken / (how.epochs * len(batches))))
            if how.label_smoothing:
                batch = soft_labels.smooth(batch, CLASSES, how.label_smoothing)
            if how.mixup:
                batch = soft_labels.mixup(batch, CLASSES, how.mixup, (how.seed, epoch, step))
            optimizer.zero_grad()
            sum(cross_entropy(logits, batch.labels) for logits in net(batch.inputs).logits).backward()
            if how.clip:
                nn.utils.clip_grad_norm_(net.parameters(), how.clip)
            optimizer.step()
            for kept, new in zip(average.state_dict().values(), net.state_dict().values()):
                first = taken == 0 or not kept.is_floating_point()
                kept.copy_(new if first else how.ema * kept + (1 - how.ema) * new)
            taken += 1
    return net, average


def close(tensors: dict[str, Tensor], expected: nn.Module, tolerance: float = 1e-5) -> None:
    for name, tensor in expected.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensors[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "cosine", "warmup": 0.3, "clip": 0.5},
        {"label_smoothing": 0.1, "mixup": 0.5},
        {"ema": 0.7, "momentum": 0.5},
    ],
)
def test_it_trains_as_a_plain_loop_does(tmp_path: Path, options: dict[str, Any]) -> None:
    how = recipe(**options)
    loop(tmp_path, how).run(resume=False)
    net, average = plainly(how)
    close(load_file(tmp_path / "last.safetensors"), average if how.ema else net)
    newest, _ = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None
    close(newest.weights, net)


def test_every_step_and_epoch_is_recorded(tmp_path: Path) -> None:
    how = recipe(epochs=4, milestones=(0.5,), lr=0.05)
    running = loop(tmp_path, how)
    position = running.run(resume=False)
    steps, epochs = (log.read(tmp_path / "metrics.jsonl", kind) for kind in ("step", "epoch"))
    assert running.steps == 3 and [record["step"] for record in steps] == list(range(12))
    assert [record["lr"] for record in steps] == pytest.approx([0.05] * 6 + [0.005] * 6)
    assert [record["epoch"] for record in epochs] == [0, 1, 2, 3] and (position.epoch, position.step) == (4, 0)
    for epoch, record in enumerate(epochs):
        mine = [step for step in steps if step["epoch"] == epoch]
        assert record["train"]["loss"] == pytest.approx(sum(step["loss"] for step in mine) / 3)
        assert all(step["loss"] == pytest.approx(sum(step["terms"].values())) for step in mine)
        assert len(record["val_accuracy"]) == 3
    told = running.reporter
    assert isinstance(told, Told)
    assert told.started == [(4, 3, 0, 0)] and told.epochs == epochs
    assert told.seen[-1] == (3, 3)


def test_the_last_and_the_best_epoch_are_kept(tmp_path: Path) -> None:
    running = loop(tmp_path, recipe(epochs=5))
    position = running.run(resume=False)
    records = log.read(tmp_path / "metrics.jsonl", "epoch")
    means = [sum(record["val_accuracy"]) / 3 for record in records]
    assert position.best == max(means) and position.best_epoch == means.index(max(means))
    for name, epoch in (("last", 4), ("best", position.best_epoch)):
        weights, about = checkpoint.load_weights(tmp_path / f"{name}.safetensors")
        assert (about["epoch"], about["val_accuracy"]) == (epoch + 1, records[epoch]["val_accuracy"])
        assert (about["classes"], about["shape"], about["data"]) == (list("abcd"), list(SHAPE), "toy")
        net = network()
        net.load_state_dict(weights)
        toy = data()
        traced = trace(net, Loader(toy.splits["val"], toy, batch_size=5, augment=False, seed=0).epoch(0), "val")
        assert traced.labels is not None
        assert top_k(traced.logits, traced.labels) == about["val_accuracy"]


def test_a_run_ends_after_epochs_without_a_better_one_and_a_resume_agrees(tmp_path: Path) -> None:
    how = recipe(epochs=9, patience=2, lr=1e-9)  # such a rate changes no answer
    position = loop(tmp_path, how).run(resume=False)
    assert (position.epoch, position.best_epoch) == (3, 0)
    assert len(log.read(tmp_path / "metrics.jsonl", "epoch")) == 3
    about = {name: checkpoint.load_weights(tmp_path / f"{name}.safetensors")[1] for name in ("last", "best")}
    assert (about["last"]["epoch"], about["best"]["epoch"]) == (3, 1)
    again = loop(tmp_path, how)
    assert again.run(resume=True).epoch == 3 and not again.reporter.epochs


def test_patience_counts_from_the_last_phase_on(tmp_path: Path) -> None:
    assert loop(tmp_path, recipe(epochs=8, patience=1, lr=1e-9, tune="mixed")).run(resume=False).epoch == 5


def test_patience_needs_held_out_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience needs the accuracy on val, but nothing is held out"):
        loop(tmp_path, recipe(patience=1), dataset=data(held_out=False))


def test_where_nothing_is_held_out_only_the_last_epoch_exists(tmp_path: Path) -> None:
    position = loop(tmp_path, recipe(), dataset=data(held_out=False)).run(resume=False)
    assert position.best_epoch == -1
    assert (tmp_path / "last.safetensors").is_file() and not (tmp_path / "best.safetensors").exists()
    assert [record["val_accuracy"] for record in log.read(tmp_path / "metrics.jsonl", "epoch")] == [None, None]


def seen_by(method: Method, see: Callable[[ExitOutputs, Batch, float], None]) -> Method:
    """The method, watched."""

    def objective(outputs: ExitOutputs, batch: Batch, progress: float) -> dict[str, Tensor]:
        see(outputs, batch, progress)
        return method.objective(outputs, batch, progress)

    return Method(objective)


def test_the_objective_is_told_where_the_run_stands(tmp_path: Path) -> None:
    told: list[float] = []
    method = seen_by(find("joint").build(), lambda outputs, batch, progress: told.append(progress))
    loop(tmp_path, recipe(epochs=4)).run(resume=False)
    loop(tmp_path / "b", recipe(epochs=4), method).run(resume=False)
    assert told == [epoch / 4 for epoch in range(4) for _ in range(3)]


def test_the_network_trains_in_training_mode_after_every_validation(tmp_path: Path) -> None:
    running = loop(tmp_path, recipe(epochs=3))
    modes: list[bool] = []
    running.net.register_forward_hook(lambda part, inputs, outputs: modes.append(part.training))
    running.run(resume=False)
    assert modes == ([True] * 3 + [False]) * 3


def test_tap_and_step_are_the_methods_own(tmp_path: Path) -> None:
    taps: list[int] = []
    steps: list[float] = []

    def tap(state: State, exit: int, exits: int) -> tuple[State, State]:
        taps.append(exit)
        return state, state

    def step(parts: Any, batch: Batch, progress: float) -> dict[str, Tensor]:
        steps.append(progress)
        return {"nothing": torch.zeros(())}

    joint = find("joint").build()
    loop(tmp_path / "a", recipe(epochs=1), Method(joint.objective, tap=tap)).run(resume=False)
    assert taps == [0, 1, 2] * 3
    loop(tmp_path / "b", recipe(epochs=1), Method(joint.objective, step=step)).run(resume=False)
    assert steps == [0.0] * 3
    trained = load_file(tmp_path / "b" / "last.safetensors")
    assert torch.equal(trained["stages.0.0.weight"], network().state_dict()["stages.0.0.weight"])


def stopping(method: Method, running: list[Loop], stop_at: int) -> Method:
    """The method, with Ctrl-C during its `at`-th step."""
    calls = [0]

    def step(parts: Any, batch: Batch, progress: float) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == stop_at:
            running[0].stop.set()
        return (method.step or plain_step)(parts, batch, progress)

    return dataclasses.replace(method, step=step)


METHODS = {"dbt": {}, "byot": {"adapt": "all"}, "muse": {"adapt": "linear"}, "hdkd": {"init": "random"}, "l2w": {}}


@pytest.mark.parametrize("stop_at", [2, *(pytest.param(stop_at, marks=pytest.mark.full) for stop_at in (1, 3, 5))])
@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path: Path, name: str, stop_at: int) -> None:
    how = recipe(epochs=2, mixup=0.3, ema=0.9)
    build = find(name).build
    whole = loop(tmp_path / "whole", how, build(**METHODS[name]))
    whole.run(resume=False)
    running: list[Loop] = []
    running.append(loop(tmp_path / "cut", how, stopping(build(**METHODS[name]), running, stop_at)))
    with pytest.raises(Interrupted):
        running[0].run(resume=False)
    assert len(log.read(tmp_path / "cut" / "metrics.jsonl", "step")) == stop_at
    again = loop(tmp_path / "cut", how, build(**METHODS[name]))
    again.run(resume=True)
    told = again.reporter
    assert isinstance(told, Told) and told.started == [
        (2, 3, stop_at // 3 if stop_at % 3 else 0, stop_at % 3 or stop_at)
    ]
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    objectives = [built.method.objective for built in (whole, again)]
    if isinstance(objectives[0], nn.Module):
        states = [objective.state_dict() for objective in objectives]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    records = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in log.read(path)]
        for path in (tmp_path / "whole/metrics.jsonl", tmp_path / "cut/metrics.jsonl")
    ]
    assert records[0] == records[1]


def test_learned_parts_of_an_objective_are_trained(tmp_path: Path) -> None:
    method = find("byot").build(adapt="all")
    running = loop(tmp_path, recipe(), method)
    before = [parameter.detach().clone() for parameter in method.objective.parameters()]
    running.run(resume=False)
    after = list(method.objective.parameters())
    assert len(before) == 4 and not any(torch.equal(one, other) for one, other in zip(before, after))


@pytest.mark.parametrize("every", [1, 2, 500])
def test_a_loss_that_is_no_number_stops_with_step_and_term(tmp_path: Path, every: int) -> None:
    steps = [0]

    def objective(outputs: ExitOutputs, batch: Batch, progress: float) -> dict[str, Tensor]:
        steps[0] += 1
        ce = cross_entropy(outputs.logits[-1], batch.labels)
        return {"ce": ce, "hint": ce * (float("nan") if steps[0] > 4 else 0.1)}

    running = loop(tmp_path, recipe(epochs=3, checkpoint_every=every), Method(objective))
    with pytest.raises(Diverged) as caught:
        running.run(resume=False)
    said = str(caught.value)
    kept = f"the last good checkpoint is kept in {tmp_path / 'checkpoints'}"
    left = "there is no checkpoint yet" if every == 500 else kept
    assert said == f"the loss term 'hint' is nan at step 4 (epoch 2); {left}. A lower lr or clip=1 may help"
    newest, refused = checkpoint.latest(tmp_path / "checkpoints")
    assert not refused and (newest is None) == (every == 500)
    if newest is not None:
        assert newest.state["position"]["epoch"] * 3 + newest.state["position"]["step"] == 4
        assert all(tensor.isfinite().all() for tensor in newest.weights.values())
    assert [record["step"] for record in log.read(tmp_path / "metrics.jsonl", "step")] == [0, 1, 2, 3]


def test_a_weight_that_is_no_number_is_never_kept(tmp_path: Path) -> None:
    def break_it(outputs: ExitOutputs, batch: Batch, progress: float) -> None:
        if progress > 0:
            with torch.no_grad():
                running.net.branches[1].head.classifier.bias.fill_(float("inf"))

    method = seen_by(find("vanilla").build(), break_it)  # its loss does not see the second exit
    running = loop(tmp_path, recipe(), method)
    with pytest.raises(Diverged, match=r"weight branches\.1\.head\.classifier\.bias is no longer finite at step"):
        running.run(resume=False)
    assert not (tmp_path / "last.safetensors").exists()
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "best.safetensors").values())


def test_where_no_checkpoint_is_whole_it_says_so(tmp_path: Path) -> None:
    loop(tmp_path, recipe()).run(resume=False)
    for state in (tmp_path / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"")
    with pytest.raises(checkpoint.Damaged, match="and no other checkpoint is intact; choose another out to start over"):
        loop(tmp_path, recipe()).run(resume=True)


def test_a_method_that_learns_from_held_out_batches_needs_some(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"learns from the val split .* nothing is held out: set holdout"):
        loop(tmp_path, recipe(), find("hdkd").build(), data(held_out=False))
    fixed = find("hdkd").build(meta_every=0)
    loop(tmp_path, recipe(epochs=1), fixed, data(held_out=False)).run(resume=False)


def test_held_out_batches_follow_the_step_and_cover_the_split(tmp_path: Path) -> None:
    def batches(how: Recipe) -> HeldOut:
        return loop(tmp_path, how).batches.held_out

    again = batches(recipe(batch_size=5))  # val has 12 samples: 5, 5 and 2
    first = [again.for_step(step).ids.tolist() for step in range(7)]
    assert sorted(chain(*first[:3])) == sorted(chain(*first[3:6])) == list(range(40, 52))
    assert first[:3] != first[3:6]
    assert [batches(recipe(batch_size=5)).for_step(step).ids.tolist() for step in (4, 1)] == [first[4], first[1]]
    assert batches(recipe(batch_size=5, seed=1)).for_step(0).ids.tolist() != first[0]
    torch.testing.assert_close(
        again.for_step(6).inputs, batches(recipe(batch_size=5)).for_step(6).inputs, rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["hdkd", "l2w"])
def test_looking_ahead_in_bf16(tmp_path: Path, name: str) -> None:
    running = loop(tmp_path, recipe(epochs=1, precision="bf16"), find(name).build())
    before = {key: tensor.clone() for key, tensor in running.method.objective.state_dict().items()}
    running.run(resume=False)
    after = running.method.objective.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    learned = "weights" if name == "hdkd" else "w1"
    assert not torch.equal(before[learned], after[learned])


def test_what_a_method_learns_is_written_down_at_every_step(tmp_path: Path) -> None:
    running = loop(tmp_path, recipe(), find("hdkd").build(step_size=5.0))
    running.run(resume=False)
    steps = log.read(tmp_path / "metrics.jsonl", "step")
    weights = [record["weights"] for record in steps]
    assert len({tuple(row) for row in weights}) == len(steps) == 6 and len(weights[0]) == 6
    assert all(len(record["averages"]) == 3 and min(record["averages"]) > 0 for record in steps)
    assert weights[-1] == running.method.objective.weights.tolist()
    assert all(record["loss"] == pytest.approx(sum(record["terms"].values())) for record in steps)


def test_weights_of_a_finished_run_are_taken_and_kept(tmp_path: Path) -> None:
    loop(tmp_path / "a", recipe(), find("hdkd").build(step_size=5.0)).run(resume=False)
    running = loop(tmp_path / "b", recipe(), find("hdkd").build(fixed=tmp_path / "a"))
    running.run(resume=False)
    learned, kept = (log.read(tmp_path / run / "metrics.jsonl", "step") for run in "ab")
    assert all(record["weights"] == learned[-1]["weights"] for record in kept)
    loop(tmp_path / "c", recipe(epochs=1)).run(resume=False)
    for folder, says in (("c", "has no loss weights: it must be a run of hdkd"), ("d", "is not a run: it has no")):
        with pytest.raises(ValueError, match=says):
            loop(tmp_path / "e", recipe(), find("hdkd").build(fixed=tmp_path / folder))
    with pytest.raises(ValueError, match="gives 6 weights, but hmsdnet with 3 exits has 3 losses"):
        loop(tmp_path / "e", recipe(), find("hmsdnet").build(fixed=tmp_path / "a"))
    loop(tmp_path / "f", recipe(epochs=1), find("eed").build(beta=0.0, weights="learned")).run(resume=False)
    with pytest.raises(ValueError, match="has no loss weights"):  # three weights, of another kind
        loop(tmp_path / "e", recipe(), find("hmsdnet").build(fixed=tmp_path / "f"))
    (tmp_path / "c/metrics.jsonl").write_text('{"kind": "step", "wei\n')
    with pytest.raises(ValueError, match=r"^fixed: the last step in .*metrics\.jsonl is damaged: it is not JSON$"):
        loop(tmp_path / "e", recipe(), find("hdkd").build(fixed=tmp_path / "c"))


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    loop(tmp_path, recipe(epochs=1)).run(resume=False)
    changed = loop(tmp_path, recipe())
    changed.net.stages[0].add_module("more", nn.Linear(1, 1))
    with pytest.raises(
        ValueError, match=r"step-000000003 does not fit the network, which was another one then: .*Missing"
    ):
        changed.run(resume=True)


def test_resuming_what_never_saved_starts_at_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 0}\n')
    loop(tmp_path, recipe(epochs=1)).run(resume=True)
    assert [record["step"] for record in log.read(tmp_path / "metrics.jsonl", "step")] == [0, 1, 2]


def in_processes(folder: Path, devices: int) -> None:
    """`train_all` as a program of its own, from a script without pytest: the first part of this file."""
    source = Path(__file__).read_text(encoding="utf-8")
    script = folder / "script.py"
    begins = source[: source.index("def loop(")].replace("import pytest\n", "")
    script.write_text(begins + f"train_all(Path(sys.argv[1]), {devices})\n")
    forked.run_ranks(str(script), folder)


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path: Path) -> None:
    train_all(tmp_path, 1)
    in_processes(tmp_path, 2)
    for number, (name, _) in enumerate(PARALLEL):
        one, two = (checkpoint.latest(tmp_path / f"{number}-{devices}/checkpoints")[0] for devices in (1, 2))
        assert one is not None and two is not None
        for result, expected in ((two.weights, one.weights), (two.state["objective"], one.state["objective"])):
            assert result.keys() == expected.keys()
            for key in expected:
                torch.testing.assert_close(result[key], expected[key], rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")
        assert not torch.equal(one.weights["stages.0.0.weight"], network().state_dict()["stages.0.0.weight"])
        logged = [log.read(tmp_path / f"{number}-{devices}/metrics.jsonl", "step") for devices in (1, 2)]
        losses = [[record["loss"] for record in records] for records in logged]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4), name
        last = [load_file(tmp_path / f"{number}-{devices}/last.safetensors") for devices in (1, 2)]
        torch.testing.assert_close(last[1], last[0], rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_the_program_trains_on_two_devices_and_says_so_once(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("from offramp.cli import main\nmain()\n")
    words = "--width 4 --epochs 1 --batch-size 256 --precision 32 --device cpu --devices 2 --json --out"
    command = [sys.executable, str(script), "train", *words.split(), str(tmp_path / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout)["last"]["epoch"] == 1
    assert [record["step"] for record in log.read(tmp_path / "run" / "metrics.jsonl", "step")] == list(range(6))


def test_logged_accuracies_are_those_of_the_weights_and_change_nothing(tmp_path: Path) -> None:
    how = recipe(log_accuracy=("train", "test"))
    logged, plain = loop(tmp_path / "logged", how), loop(tmp_path / "plain", recipe())
    for one in (logged, plain):
        one.run(resume=False)
    for a, b in zip(logged.net.state_dict().values(), plain.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in (tmp_path / "logged" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["logged_only"] for line in lines if line["kind"] == "epoch"]
    assert len(epochs) == how.epochs
    toy = data()
    for split in ("train", "test"):
        loader = Loader(toy.splits[split], toy, batch_size=64, augment=False, seed=0)
        traced = trace(logged.evaluated.module, loader.epoch(0), split)
        assert traced.labels is not None
        assert epochs[-1][split]["exits"] == pytest.approx(top_k(traced.logits, traced.labels))
        assert epochs[-1][split]["ensemble"] == pytest.approx(top_k(traced.logits.sum(0)[None], traced.labels)[0])
    assert "logged_only" not in (tmp_path / "plain" / "metrics.jsonl").read_text()


def test_all_that_read_a_split_share_its_images(tmp_path: Path) -> None:
    batches = loop(tmp_path, recipe(log_accuracy=("train", "val"))).batches
    assert batches.val is not None
    stores = [each.store for each in (batches.logged["val"], batches.held_out.make(), batches.val)]
    assert all(store is batches.val.store for store in stores)
    assert batches.logged["train"].store is batches.train.store


def test_accuracies_of_a_split_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_accuracy names val, and these data have train, test alone"):
        loop(tmp_path, recipe(log_accuracy=("val",)), dataset=data(held_out=False))
