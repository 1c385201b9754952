"""On a real GPU: what tests/cuda shows on a make-believe one, and that the numbers are those of the CPU."""

import dataclasses
import json
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp import methods
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.data.augment import augment
from offramp.data.load import AUGMENTATIONS
from offramp.early_exit.graphed_policy import GraphedExits
from offramp.early_exit.policy import ANSWERS, SCORES, ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.losses.kl_table import kl_table
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop
from offramp.train.numerics import computing
from offramp.train.recipe import Recipe
from offramp.train.reporter import Interrupted

pytestmark = pytest.mark.gpu
CLASSES = 4


class Stopping(SilentReporter):
    """Stops a run after its first epoch."""

    def __init__(self) -> None:
        self.loop: Loop | None = None

    def epoch_done(self, record: dict[str, Any]) -> None:
        if self.loop is not None and record["epoch"] == 0:
            self.loop.stop.set()


def loop(folder: Path, reporter: SilentReporter | None = None, **options: Any) -> Loop:
    torch.manual_seed(0)
    values = {"epochs": 2, "batch_size": 8, "lr": 0.02, "precision": "32", "device": "cuda", "width": 4, **options}
    values["epochs"] = max(values["epochs"], len(build_method(resolve(Config(**values))).phases))
    config = resolve(Config(**values))
    data, method = patterns(44, 8, CLASSES, 16), build_method(config)
    net = build_net(config, method, classes=CLASSES, shape=data.shape)
    prepare_objective(method, net, data.shape)
    folder.mkdir(exist_ok=True)
    fabric = make_fabric(config, freezes=method.freezes)
    return Loop(fabric, folder, config, net, method, data, reporter or SilentReporter())


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


@pytest.mark.parametrize("method", list(methods.available()))
def test_the_first_losses_of_every_method_are_those_of_the_cpu(tmp_path: Path, method: str) -> None:
    for device in ("cpu", "cuda"):
        loop(tmp_path / device, method=method, device=device).run(resume=False)
    one, other = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert len(one) == len(other) and all(value == value for value in other)
    assert other[:3] == pytest.approx(one[:3], rel=2e-2)  # rounding differs, and training amplifies it
    assert other[0] == pytest.approx(one[0], rel=1e-4)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_looking_ahead_through_attention_is_that_of_the_cpu(tmp_path: Path) -> None:
    net = {"net": "timm:vit_tiny_patch16_224", "width": None, "exits_after": ("blocks.0",), "branch": "linear"}
    options = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    for device in ("cpu", "cuda"):
        loop(tmp_path / device, method="hdkd", device=device, net_options=options, **net).run(resume=False)
    one, other = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert other[0] == pytest.approx(one[0], rel=1e-4) and other[:3] == pytest.approx(one[:3], rel=2e-2)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("method", list(methods.available()))
