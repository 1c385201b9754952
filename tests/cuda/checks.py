"""The program that `test_cuda.py` runs on the make-believe GPU: prints one JSON line per check.

LD_PRELOAD=guard.so python tests/cuda/checks.py CHECK...
"""

import gc
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import fake  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.utils._python_dispatch import _disable_current_modes  # noqa: E402

mode = fake.install()

from offramp.config import Config, build_method, build_net, prepare_objective, resolve  # noqa: E402
from offramp.data.augment import augment  # noqa: E402
from offramp.early_exit import graphed_policy, graphed_segment  # noqa: E402
from offramp.early_exit.policy import ExitPolicy  # noqa: E402
from offramp.early_exit.runtime import answer  # noqa: E402
from offramp.losses.kl_table import kl_table  # noqa: E402
from offramp.models import resnet  # noqa: E402
from offramp.outputs import Batch  # noqa: E402
from offramp.testing import SilentReporter, patterns  # noqa: E402
from offramp.train import loss_buffer, optim  # noqa: E402
from offramp.train.batch_norms import batch_norm  # noqa: E402
from offramp.train.device import make_fabric  # noqa: E402
from offramp.train.graph_choice import NotCaptured  # noqa: E402
from offramp.train.loop import Loop  # noqa: E402
from offramp.train.numerics import computing  # noqa: E402
from offramp.train.recipe import Recipe  # noqa: E402
from offramp.train.static_step import StaticStep  # noqa: E402

CLASSES, SIDE = 4, 16
resnet._BLOCKS["resnet18"] = (1, 1, 1, 1)  # quicker


def loop(folder: Path, samples: int = 24, **options: Any) -> Loop:
    """A run on the make-believe GPU, ready to start."""
    torch.manual_seed(0)
    values = {"epochs": 1, "batch_size": 8, "device": "cuda", "width": 4, "lr": 0.02, "graph": False, **options}
    values["epochs"] = max(values["epochs"], len(build_method(resolve(Config(**values))).phases))
    config = resolve(Config(**values))
    data, method = patterns(samples, 8, CLASSES, SIDE), build_method(config)
    net = build_net(config, method, classes=CLASSES, shape=data.shape)
    prepare_objective(method, net, data.shape)
    fabric = make_fabric(config, freezes=method.freezes)
    return Loop(fabric, folder, config, net, method, data, SilentReporter())


class Counting:
    """Counts the waits of a method of an object, call by call."""

    def __init__(self, owner: Any, name: str) -> None:
        self.call, self.calls = getattr(owner, name), list[Counter[Any]]()
        setattr(owner, name, self)

    def __call__(self, *args: Any) -> Any:
        with fake.counted() as (waits, _):
            result = self.call(*args)
        self.calls.append(waits)
        return result


def trained(**options: Any) -> dict[str, Any]:
    """Steps, validation, checkpoint and resume, and the waits of each; constants may be made in the first step."""
    with tempfile.TemporaryDirectory() as folder:
        running = loop(Path(folder), **options)
        assert all(tensor.is_cuda for tensor in running.net.state_dict().values())
        assert bool(running.context.optimizer.param_groups[0]["fused"]) == (options.get("precision") != "16")
        step, saving = (Counting(running, name) for name in ("step", "_save"))
        tracing = Counting(running.evaluated, "validate")
        running.run(resume=False)
        again = loop(Path(folder), **options)
        again._restore()
        assert again.position.epoch == running.position.epoch
        same = zip(running.net.state_dict().values(), again.net.state_dict().values(), strict=True)
        assert all(bool(torch.equal(one, other)) for one, other in same)
    return {
        "step": listed(sum(step.calls[1:], Counter())),
        "saving": listed(saving.calls[-1]),
        "tracing": listed(tracing.calls[-1]),
    }


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Other attributes of a module or class, in this context."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def noted() -> Iterator[list[str]]:
    """The notes of runs."""
    notes: list[str] = []
    with replaced(SilentReporter, note=lambda self, text: notes.append(text)):
        yield notes


def in_little_memory() -> dict[str, Any]:
    """As `trained`, of images that do not fit on the GPU, and what is said of them."""
    with noted() as notes, replaced(torch.cuda, mem_get_info=lambda *device: (4096, 4096)):
        return {**trained(method="joint", branch="linear"), "notes": notes}


