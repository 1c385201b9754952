"""With `graph` left open, the first steps of a run on a GPU decide; here with a clock of the test's own."""

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offramp.config import Config, flat, resolve
from offramp.methods import find
from offramp.outputs import Batch
from offramp.runs.reporting import Silent
from offramp.runs.train import train
from offramp.step import StepContext
from offramp.train.graph_choice import PARTS, GraphChoice, NotCaptured, capturing
from offramp.train.static_step import StaticStep, Steps


class Clock:
    """Seconds that pass as the test says."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def decided(plain: float, graph: float, lasts: int = 0, *, interrupted: bool = False) -> tuple[GraphChoice, list[str]]:
    """A choice after the steps it needs; a capture takes one second."""
    clock, notes = Clock(), list[str]()
    choice = GraphChoice(False, clock, lasts, notes.append)
    for step in range(2 * sum(PARTS)):
        if interrupted and step == 4:
            choice.interrupt()
            clock.seconds += 100  # of an evaluation
        as_graph = choice.graph()
        if choice.result is not None:
            break
        part = len(choice.seconds)
        assert as_graph == (part > 0)
        clock.seconds += (plain, 1.0, graph)[part]
    return choice, notes


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_faster_way_is_taken_and_noted(interrupted: bool) -> None:
    choice, notes = decided(0.02, 0.01, interrupted=interrupted)
    assert choice.result is True and len(notes) == 1
    assert notes[0].startswith("graph: steps are taken as one CUDA graph, by a measurement: ")
    choice, notes = decided(0.01, 0.02, interrupted=interrupted)
    assert choice.result is False and notes[0].startswith("graph: kernels are started one by one, by a measurement: ")


def test_captures_that_are_repeated_count() -> None:
    assert decided(0.02, 0.01, lasts=1000)[0].result is True
    assert decided(0.02, 0.01, lasts=10)[0].result is False


def test_a_step_that_cannot_be_captured_is_taken_as_usual() -> None:
    """The step that was to be captured is taken, and no later one is tried; the memory of the capture is free then."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    notes, taken, kept, method = list[str](), list[Any](), list[Any](), find("joint").build()
    choice = GraphChoice(True, Clock(), 0, notes.append)
    steps = Steps(method, StepContext(None, net, method.objective, optimizer, method.tap), 4, choice=choice)
    steps._take = lambda phase, batch, progress: taken.append((len(batch.ids), kept[0]())) or {}  # type: ignore[method-assign,func-returns-value]

    def fails(batch: Batch) -> dict[str, torch.Tensor]:
        net.weight.grad, computed = torch.ones(2, 2), torch.ones(9)
        kept.append(weakref.ref(computed))
        with capturing():
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    steps.phase, steps.step = method.phases[0], StaticStep(fails, torch.device("cpu"), choice)
    for _ in range(2):
        steps(method.phases[0], Batch(torch.zeros(4, 2), torch.zeros(4), torch.arange(4)), 0.0)
    reason = "the step cannot be captured (operation not permitted when stream is capturing)"
    assert notes == [f"graph: {reason}; kernels are started one by one"]
    assert taken == [(4, None)] * 2 and net.weight.grad is None and steps.step is None


def test_a_graph_that_is_slower_is_not_kept() -> None:
    net, method = nn.Linear(2, 2), find("joint").build()
    choice = GraphChoice(False, Clock(), 0, lambda text: None)
    context = StepContext(None, net, method.objective, torch.optim.SGD(net.parameters(), lr=0.1), method.tap)
    steps = Steps(method, context, 4, choice=choice)
    steps._take = lambda phase, batch, progress: {}  # type: ignore[method-assign]
    steps.phase, steps.step = method.phases[0], StaticStep(lambda batch: {}, torch.device("cpu"), choice)
    choice.result = False
    steps(method.phases[0], Batch(torch.zeros(4, 2), torch.zeros(4), torch.arange(4)), 0.0)
    assert steps.step is None


def test_too_little_memory_for_a_graph_is_said() -> None:
    with pytest.raises(NotCaptured, match="the GPU's memory does not hold the graph"), capturing():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_configurations_of_cpus_equal_those_of_before() -> None:
    """Nothing is open there."""
    config = resolve(Config(device="cpu"))
    assert config.graph is False and "graph" not in flat(config)
    assert flat(resolve(Config(device="cpu", graph=True)))["graph"] is True


class Told(Silent):
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_cpu_says_that_it_has_no_graphs(tmp_path: Path) -> None:
    config = Config(width=2, branch="linear", method="joint", per_class=20, batch_size=64, epochs=1, device="cpu")
    for graph, count in ((True, 1), (None, 0)):
        train(dataclasses.replace(config, graph=graph), tmp_path / str(graph), reporter=(told := Told()))
        assert told.notes.count("graph: a CPU has no CUDA graphs; steps are taken as without") == count


def test_a_deterministic_run_on_a_gpu_decides_nothing_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = Config(device="cuda", precision="32")
    assert resolve(on_gpu).graph is None
    assert resolve(dataclasses.replace(on_gpu, deterministic=True)).graph is False
    assert resolve(dataclasses.replace(on_gpu, deterministic=True, graph=True)).graph is True