def test_a_step_does_not_synchronise(tmp_path: Path, method: str) -> None:
    """After the first one, which creates constants; PyTorch itself refuses what waits for the GPU."""
    running = loop(tmp_path / "run", method=method, graph=False)
    step, taken = running.step, list[int]()

    def strict(batch: Any, progress: float) -> None:
        torch.cuda.set_sync_debug_mode("error" if taken else "default")
        try:
            step(batch, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        taken.append(running.step_number)

    running.step = strict  # type: ignore[method-assign]
    running.run(resume=False)
    assert len(taken) > 2


class Told(SilentReporter):
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_step_that_synchronises_is_not_captured(tmp_path: Path) -> None:
    told = Told()
    running = loop(tmp_path / "run", told, method="joint", graph=True)
    objective = running.context.objective

    def waiting(outputs: Any, batch: Any, progress: Any) -> Any:
        return {name: term * (term.item() > 0) for name, term in objective(outputs, batch, progress).items()}

    running.context.objective = waiting
    running.run(resume=False)
    assert len(told.notes) == 1
    assert told.notes[0].startswith("graph: the step cannot be captured (it waits for the GPU at test_gpu.py:")


@pytest.mark.parametrize("method", ["joint", "hdkd"])
def test_a_deterministic_run_resumes_to_the_bit(tmp_path: Path, method: str) -> None:
    options = {"method": method, "deterministic": True, "precision": "bf16"}
    loop(tmp_path / "whole", **options).run(resume=False)
    stopping = Stopping()
    stopping.loop = loop(tmp_path / "parts", stopping, **options)
    with pytest.raises(Interrupted):
        stopping.loop.run(resume=False)
    loop(tmp_path / "parts", **options).run(resume=True)
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_a_cpu_continues_with_the_settings_of_the_gpu(tmp_path: Path) -> None:
    from offramp.runs.train import train

    config = Config(width=4, method="joint", epochs=1, batch_size=256, device="cpu", lr=0.02, schedule="constant")
    train(dataclasses.replace(config, precision="32", memory_format="contiguous"), tmp_path / "run")
    moved = train(dataclasses.replace(config, epochs=2, device="cuda"), tmp_path / "run", resume=True)
    (change,) = moved.provenance["device_changes"]
    assert (change["before"], change["device"]) == ("cpu", "cuda") and change["precision_before"] == "32"
    assert (change["memory_format_before"], change["memory_format"]) == ("contiguous", "auto")
    assert change["precision"] == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "joint"},
        {"method": "muse", "precision": "bf16", "ema": 0.9, "clip": 1.0},
        {"method": "beed", "branch": "beed", "mixup": 0.2},
        {"method": "joint", "optimizer": "adamw", "tune": "mixed"},
    ],
)
def test_a_captured_step_is_the_step(tmp_path: Path, options: dict[str, Any]) -> None:
    """Two runs without capture differ by as much as their optimizers' kernels do; deterministic kernels otherwise."""
    for graph in (False, True):
        loop(tmp_path / str(graph), **options, graph=graph, deterministic=True, epochs=3).run(resume=False)
    one, other = losses(tmp_path / "False"), losses(tmp_path / "True")
    assert other == pytest.approx(one, rel=5e-3) and other[:3] == pytest.approx(one[:3], rel=1e-5)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_is_that_of_the_cpu(kind: str) -> None:
    pixels, ids = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8), torch.arange(7)
    values: dict[str, Any] = {"kind": kind, "seed": 1, "epoch": 2, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    values["cropped"] = kind == "resize-crop-flip"
    images = augment(pixels.to("cuda"), ids.to("cuda"), **values).cpu()
    torch.testing.assert_close(images, augment(pixels, ids, **values), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("score", "answer_"), list(product(SCORES, ANSWERS)))
def test_every_policy_decides_as_on_the_cpu(score: str, answer_: str) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(3, 64, 10)
    learned = ((0.5, 1.0, -1.0, 0.5, -0.5, 0.25, 0.25),) * 2 if score == "learned" else ()
    rule: dict[str, Any] = {"score": score, "answer": answer_, "patience": 2, "predictors": learned}
    policy = ExitPolicy(thresholds=(0.5,) * 3, enabled=(True,) * 3, **rule)
    results = []
    for device in ("cpu", "cuda"):
        there = logits.to(device)
        segments = [
            lambda state, carry, exit=exit, there=there: (state, carry, there[exit].index_select(0, state[:, 0].long()))
            for exit in range(3)
        ]
        inputs = torch.arange(64.0, device=device)[:, None]
        results.append(answer(segments, policy, inputs))
        with torch.inference_mode():
            graphed = GraphedExits(segments, policy, torch.device(device))
            results += [graphed(inputs) for _ in range(2)]  # captured, then again
    for result in results[1:]:
        assert torch.equal(results[0].exit, result.exit.cpu())
        torch.testing.assert_close(results[0].logits, result.logits.cpu())


@pytest.mark.parametrize("runtime", ["onnx-cuda", "onnx-tensorrt"])
def test_a_bundle_is_served(tmp_path: Path, runtime: str) -> None:
    """Requests of different sizes, whose states are joined on the GPU, get the answers of the CPU."""
    import asyncio

    import numpy as np

    from offramp.bundle.gpu_sessions import absent
    from offramp.bundle.read import open_bundle
    from offramp.runs.export import export
    from offramp.runs.train import train
    from offramp.serve.predictor import AsyncPredictor
    from offramp.serve.requests import SampleResult

    if reason := absent(runtime):
        pytest.skip(f"{runtime} is {reason}")
    config = Config(width=4, method="joint", data="digits", epochs=1, batch_size=64, device="cuda", lr=0.02)
    export(train(config, tmp_path / "run"), tmp_path / "bundle")
    plain = open_bundle(tmp_path / "bundle")
    shape = plain.manifest.preprocessing.shape
    inputs = np.random.default_rng(0).standard_normal((40, *shape)).astype(np.float32)

    async def ask() -> list[Any]:
        async with AsyncPredictor(tmp_path / "bundle", runtime=runtime, max_batch=16) as predictor:
            requests = [predictor.infer(part) for part in np.split(inputs, [1, 9, 10, 31])]
            return [result for results in await asyncio.gather(*requests) for result in results]

    results = asyncio.run(ask())
    assert all(isinstance(result, SampleResult) for result in results)
    expected, scale = plain.answer(inputs), float(np.abs(plain.answer(inputs).logits).max())
    for result, logits, exit in zip(results, expected.logits, expected.exit, strict=True):
        assert (
            result.exit != exit or np.abs(result.logits - logits).max() <= 1e-2 * scale
        )  # TensorRT's products may be TF32
    assert sum(result.exit == exit for result, exit in zip(results, expected.exit, strict=True)) >= 36


def test_tf32_is_a_choice_and_never_one_of_the_divergences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 128, 100)
    logits[1] = logits[0] + 0.03 * torch.randn(128, 100)  # where rounding would show
    expected = kl_table(logits.double(), temperature=1.0)
    maps, weight = torch.randn(256, 512), torch.randn(512, 256)
    exact = maps.double() @ weight.double()
    errors = {}
    for precision in ("32", "tf32"):
        with computing(Recipe(precision=precision), torch.device("cuda")):  # type: ignore[arg-type]
            table = kl_table(logits.to("cuda"), temperature=1.0).cpu().double()
            errors[precision] = float((maps.to("cuda") @ weight.to("cuda")).cpu().double().sub(exact).abs().max())
        torch.testing.assert_close(table, expected, rtol=2e-3, atol=1e-6)
    assert errors["tf32"] > 10 * errors["32"]


