"""How a network trains fastest on this CPU: precision, memory format and threads, by a few steps, or by a rule."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from offramp.net import share
from offramp.text import quantity
from offramp.train import optim
from offramp.train.depthwise import fast_gradients, has_depthwise, keep_float32
from offramp.train.device import precision_of
from offramp.train.numerics import cpu_threads, layout
from offramp.train.recipe import Recipe

ROUNDS = 3
"""Steps of each setting; the first one is not counted."""
SHARE = 0.01
"""Largest share of the run's steps that are measured."""
SECONDS = 10.0
"""What all measurements may take; batches are made smaller for it."""
GAIN = 0.97
"""Other settings than those of the rule must take at most this share of their time."""
PROBE = 8
"""Samples of the steps that say how large a batch may be."""


class Settings(NamedTuple):
    """How a step is computed: fields of `Recipe` with their values there."""

    precision: str
    memory_format: str
    threads: int | None


Step = Callable[[torch.Tensor], None]


def precisions(net: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """The precisions to choose from; the first one is that of the rule.

    Compiled networks do not use `fast_gradients`, without which depthwise convolutions are slow in bf16.
    """
    usual = precision_of("auto", recipe.device)
    if recipe.device != "cpu" or usual == "32":
        return (usual,)
    if not has_depthwise(net):
        return "bf16", "32"
    return ("bf16-dense", "bf16", "32") if recipe.compile else ("bf16", "bf16-dense", "32")


def fastest(
    net: nn.Module, recipe: Recipe, samples: int, shape: tuple[int, int, int], classes: int
) -> tuple[Settings, str]:
    """The settings to train with, and a note for the user (empty if nothing was measured); the network is left alone.

    The rule: bf16 if the processor supports it, else 32; for a network with depthwise convolutions that is compiled,
    bf16-dense instead of bf16; channels_last; all threads. On a CPU, precisions are compared first, then memory formats
    in the best precision, then half of the threads, a quarter and so on while that is faster: by steps with
    cross-entropy at every exit, if they are at most a hundredth of the run's.

    Args:
        net: as it starts.
        recipe: of the run; its precision is chosen anew, its memory format if it is `auto`, its threads if it is None.
        samples: of the training split.
        shape: (channels, height, width) of the inputs; classes: C.
    """
    names = precisions(net, recipe)
    usual = Settings(names[0], recipe.memory_format, recipe.threads)
    formats = ("auto", "contiguous") if recipe.memory_format == "auto" else ()
    halved = _halved(torch.get_num_threads()) if recipe.threads is None else []
    trials = sum(len(values) for values in (names, formats, (None, *halved[:1])) if len(values) > 1)
    steps = recipe.epochs * max(1, samples // recipe.batch_size)
    if recipe.device != "cpu" or recipe.devices > 1 or not trials or steps * SHARE < ROUNDS * trials:
        return usual, ""
    end = time.perf_counter() + SECONDS
    with torch.random.fork_rng(devices=()):
        measured = _Measured(net, recipe, shape, classes, usual, trials)
        best = measured.best(usual, "precision", names)
        best = measured.best(best, "memory_format", formats)
        for threads in halved:
            before, best = best, measured.best(best, "threads", (threads,))
            if best == before or time.perf_counter() > end:
                break
    return best, measured.note(best)


def _halved(threads: int) -> list[int]:
    """Half of the threads, a quarter and so on, down to one."""
    return [threads >> shift for shift in range(1, threads.bit_length())]


class _Measured:
    """Measures steps with different settings, and lists their times.

    Args:
        usual: settings of the rule; trials: how many settings are going to be measured.
    """

    def __init__(
        self, net: nn.Module, recipe: Recipe, shape: tuple[int, int, int], classes: int, usual: Settings, trials: int
    ) -> None:
        self.net, self.recipe, self.classes = net, recipe, classes
        self.inputs = torch.randn(recipe.batch_size, *shape)
        self.listed: list[str] = []
        step = self._step(usual)
        probe = min(_timed(step, self.inputs[:PROBE]) for _ in range(2)) / min(PROBE, recipe.batch_size)
        self.inputs = self.inputs[: int(min(recipe.batch_size, max(2, SECONDS / (ROUNDS * trials) / probe)))]

    def best(self, usual: Settings, field: str, values: Sequence[Any]) -> Settings:
        """`usual`, or the same with the fastest of the values, if that is clearly faster; steps are taken in turn."""
        rivals = [usual._replace(**{field: value}) for value in values if value != getattr(usual, field)]
        if not rivals:
            return usual
        steps = {settings: self._step(settings) for settings in (usual, *rivals)}
        rounds = [{settings: _timed(step, self.inputs) for settings, step in steps.items()} for _ in range(ROUNDS)]
        seconds = {settings: min(times[settings] for times in rounds[1:]) for settings in steps}
        self.listed.append(", ".join(f"{_named(key, field)} {1000 * value:.0f} ms" for key, value in seconds.items()))
        best = min(seconds, key=seconds.__getitem__)
        return best if seconds[best] <= GAIN * seconds[usual] else usual

    def note(self, best: Settings) -> str:
        """What was chosen, and all times."""
        chosen = ", ".join(_named(best, field) for field in Settings._fields)
        return f"precision {chosen}, by steps of {quantity(len(self.inputs), 'image')}: {'; '.join(self.listed)}"

    def _step(self, settings: Settings) -> Step:
        """A training step of a copy of the network."""
        memory, recipe = layout(settings.memory_format), self.recipe
        net = copy.deepcopy(self.net).to(memory_format=memory)  # type: ignore[call-overload]
        net.train()
        if settings.precision == "bf16-dense":
            keep_float32(net)
        if not recipe.compile:
            fast_gradients(net)
        optimizer = optim.build(recipe, net.parameters())

        def step(inputs: torch.Tensor) -> None:
            labels = torch.arange(len(inputs)) % self.classes
            with cpu_threads(settings.threads):
                with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision != "32"):
                    logits = net(inputs.contiguous(memory_format=memory), tap=share).logits
                torch.stack([cross_entropy(exit.float(), labels) for exit in logits]).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def _named(settings: Settings, field: str) -> str:
    if field == "threads":
        return quantity(settings.threads or torch.get_num_threads(), "thread")
    value = str(getattr(settings, field))
    return "channels_last" if value == "auto" else value


def _timed(step: Step, inputs: torch.Tensor) -> float:
    began = time.perf_counter()
    step(inputs)
    return time.perf_counter() - began
