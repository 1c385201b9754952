"""Time and peak memory of a training step of every method, relative to a step of `joint`.

    python benchmarks/methods.py [--json] [--write] [--width 16] [--loss-width 64] [--rounds 3] [--steps 3]

A four-exit ResNet18 with `sketch` exits, CIFAR shapes, trained by the loop of `offramp train` in the precision that it
chooses. Every method runs in a process of its own; a few methods and `joint` train epochs of `--steps` steps in turn,
so that other work on the machine slows all alike, and medians are compared. The phases of a method are weighted by
their shares of the epochs. For methods that train several networks, a step trains all of them.

The last column is the time of the objective alone, forward and backward on given outputs, as a share of a `joint` step
of the network of width `--loss-width`. Target: at most 3 %. Only with `--write`, the table is written into
docs/methods.md and the ratios into the package, from which `offramp methods` reads them.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from method_epochs import CLASSES, SHAPE, build, group, work
from torch import nn

from offramp import methods
from offramp.config import Config, build_method, resolve
from offramp.measure.provenance import provenance
from offramp.measure.timing import medians, side_by_side
from offramp.outputs import Batch, ExitOutputs

TOGETHER, LOSS = 4, 0.03
DOCUMENT = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- costs: written by benchmarks/methods.py --write -->", "<!-- costs end -->"


def ratios(names: list[str], options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """{method: (time, memory)} relative to the `joint` that was measured in turn with it."""
    others = [name for name in names if name != "joint"]
    relative = {"joint": (1.0, 1.0)}
    for first in range(0, len(others), TOGETHER):
        rows = group(["joint", *others[first : first + TOGETHER]], options)
        seconds, memory = rows.pop("joint")
        relative |= {name: (step / seconds, mib / memory) for name, (step, mib) in rows.items()}
    return relative


def leaves(outputs: ExitOutputs) -> tuple[ExitOutputs, list[torch.Tensor]]:
    """The same values as leaves of the graph, and those whose gradients are computed."""
    flat = [t.detach().float().requires_grad_() for t in (outputs.logits, *outputs.features, *outputs.maps)]
    count = len(outputs.features)
    return ExitOutputs(flat[0], tuple(flat[1 : 1 + count]), tuple(flat[1 + count :])), flat


def forward(net: nn.Module, inputs: torch.Tensor, precision: str) -> ExitOutputs:
    """The outputs of the network, in the precision of training."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs: ExitOutputs = net(inputs)
    return outputs


def objective_alone(objective: Any, outputs: ExitOutputs, batch: Batch) -> Callable[[], None]:
    """The objective, forward and backward, on these outputs."""
    inputs, wanted = leaves(outputs)
    if isinstance(objective, nn.Module):
        objective.to(batch.inputs.device).train()

    def run() -> None:
        terms = objective(inputs, batch, 0.5)
        torch.autograd.grad(torch.stack(list(terms.values())).sum(), wanted, allow_unused=True)

    return run


def joint_step(net: nn.Module, batch: Batch, precision: str) -> Callable[[], None]:
    """A whole step of `joint`, without data and logging."""
    optimizer, objective = (
        torch.optim.SGD(net.parameters(), 0.1, 0.9),
        build_method(resolve(Config(method="joint"))).objective,
    )

    def run() -> None:
        outputs = forward(net, batch.inputs, precision)
        objective(outputs._replace(logits=outputs.logits.float()), batch, 0.0)["ce"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def losses(names: list[str], options: argparse.Namespace) -> tuple[dict[str, float], float]:
    """({method: seconds of its objective, forward and backward}, seconds of a step of `joint`)."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(options.batch, *SHAPE, generator=draw).to(options.device, memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (options.batch,), generator=draw).to(options.device)
    batch, runs, outputs = Batch(inputs, labels, labels), {}, {}
    config, joint, net = build("joint", options, options.loss_width)
    net = net.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = config.precision
    with torch.no_grad():
        outputs[joint.network] = forward(net, inputs, precision)
        for name in names:
            _, built, other = build(name, options, options.loss_width)
            if built.network not in outputs:  # a network of its own: other exits, or several networks
                outputs[built.network] = forward(other.to(options.device), inputs, precision)
            runs[name] = objective_alone(built.objective, outputs[built.network], batch)
    alone = medians(side_by_side(runs, 20, warm_up=3, device=batch.inputs.device))
    return alone, medians(side_by_side({"step": joint_step(net, batch, precision)}, 3, 1, batch.inputs.device))["step"]


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
    parser.add_argument("--write", action="store_true", help="write the results into docs/methods.md and the package")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--loss-width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="epochs that are measured, after one to warm up")
    parser.add_argument("--steps", type=int, default=3, help="steps per epoch")
    parser.add_argument("--methods", help="only these methods, comma-separated")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.only:
        work(options.only, options)
        return
    if options.write and options.methods:
        sys.exit("--write needs all methods: leave --methods out")
    names = options.methods.split(",") if options.methods else list(methods.about())
    relative = ratios(names, options)
    alone, step = losses(list(dict.fromkeys(["joint", *names])), options)
    rows = {
        name: {"time": round(relative[name][0], 3), "memory": round(relative[name][1], 3), "loss": alone[name] / step}
        for name in dict.fromkeys(["joint", *names])
    }
    result = {
        "benchmark": "methods",
        **{name: getattr(options, name) for name in ("width", "loss_width", "batch", "rounds", "steps", "device")},
        "precision": resolve(Config(device=options.device)).precision,
        "methods": rows,
        "step_seconds": step,
        "target_met": all(row["loss"] <= LOSS for row in rows.values()),
        **provenance(),
    }
    if options.write:
        write(result)
    if options.json:
        print(json.dumps(result))
        return
    print(table(result))
    slow = [f"{name} {100 * row['loss']:.1f} %" for name, row in rows.items() if row["loss"] > LOSS]
    print(f"\nlosses above {100 * LOSS:g} % of a step: {', '.join(slow)}: TARGET MISSED" if slow else "\ntarget met")


if __name__ == "__main__":
    main()