def test_from_training_to_benchmark(tmp_path: Path) -> None:
    from offramp.runs.bench import bench
    from offramp.runs.calibrate import calibrate
    from offramp.runs.evaluate import evaluate
    from offramp.runs.goal import Goal
    from offramp.runs.train import train

    config = Config(width=4, method="joint", epochs=2, batch_size=256, device="cuda", lr=0.02)
    trained = train(config, tmp_path / "run")
    assert trained.provenance["hardware"]["gpu"] and trained.provenance["hardware"]["cuda"]
    calibrated = calibrate(trained, Goal(ms=1000.0, batch_size=16))
    assert calibrated.device == "cuda"
    assert calibrate(trained, Goal(ms=1000.0, batch_size=16, runtime="torch-graph")).runtime == "torch-graph"
    on_gpu, on_cpu = evaluate(trained), evaluate(trained, device="cpu")
    assert on_gpu.adaptive and on_gpu.adaptive.device == "cuda" and on_cpu.adaptive and on_cpu.adaptive.device == "cpu"
    assert on_gpu.accuracy == pytest.approx(on_cpu.accuracy, abs=0.02)
    measured = bench(tmp_path / "run", batch=[1, 16], runtimes=["torch", "torch-graph"], seconds=0.2)
    assert {report["device"] for each in measured.batches for report in each["runtimes"].values()} == {"cuda"}
    dataclasses.asdict(measured)