def step(method: str) -> dict[str, Any]:
    """The waits of a step that is not the first one."""
    branch = {} if method in ("byot", "msd") else {"branch": "linear"}
    with tempfile.TemporaryDirectory() as folder:
        running = loop(Path(folder), 16, method=method, **branch)
        counting = Counting(running, "step")
        running.run(resume=False)
    return {"step": listed(sum(counting.calls[1:], Counter())), "steps": len(counting.calls)}


def read() -> dict[str, Any]:
    """The waits of ten steps, whose losses are read twice meanwhile, and which of them are recorded in the end."""
    with tempfile.TemporaryDirectory() as folder, replaced(loss_buffer, CHECK_EVERY=4):
        running = loop(Path(folder), 80, **OPTIONS["learned teachers"])
        counting = Counting(running, "step")
        running.run(resume=False)
        records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        recorded = [record["step"] for record in records if record["kind"] == "step" and record["weights"]]
    waits = [sum(each.values()) for each in counting.calls[1:]]
    return {"read": [place + 2 for place, number in enumerate(waits) if number], "recorded": recorded}


class _Replayed:
    """Stands for a captured graph, whose step was taken while it was captured."""

    def replay(self) -> None: ...


def captured(method: str) -> dict[str, Any]:
    """Waits of steps that would be captured, and what they copy between host and GPU."""
    copied, steps = Counter[str](), [0]

    def capture(self: StaticStep, batch: Batch) -> None:
        before, terms = fake.copies.copy(), self.step(batch)
        copied.update(fake.copies - before)
        steps[0] += 1
        assert batch.inputs.dtype == torch.uint8  # augmentation is a part of the step
        self.names, self.values, self.graph = tuple(terms), torch.stack(list(terms.values())), _Replayed()  # type: ignore[assignment]

    branch = {"branch": "beed"} if method == "beed" else {}
    alone = replaced(StaticStep, _capture=capture, _alone=lambda self, batch: self.step(batch))
    with tempfile.TemporaryDirectory() as folder, alone:
        running = loop(Path(folder), method=method, graph=True, batch_size=4, label_smoothing=0.1, epochs=2, **branch)
        step = Counting(running, "step")
        running.run(resume=False)
    return {"step": listed(sum(step.calls[1:], Counter())), "copies": dict(copied), "captures": steps[0]}


def refused() -> dict[str, Any]:
    """Runs that cannot be captured, as those of a user's method may be: captures that are tried, what is said."""
    tried, steps = list[StaticStep](), list[int]()
    changes = (lambda term: term * (term.item() > 0), lambda term: term * random.random())  # a wait; a draw on the CPU
    with noted() as notes, replaced(StaticStep, _capture=lambda self, batch: tried.append(self)):
        for change in changes:
            with tempfile.TemporaryDirectory() as folder:
                running = loop(Path(folder), 48, method="joint", branch="linear", graph=None)
                running.context.objective = changed(running.context.objective, change)
                running.run(resume=False)
                steps.append(running.step_number)
    told = {"tried": len(tried), "notes": notes, "steps": steps}
    try:
        graphed_segment.captured(lambda: bool(torch.ones(2, device="cuda").any()), running.fabric.device)
    except ValueError as error:
        return {**told, "segment": str(error)}
    return {**told, "segment": ""}


def collected() -> dict[str, Any]:
    """Whether what an earlier run has left in a cycle is gone before a step is captured, not while something is."""
    left, device, during = SilentReporter(), torch.device("cuda"), list[bool]()
    left.loop, gone = left, weakref.ref(left)  # type: ignore[attr-defined]
    del left

    def graph(*_: Any, **__: Any) -> Any:
        during.append(gc.isenabled())
        raise RuntimeError("nothing can be captured here")

    with replaced(torch.cuda, graph=graph):
        with suppress(NotCaptured):
            StaticStep(lambda batch: {}, device)._capture(Batch(*[torch.zeros(1, device="cuda")] * 3))
        with suppress(RuntimeError):
            graphed_segment.captured(lambda: None, device)
    return {"garbage": [gone() is None, *during, gc.isenabled()]}


def changed(objective: Any, change: Any) -> Any:
    """The objective with every term changed."""
    return lambda *of: {name: change(term) for name, term in objective(*of).items()}


def synchronised() -> dict[str, Any]:
    """Batch norms on the statistics of all processes, of which there is one here: results and gradients."""
    torch.manual_seed(0)
    tensors = [torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last), torch.rand(3), torch.rand(3)]
    results = []
    with replaced(dist, all_gather=lambda rows, row: rows[0].copy_(row), all_reduce=lambda tensor: None):
        for device in ("cpu", "cuda"):
            maps, weight, bias = (tensor.to(device).requires_grad_() for tensor in tensors)
            statistics = [torch.zeros(3, device=device), torch.ones(3, device=device)]
            outputs = batch_norm(maps, *statistics, weight, bias, 0.1, 1e-5)
            gradients = torch.autograd.grad(outputs.square().sum(), (maps, weight, bias))
            results.append([each.detach().cpu() for each in (outputs, *gradients, *statistics)])
    return {"same": all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*results, strict=True))}


