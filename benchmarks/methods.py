"""What a training step of every method costs, in time and peak memory, beside a step of `joint`.

    python benchmarks/methods.py [--json] [--write] [--width 16] [--loss-width 64] [--rounds 3] [--steps 3]

The four-exit ResNet18 with `sketch` exits, CIFAR shapes, trained by the loop of `offramp train` in its own precision.
Every method runs in a process of its own; a few of them and `joint` take their epochs of `--steps` steps in turn, so
that a busy machine slows all alike, and medians are compared. A method of several phases counts each by its share of
the epochs. Methods that train several networks count all of them.

The last column is the objective alone, forward and backward on outputs that are there, as a share of a `joint` step of
the network of width `--loss-width`. Target: at most 3 %. `--write` puts the table into docs/methods.md and the ratios
into the package, where `offramp methods` finds them; both are left as they are otherwise.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from offramp import methods
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.data.splits import ArraySource, DataSet, Split
from offramp.measure.memory import peak_mib
from offramp.measure.provenance import provenance
from offramp.measure.timing import medians, side_by_side
from offramp.outputs import Batch, ExitOutputs
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

CLASSES, SHAPE, TOGETHER, LOSS = 100, (3, 32, 32), 4, 0.03
DOCUMENT = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- costs: written by benchmarks/methods.py --write -->", "<!-- costs end -->"


def images(train: int, held: int) -> DataSet:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (train + held, *SHAPE), dtype=np.uint8)
    labels = draw.integers(0, CLASSES, train + held)
    source = ArraySource("benchmark", tuple(map(str, range(CLASSES))), labels, pixels)
    order = np.arange(train + held)
    splits = {"train": Split(source, order[:train], "train"), "val": Split(source, order[train:], "val")}
    return DataSet("benchmark", splits, source.classes, SHAPE, (0.5,) * 3, (0.25,) * 3, "crop-flip")


class InTurn:
    """The reporter of a run that takes an epoch when a line comes in, and says how long it took and what it needed."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        sys.stdin.readline()

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None: ...

    def epoch_done(self, record: dict[str, Any]) -> None:
        print(record["epoch"], (record["seconds"] - self.seconds) / self.steps, peak(), flush=True)
        self.seconds = record["seconds"]
        sys.stdin.readline()

    def note(self, text: str) -> None: ...


def made(method: str, given: argparse.Namespace, width: int, epochs: int = 1) -> tuple[Config, Any, nn.Module]:
    torch.manual_seed(0)
    recipe = {"epochs": epochs, "batch_size": given.batch, "device": given.device}
    config = resolve(Config(method=method, width=width, **recipe))
    built = build_method(config)
    net = build_net(config, built, classes=CLASSES, shape=SHAPE)
    prepare_objective(built, net, SHAPE)
    return config, built, net


def work(method: str, given: argparse.Namespace) -> None:
    """Train by this method, one epoch for every line of the input. The first line of the output says its phases."""
    phases = len(build_method(Config(method=method)).phases)
    config, built, net = made(method, given, given.width, epochs=phases * (given.rounds + 1))
    data = images(given.batch * given.steps, given.batch)
    parted = {"parted": True} if phases > 1 else {}
    with tempfile.TemporaryDirectory() as folder:
        fabric = make_fabric(config, **parted)
        loop = Loop(fabric, Path(folder), config, net, built, data, InTurn(given.steps))
        whole = sum(span.phase.share for span in loop.spans)
        print(json.dumps([[span.first, span.epochs, span.phase.share / whole] for span in loop.spans]), flush=True)
        loop.run(resume=False)


def peak() -> float:
    """MiB: largest size of this process so far, or on a GPU of its tensors there."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_mib()


class Worker:
    """A method that trains in a process of its own, an epoch whenever it is asked to."""

    def __init__(self, method: str, given: argparse.Namespace) -> None:
        words = [sys.executable, __file__, "--only", method]
        words += [f"--{name}={getattr(given, name)}" for name in ("width", "batch", "rounds", "steps", "device")]
        self.method = method
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: dict[int, float] = {}
        self.memory = 0.0

    def ready(self) -> None:
        self.spans = json.loads(self._line())
        self.left = sum(epochs for _, epochs, _ in self.spans)

    def epoch(self) -> None:
        assert self.process.stdin
        if self.left:
            print("go on", file=self.process.stdin, flush=True)
            epoch, seconds, memory = self._line().split()
            self.seconds[int(epoch)], self.memory = float(seconds), float(memory)
            self.left -= 1

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.method} ended early; see why: python benchmarks/methods.py --only {self.method}")
        return line

    def step(self) -> float:
        """Seconds of a step: the median of every phase, by its share; its first epoch warms up."""
        found = 0.0
        for first, epochs, share in self.spans:
            counted = [self.seconds[epoch] for epoch in range(first + min(1, epochs - 1), first + epochs)]
            found += share * statistics.median(counted)
        return found

    def close(self) -> None:
        self.process.communicate("\n")


def group(names: list[str], given: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """{method: (seconds of a step, peak MiB)} of methods that take turns."""
    workers = [Worker(name, given) for name in names]
    for worker in workers:
        worker.ready()
    while any(worker.left for worker in workers):
        for worker in workers:
            worker.epoch()
    for worker in workers:
        worker.close()
    return {worker.method: (worker.step(), worker.memory) for worker in workers}


def ratios(names: list[str], given: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """{method: (time, memory)} relative to the `joint` that took turns with it."""
    others = [name for name in names if name != "joint"]
    found = {"joint": (1.0, 1.0)}
    for first in range(0, len(others), TOGETHER):
        rows = group(["joint", *others[first : first + TOGETHER]], given)
        seconds, memory = rows.pop("joint")
        found |= {name: (own / seconds, mib / memory) for name, (own, mib) in rows.items()}
    return found


def leaves(outputs: ExitOutputs) -> tuple[ExitOutputs, list[torch.Tensor]]:
    """The same values without their past, and those that gradients are wanted for."""
    flat = [t.detach().float().requires_grad_() for t in (outputs.logits, *outputs.features, *outputs.maps)]
    count = len(outputs.features)
    return ExitOutputs(flat[0], tuple(flat[1 : 1 + count]), tuple(flat[1 + count :])), flat


def answered(net: nn.Module, inputs: torch.Tensor, precision: str) -> ExitOutputs:
    """What the network answers, in the precision it trains in."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs: ExitOutputs = net(inputs)
    return outputs


