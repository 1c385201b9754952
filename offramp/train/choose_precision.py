"""Which precision trains a network fastest on this CPU: by a measurement of a few steps, or by a rule in short runs."""

import copy
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from offramp.net import share
from offramp.train import optim
from offramp.train.depthwise import fast_gradients, has_depthwise, keep_float32
from offramp.train.device import precision_of
from offramp.train.recipe import Recipe

ROUNDS = 3
"""Steps of each precision; the first one is not counted."""
SHARE = 0.01
"""Largest share of the run's steps that are measured."""
SECONDS = 10.0
"""What a measurement may take; batches are made smaller for it."""
GAIN = 0.97
"""Another precision than that of the rule must take at most this share of its time."""
PROBE = 8
"""Samples of the steps that say how large a batch may be."""


def candidates(net: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """The precisions to choose from; the first one is that of the rule.

    Compiled networks do not use `fast_gradients`, without which depthwise convolutions are slow in bf16.
    """
    usual = precision_of("auto", recipe.device)
    if recipe.device != "cpu" or usual == "32":
        return (usual,)
    if not has_depthwise(net):
        return "bf16", "32"
    return ("bf16-dense", "bf16", "32") if recipe.compile else ("bf16", "bf16-dense", "32")


def choose_precision(
    net: nn.Module, recipe: Recipe, samples: int, shape: tuple[int, int, int], classes: int
) -> tuple[str, str]:
    """The precision to train in, and a note for the user (empty if nothing was measured); the network is left as it is.

    The rule: bf16 if the processor supports it, else 32; for a network with depthwise convolutions that is compiled,
    bf16-dense instead of bf16. Measured are steps with cross-entropy at every exit, if three of each precision are at
    most a hundredth of the run's.

    Args:
        net: as it starts.
        recipe: of the run.
        samples: of the training split.
        shape: (channels, height, width) of the inputs; classes: C.
    """
    names = candidates(net, recipe)
    steps = recipe.epochs * max(1, samples // recipe.batch_size)
    if len(names) == 1 or recipe.devices > 1 or steps * SHARE < ROUNDS * len(names):
        return names[0], ""
    seconds, size = _measure(net, recipe, names, shape, classes)
    best = min(seconds, key=seconds.__getitem__)
    best = best if seconds[best] <= GAIN * seconds[names[0]] else names[0]
    listed = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    return best, f"precision {best}, by steps of {size} images: {listed}"


def _measure(
    net: nn.Module, recipe: Recipe, names: tuple[str, ...], shape: tuple[int, int, int], classes: int
) -> tuple[dict[str, float], int]:
    """Least seconds of a step in each precision, taken in turn, and the size of the batches."""
    with torch.random.fork_rng(devices=()):
        steps = {name: _step(net, recipe, name, classes) for name in names}
        inputs = torch.randn(recipe.batch_size, *shape).to(memory_format=torch.channels_last)
        probe = min(_timed(steps[names[0]], inputs[:PROBE]) for _ in range(2)) / min(PROBE, recipe.batch_size)
        size = int(min(recipe.batch_size, max(2, SECONDS / (ROUNDS * len(names)) / probe)))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                seconds[name].append(_timed(step, inputs[:size]))
    return {name: min(values[1:]) for name, values in seconds.items()}, size


def _step(net: nn.Module, recipe: Recipe, precision: str, classes: int) -> Callable[[torch.Tensor], None]:
    """A training step of a copy of the network."""
    copied = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copied.train()
    if precision == "bf16-dense":
        keep_float32(copied)
    if not recipe.compile:
        fast_gradients(copied)
    optimizer = optim.build(recipe, copied.parameters())

    def step(inputs: torch.Tensor) -> None:
        labels = torch.arange(len(inputs)) % classes
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32"):
            logits = copied(inputs, tap=share).logits
        torch.stack([cross_entropy(exit.float(), labels) for exit in logits]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _timed(step: Callable[[torch.Tensor], None], inputs: torch.Tensor) -> float:
    began = time.perf_counter()
    step(inputs)
    return time.perf_counter() - began
