"""Cost of learning the weights of the losses: a step of HDKD as implemented, by double backward, and a step of `joint`.

    python benchmarks/hdkd.py [--json] [--width 16] [--rounds 11] [--batch 128] [--device cpu]
    python benchmarks/hdkd.py --width 64 --rounds 3

Four-exit ResNet18 with `sketch` exits, CIFAR shapes, float32; the network's own step is included. Each variant runs in
a process of its own; they take their steps in turn, so that other work on the machine slows all of them, and medians
are compared.

- `double` is the textbook implementation, for comparison only: it keeps the graph of the gradient and differentiates
  it. The network's step shares its forward pass on the training batch.
- `shipped` is offramp's: of that forward pass it keeps only the outputs of the convolutions, for the product, and never
  two graphs at once; the network's step runs the forward pass again.
- `shipped-bf16` is the same in bf16 training (held-out pass and product stay in float32), `joint-bf16` a step of
  `joint` to compare it with.

On a CPU all variants keep freed memory, as training does. Peak memory is that of the process, including fragmentation.
Targets: shipped takes at most 0.72 of the time and 0.7 of the peak memory of double, and at most the time of 4.0 steps
of joint.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from workers import Worker, work

from offramp.allocator import keep_freed_memory
from offramp.branches import sketch
from offramp.losses.cross_entropy import cross_entropy
from offramp.measure.provenance import provenance
from offramp.measure.timing import medians, side_by_side
from offramp.methods import _look_ahead as look_ahead
from offramp.methods import find
from offramp.methods._bilevel import learn
from offramp.models import resnet
from offramp.net import attach, share
from offramp.outputs import Batch
from offramp.step import StepContext, plain_step

CLASSES, LR = 100, 0.1
TIME, MEMORY, JOINT = 0.72, 0.7, 4.0
VARIANTS = ("joint", "double", "shipped", "joint-bf16", "shipped-bf16")
Step = Callable[[StepContext, Batch, float], dict[str, Tensor]]


def batch(size: int, seed: int, device: str) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 3, 32, 32, generator=draw).to(device, memory_format=torch.channels_last)
    return Batch(inputs, torch.randint(CLASSES, (size,), generator=draw).to(device), torch.arange(size).to(device))


def parts_of(variant: str, width: int, size: int, device: str) -> StepContext:
    torch.manual_seed(0)
    trunk = resnet.build("resnet18", classes=CLASSES, width=width)
    net = attach(trunk, lambda backbone, exit: sketch.build(backbone, exit, CLASSES))
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = find("joint" if variant.startswith("joint") else "hdkd").build().objective
    if isinstance(objective, torch.nn.Module):
        objective.prepare_for_exits(exits=net.exits, widths=(1,) * net.exits)  # type: ignore[operator]
        objective.to(device)
    optimizer = torch.optim.SGD(net.parameters(), LR, 0.9, weight_decay=5e-4)
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if variant.endswith("bf16") else "32-true")
    wrapped, optimizer = fabric.setup(net, optimizer)
    held = batch(size, 2, device)
    return StepContext(fabric, wrapped, objective, optimizer, share, bare=net, held_out=lambda: held)


def double_backward(parts: StepContext, samples: Batch, progress: float) -> dict[str, Tensor]:
    """The step of HDKD by double backward."""
    objective: Any = parts.objective
    assert parts.bare is not None and parts.held_out is not None
    theta, weights, held = look_ahead.trained(parts.bare), objective.weights.clone().requires_grad_(), parts.held_out()
    losses = objective.losses(parts.net(samples.inputs), samples.labels)
    gradient = torch.autograd.grad((weights * losses).sum(), list(theta.values()), create_graph=True)
    ahead = {name: part.detach() - LR * g for (name, part), g in zip(theta.items(), gradient, strict=True)}
    ce = cross_entropy(look_ahead.outputs_with(parts.bare, ahead, held.inputs, share).logits, held.labels)
    by_double_backward = torch.autograd.grad(objective.validation(ce), weights, retain_graph=True)[0]
    objective.observe(ce.detach())
    objective.move(by_double_backward)
    del gradient, ahead, ce
    return parts.update(objective.terms(losses))


def steps_of(variant: str, width: int, size: int, device: str) -> Iterator[None]:
    """An iterator whose every `next` is one step."""
    parts, samples = parts_of(variant, width, size, device), batch(size, 1, device)
    parts.net.train()
    if device == "cpu":
        keep_freed_memory()
    step: Step = {"joint": plain_step, "double": double_backward, "shipped": learn}[variant.partition("-")[0]]
    while True:
        step(parts, samples, 0.0)
        yield


def all_variants(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median seconds of a step of each variant, and its peak memory in MiB."""
    words = [f"--{name}={getattr(options, name)}" for name in ("width", "batch", "device")]
    workers = {variant: Worker(__file__, "--only", variant, *words) for variant in VARIANTS}
    seconds = medians(
        side_by_side({name: partial(worker.steps, 1) for name, worker in workers.items()}, options.rounds, 1)
    )
    memory = {name: worker.steps(0) for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {name: (seconds[name], memory[name]) for name in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11, help="steps of each variant, after a warm-up step")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        work(steps_of(options.only, options.width, options.batch, options.device), options.device)
        return
    rows = all_variants(options)
    (fast, small), (slow, large), joint = rows["shipped"], rows["double"], rows["joint"][0]
    result = {
        "benchmark": "hdkd",
        **{name: getattr(options, name) for name in ("width", "batch", "rounds", "device")},
        "seconds": {name: seconds for name, (seconds, _) in rows.items()},
        "peak_memory_mib": {name: memory for name, (_, memory) in rows.items()},
        "time_vs_double": fast / slow,
        "memory_vs_double": small / large,
        "joint_steps": fast / joint,
        "joint_steps_bf16": rows["shipped-bf16"][0] / rows["joint-bf16"][0],
        "target_met": fast / slow <= TIME and small / large <= MEMORY and fast / joint <= JOINT,
        **provenance(),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, (seconds, memory) in rows.items():
        print(f"{name:13} {1e3 * seconds:9.1f} ms a step   {memory:8.0f} MiB at most   {seconds / joint:5.2f} x joint")
    print(f"shipped / double: time {fast / slow:.2f} (target {TIME}), memory {small / large:.2f} (target {MEMORY})")
    print(f"shipped: {fast / joint:.2f} steps of joint (target {JOINT}); in bf16 {result['joint_steps_bf16']:.2f}")
    print("targets met" if result["target_met"] else "TARGETS MISSED")


if __name__ == "__main__":
    main()
