"""Compiled runs: network and losses, on whole batches alone, each phase anew; the numbers are the ordinary ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offramp import methods

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
import torch
from torch import _dynamo
from torch._dynamo.utils import counters
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.losses.kl_table import _rounds_to_tf32
from offramp.models import resnet
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

resnet._BLOCKS["resnet18"] = (1, 1, 1, 1)  # quicker
sizes, losses = [], 0
def backend(graph, inputs):
    global losses
    tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
    images = [each.shape[0] for each in tensors if each.shape[1:] == (3, 16, 16)]
    sizes.extend(images)
    losses += not images
    return graph.forward
compiler, folder, device = torch.compile, Path(sys.argv[1]), sys.argv[3]
torch.backends.cuda.matmul.allow_tf32 = True
exact = compiler(lambda x: x.double() if _rounds_to_tf32() else x, backend="eager", fullgraph=True)
assert exact(torch.ones(2)).dtype == torch.float64
torch.backends.cuda.matmul.allow_tf32 = False
assert exact(torch.ones(2)).dtype == torch.float32
if sys.argv[2] == "read":  # what the compiler reads, computed as it is
    torch.compile = partial(compiler, backend=backend)

def trained(name, method, compiled):
    torch.manual_seed(0)
    how = {"method": method, "batch_size": 8, "width": 4, "device": device, "precision": "32", "compile": compiled}
    epochs = max(2, len(build_method(resolve(Config(**how))).phases))
    config = resolve(Config(epochs=epochs, lr=0.02, **how))
    built, data = build_method(config), patterns(20, 6, 4, 16)
    net = build_net(config, built, classes=4, shape=data.shape)
    prepare_objective(built, net, data.shape)
    (folder / name).mkdir()
    fabric = make_fabric(config, freezes=built.freezes)
    Loop(fabric, folder / name, config, net, built, data, SilentReporter()).run(False)
    records = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"], net.state_dict()

for method in sys.argv[4:]:
    sizes, losses = [], 0
    counters.clear()
    with _dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True):
        (one, weights), (other, compiled) = (trained(f"{method}-{how}", method, how) for how in (False, True))
    apart = max(  # relative to the largest number of a tensor: running variances are far above 1
        float((value - compiled[name].double()).abs().max() / value.abs().max().clamp_min(1))
        for name, value in ((name, value.double()) for name, value in weights.items())
    )
    breaks = [reason.partition("\\n")[0] for reason in counters["graph_break"]]
    result = {"method": method, "plain": one, "compiled": other, "apart": apart, "sizes": sizes, "losses": losses}
    print(json.dumps({**result, "breaks": breaks}), flush=True)
"""
PHASES = ("imta", "ztw")
"""Methods whose phases have losses of their own, which are not compiled."""
OWN_STEPS = ("dml", "hdbt", "hdkd", "hmsdnet", "l2w")
"""Methods whose losses are not compiled, or within steps of their own."""


def trained(folder: Path, how: str, names: tuple[str, ...], device: str = "cpu") -> list[dict[str, Any]]:
    """Each method trained as it is and compiled, in a process of its own: the compiler cannot read run-time checks."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, str(folder), how, device, *names]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1100)
    assert ran.returncode == 0, ran.stderr[-2000:]
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [result["method"] for result in results] == list(names)
    return results


def assert_compiled(folder: Path, names: tuple[str, ...]) -> None:
    for result in trained(folder, "read", names):
        method = result["method"]
        assert result["compiled"] == pytest.approx(result["plain"], rel=1e-4), method
        assert result["apart"] < 1e-4, method
        assert not result["breaks"], f"{method}: {result['breaks']}"
        if method not in OWN_STEPS:
            assert set(result["sizes"]) == {8}, f"{method} compiles batches of {result['sizes']}"
            assert result["losses"] or method in PHASES, f"{method} compiles no losses"


@pytest.mark.full
def test_whole_batches_of_every_phase_are_compiled(tmp_path: Path) -> None:
    """Of 20 images, 4 are left for the last batch of 8, and val has 6; `ztw` has three phases."""
    assert_compiled(tmp_path, ("ztw", "muse"))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_compiled_losses_of_every_method_are_the_ordinary_ones(tmp_path: Path) -> None:
    assert_compiled(tmp_path, tuple(name for name in methods.available() if name not in ("ztw", "muse")))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.full), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_generated_code_computes_the_same(tmp_path: Path, device: str) -> None:
    (result,) = trained(tmp_path, "generate", ("muse",), device)
    assert result["compiled"] == pytest.approx(result["plain"], rel=1e-3)
    assert result["apart"] < 1e-2  # other rounding, which grows from step to step