def objective_alone(objective: Any, outputs: ExitOutputs, batch: Batch) -> Callable[[], None]:
    """The objective, forward and backward, on these outputs."""
    of, wanted = leaves(outputs)
    if isinstance(objective, nn.Module):
        objective.to(batch.inputs.device).train()

    def run() -> None:
        terms = objective(of, batch, 0.5)
        torch.autograd.grad(torch.stack(list(terms.values())).sum(), wanted, allow_unused=True)

    return run


def joint_step(net: nn.Module, batch: Batch, precision: str) -> Callable[[], None]:
    """A whole step of `joint`, without data and logging."""
    optimizer, objective = torch.optim.SGD(net.parameters(), 0.1, 0.9), build_method(Config(method="joint")).objective

    def run() -> None:
        outputs = answered(net, batch.inputs, precision)
        objective(outputs._replace(logits=outputs.logits.float()), batch, 0.0)["ce"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def losses(names: list[str], given: argparse.Namespace) -> tuple[dict[str, float], float]:
    """({method: seconds of its objective, forward and backward}, seconds of a step of `joint`)."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(given.batch, *SHAPE, generator=draw).to(given.device, memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (given.batch,), generator=draw).to(given.device)
    batch, runs, seen = Batch(inputs, labels, labels), {}, {}
    config, joint, net = made("joint", given, given.loss_width)
    net = net.to(given.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = config.precision
    with torch.no_grad():
        seen[joint.network] = answered(net, inputs, precision)
        for name in names:
            _, built, own = made(name, given, given.loss_width)
            if built.network not in seen:  # a network of its own: other exits, or several networks
                seen[built.network] = answered(own.to(given.device), inputs, precision)
            runs[name] = objective_alone(built.objective, seen[built.network], batch)
    found = medians(side_by_side(runs, 20, warm_up=3, device=batch.inputs.device))
    return found, medians(side_by_side({"step": joint_step(net, batch, precision)}, 3, 1, batch.inputs.device))["step"]


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    about = methods.about()
    head = "| method | family | time of a step | peak memory | the loss alone, % of a step |\n|---|---|---|---|---|\n"
    rows = [
        f"| `{name}` | {about[name].family} | {row['time']:.2f} | {row['memory']:.2f} | {100 * row['loss']:.2f} |"
        for name, row in result["methods"].items()
    ]
    hardware = result["hardware"]
    device = f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores"
    where = (
        f"Relative to `joint`, width {result['width']}, batch {result['batch']}, {result['precision']}; the last "
        f"column at width {result['loss_width']}.\nMeasured {result['date'][:10]} on {device}, PyTorch "
        f"{result['versions']['torch']}, by `{result['command']}`."
    )
    return f"{head}{chr(10).join(rows)}\n\n{where}"


def write(result: dict[str, Any]) -> None:
    """Put the table into the document and the ratios into the package."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(result)}\n\n{END}{after}", encoding="utf-8")
    keys = ("command", "date", "commit", "hardware", "width", "batch", "precision", "methods")
    methods.COSTS.write_text(json.dumps({key: result[key] for key in keys}, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--write", action="store_true", help="write docs/methods.md and what `offramp methods` shows")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--loss-width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="epochs that count, after one to warm up")
    parser.add_argument("--steps", type=int, default=3, help="steps of an epoch")
    parser.add_argument("--methods", help="these alone, with commas between")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.only:
        work(given.only, given)
        return
    if given.write and given.methods:
        sys.exit("--write needs all methods: leave --methods out")
    names = given.methods.split(",") if given.methods else list(methods.about())
    found = ratios(names, given)
    of_loss, step = losses(list(dict.fromkeys(["joint", *names])), given)
    rows = {
        name: {"time": round(found[name][0], 3), "memory": round(found[name][1], 3), "loss": of_loss[name] / step}
        for name in dict.fromkeys(["joint", *names])
    }
    result = {
        "benchmark": "methods",
        **{name: getattr(given, name) for name in ("width", "loss_width", "batch", "rounds", "steps", "device")},
        "precision": resolve(Config(device=given.device)).precision,
        "methods": rows,
        "step_seconds": step,
        "target_met": all(row["loss"] <= LOSS for row in rows.values()),
        **provenance(),
    }
    if given.write:
        write(result)
    if given.json:
        print(json.dumps(result))
        return
    print(table(result))
    slow = [f"{name} {100 * row['loss']:.1f} %" for name, row in rows.items() if row["loss"] > LOSS]
    print(f"\nlosses above {100 * LOSS:g} % of a step: {', '.join(slow)}: TARGET MISSED" if slow else "\ntarget met")


if __name__ == "__main__":
    main()