def restored() -> dict[str, Any]:
    """Where an optimizer whose steps are captured counts them, if it continues what one on the CPU began."""
    recipe, net = Recipe(optimizer="adamw"), torch.nn.Linear(3, 2)
    begun = optim.build(recipe, net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    begun.step()
    continued = optim.build(recipe, torch.nn.Linear(3, 2).to("cuda").parameters(), static=True)
    optim.restore(continued, begun.state_dict())
    return {"steps": sorted({values["step"].device.type for values in continued.state.values()})}


OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.9},
    "soft labels": {"mixup": 0.2, "label_smoothing": 0.1},
    "clipping": {"clip": 1.0},
    "learned teachers": {"method": "eed", "branch": "sketch", "method_options": {"weights": "learned", "beta": 0.1}},
    "rare updates": {"method": "hdkd", "method_options": {"meta_every": 2}},
    "rare weights": {"method": "l2w", "method_options": {"meta_every": 2}},
    "float32": {"precision": "32"},
    "float16": {"precision": "16", "clip": 1.0},
    "deterministic": {"deterministic": True},
    "adamw": {"optimizer": "adamw"},
    "mixed": {"tune": "mixed", "epochs": 2},
}
"""Options of training that do something of their own in every step."""


def augmented(kind: str) -> dict[str, Any]:
    """Waits of augmenting a batch, and whether the images are those of the CPU."""
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    values: dict[str, Any] = {"kind": kind, "seed": 1, "epoch": 2, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    values["cropped"] = kind == "resize-crop-flip"
    ids, expected = torch.arange(5), augment(pixels, torch.arange(5), **values)
    on_gpu = [tensor.to("cuda") for tensor in (pixels, ids)]
    augment(*on_gpu, **values)  # constants are made once
    with fake.counted() as (waits, _):
        images = augment(*on_gpu, **values)
    return {"waits": listed(waits), "same": bool(torch.equal(images.cpu(), expected))}


def decided(rule: str) -> dict[str, Any]:
    """Waits of early exit, how many exits it passed, and whether it decides as on the CPU."""
    score, _, answer_ = rule.partition("/")
    torch.manual_seed(0)
    logits = 3 * torch.randn(3, 12, 5)
    thresholds = {"patience": (0.0,) * 3, "margin": (0.5,) * 3, "entropy": (0.4,) * 3}.get(score, (0.6,) * 3)
    predictors = ((0.5, 1.0, -1.0, 0.5, -0.5, 0.25, 0.25),) * 2 if score == "learned" else ()
    flags = (True,) * 3
    policy = ExitPolicy(
        thresholds=thresholds, enabled=flags, score=score, answer=answer_, patience=2, predictors=predictors
    )

    def segment(exit: int) -> Any:
        return lambda state, carry: (state, carry, logits.to(state.device)[exit].index_select(0, state[:, 0].long()))

    segments, inputs = [segment(exit) for exit in range(3)], torch.arange(12.0)[:, None]
    expected = answer(segments, policy, inputs)
    logits, inputs = logits.to("cuda"), inputs.to("cuda")
    with fake.counted() as (waits, _):
        values = answer(segments, policy, inputs)
    with replaced(graphed_policy, captured=lambda run, device: run):  # nothing can be captured here
        graphed = graphed_policy.GraphedExits(segments, policy, inputs.device)
        graphed(inputs)  # constants are made once
        with fake.counted() as (more, _):
            also = graphed(inputs)
    pairs = [pair for each in (values, also) for pair in zip(each, expected, strict=True)]
    same = all(bool(torch.equal(one.cpu(), other)) for one, other in pairs)
    exits = int(expected.exit.max()) + 1
    return {"waits": listed(waits), "graph_waits": listed(more), "exits": exits, "same": same}


def multiplied() -> dict[str, Any]:
    """In which precision `kl_table` multiplies, and its backward pass, while TF32 is allowed."""
    fake.products.clear()
    logits = torch.randn(3, 4, 5).to("cuda").requires_grad_()
    with computing(Recipe(precision="tf32"), torch.device("cuda")):
        kl_table(logits, temperature=1.0, detach_teachers=False).sum().backward()
    return {"products": sorted(map(str, fake.products))}


def attended() -> dict[str, Any]:
    """A step that looks ahead through attention, whose fused kernels have no forward-mode derivative."""
    options = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    return trained(
        method="hdkd",
        net="timm:vit_tiny_patch16_224",
        width=None,
        exits_after=("blocks.0",),
        branch="linear",
        net_options=options,
    )


def commanded() -> dict[str, Any]:
    """`train`, `calibrate`, `evaluate` and `bench` as typed; what they say of the device."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        data = "--data digits --per-class 20 --batch-size 64"
        training = f"{data} --width 2 --epochs 1 --method joint --branch linear --device cuda"
        told = [
            typed(f"{verb} --json")
            for verb in (
                f"train {training} --out {run}",
                f"calibrate {run} --ms 1000 --batch-size 4",
                f"evaluate {run}",
                f"bench {run} --runtimes torch --batch 4 --seconds 0.01",
            )
        ]
    return {"told": told}


def more_commands() -> dict[str, Any]:
    """The other commands that compute; what they say of the device."""
    with tempfile.TemporaryDirectory() as folder:
        run, plain = f"{folder}/run", f"{folder}/plain"
        training = "--data digits --per-class 20 --batch-size 64 --width 2 --epochs 1 --device cuda"
        typed(f"train {training} --method joint --branch linear --out {run} --json")
        typed(f"train {training} --method vanilla --out {plain} --json")
        told = [
            typed(f"{verb} --json")
            for verb in (
                f"calibrate {run} --max-drop 50% --score learned",
                f"evaluate {run} --baseline {plain}",
                f"curves {run}",
                f"analyse {run} --batch-size 4 --dissimilarity 20",
                f"report {run} --out {folder}/report.html --images 2 --batch-size 4",
            )
        ]
        with _disable_current_modes():  # as on the CPU alone, where all of it must be computed
            typed(f"export {run} --out {folder}/bundle --json")
    return {"told": told}


def moved() -> dict[str, Any]:
    """A run that continues on the CPU, and again on the GPU; what its result says of it."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"--out {folder}/run --json"
        training = (
            "--data digits --width 2 --batch-size 64 --per-class 24 --method joint --branch linear --schedule constant"
        )
        first = typed(f"train {training} --epochs 1 --device cuda {run}")
        typed(f"train {training} --epochs 2 --device cpu --resume --precision 32 --memory-format contiguous {run}")
        third = typed(f"train --epochs 3 --device cuda --resume {run}")
    return {"told": [first["epochs"], third["epochs"], third["provenance"]["device_changes"]]}


def typed(words: str) -> Any:
    """What a command prints as JSON."""
    from contextlib import redirect_stdout
    from io import StringIO

    from offramp.cli import main

    with redirect_stdout(StringIO()) as printed:
        try:
            main(words.split())
        except SystemExit as end:
            assert not end.code, printed.getvalue()
    return json.loads(printed.getvalue())


def listed(counter: Counter[Any]) -> dict[str, int]:
    return {f"{what} at {place}": count for (what, place), count in sorted(counter.items())}


ALONE = {
    "little memory": in_little_memory,
    "refused": refused,
    "restored": restored,
    "read": read,
    "collected": collected,
    "synchronised": synchronised,
}
"""Checks without a name of what is checked."""


def run(check: str) -> dict[str, Any]:
    kind, _, name = check.partition(":")
    if kind in ALONE:
        return ALONE[kind]()
    if kind == "method":
        return trained(method=name)
    if kind == "captured":
        return captured(name)
    if kind == "step":
        return step(name)
    if kind == "light":
        return trained(method=name, branch="linear")
    if kind == "option":
        return trained(**{"method": "joint", "branch": "linear", **OPTIONS[name]})
    if kind == "augmentation":
        return augmented(name)
    if kind == "policy":
        return decided(name)
    if kind == "products":
        return multiplied()
    if kind == "attention":
        return attended()
    if kind == "moved":
        return moved()
    if kind == "commands":
        return commanded()
    if kind == "more commands":
        return more_commands()
    raise ValueError(check)


def main() -> None:
    for check in sys.argv[1:]:
        fake.waits.clear()
        fake.mixed.clear()
        began = time.process_time()
        with mode:
            try:
                result = run(check)
            except Exception:
                result = {"error": "".join(traceback.format_exception(*sys.exc_info(), limit=-6))[-1500:]}
        result |= {"check": check, "mixed": listed(fake.mixed), "seconds": time.process_time() - began}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
